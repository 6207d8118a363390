#include "callbacks.h"

namespace gpuledger {

thread_local bool Callbacks::inside_ = false;

CachingAllocator::CallbackId Callbacks::Add(CachingAllocator::OutOfMemoryCallback callback) {
  MutexLock lock(mutex_);
  out_of_memory_.push_back({next_id_, std::move(callback)});
  return next_id_++;
}

CachingAllocator::CallbackId Callbacks::Add(double fraction, CachingAllocator::NearCapCallback callback) {
  MutexLock lock(mutex_);
  near_cap_.push_back({next_id_, fraction, std::move(callback)});
  wants_near_cap_ = true;
  return next_id_++;
}

void Callbacks::Remove(CachingAllocator::CallbackId id) {
  MutexLock lock(mutex_);
  std::erase_if(out_of_memory_, [id](const OutOfMemory& c) { return c.id == id; });
  std::erase_if(near_cap_, [id](const NearCap& c) { return c.id == id; });
  wants_near_cap_ = !near_cap_.empty();
}

std::vector<CachingAllocator::OutOfMemoryCallback> Callbacks::OutOfMemoryCallbacks() const {
  std::vector<CachingAllocator::OutOfMemoryCallback> callbacks;
  MutexLock lock(mutex_);
  for (const OutOfMemory& c : out_of_memory_) callbacks.push_back(c.callback);
  return callbacks;
}

void Callbacks::NoteReserved(const Totals& totals, Bytes limit) {
  if (inside_) return;
  std::vector<CachingAllocator::NearCapCallback> due;
  {
    MutexLock lock(mutex_);
    for (NearCap& c : near_cap_) {
      const bool above = static_cast<double>(totals.reserved.count()) >= c.fraction * static_cast<double>(limit.count());
      if (above && !c.above) due.push_back(c.callback);
      c.above = above;
    }
  }
  if (due.empty()) return;
  const Inside inside;
  for (const auto& callback : due) callback(totals);
}

}  // namespace gpuledger
