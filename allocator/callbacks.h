// allocator/callbacks.h - what the owner of an allocator asked to be called for.
//
// Callbacks run with no lock held, on a copy of the list: one may add, remove, allocate and free. A thread that is inside
// one gets no second one for what it does there. Thread-safe.
#pragma once

#include <atomic>
#include <vector>

#include "gpuledger/allocator.h"
#include "sync.h"

namespace gpuledger {

class Callbacks {
 public:
  CachingAllocator::CallbackId Add(CachingAllocator::OutOfMemoryCallback callback);
  CachingAllocator::CallbackId Add(double fraction, CachingAllocator::NearCapCallback callback);
  void Remove(CachingAllocator::CallbackId id);

  // Calls the out-of-memory callbacks in turn; after each that freed something, `retry`: true ends it.
  template <class Retry>
  bool FreeSome(Bytes needed, Retry&& retry) {
    if (inside_) return false;
    for (const auto& callback : OutOfMemoryCallbacks()) {
      const Inside inside;
      if (callback(needed) && retry()) return true;
    }
    return false;
  }
  // Whether anybody wants to be told near the cap.
  [[nodiscard]] bool near_cap() const { return wants_near_cap_.load(std::memory_order_relaxed); }
  // What is reserved now, of `limit`: calls those whose fraction was reached from below since the last time.
  void NoteReserved(const Totals& totals, Bytes limit);

  Mutex& mutex() GPULEDGER_RETURN_CAPABILITY(mutex_) { return mutex_; }  // held around fork()

 private:
  struct Inside {
    Inside() { inside_ = true; }
    ~Inside() { inside_ = false; }
  };
  struct NearCap {
    CachingAllocator::CallbackId id;
    double fraction;
    CachingAllocator::NearCapCallback callback;
    bool above = false;
  };
  struct OutOfMemory {
    CachingAllocator::CallbackId id;
    CachingAllocator::OutOfMemoryCallback callback;
  };
  [[nodiscard]] std::vector<CachingAllocator::OutOfMemoryCallback> OutOfMemoryCallbacks() const;

  static thread_local bool inside_;

  mutable Mutex mutex_;
  std::atomic<bool> wants_near_cap_ = false;
  CachingAllocator::CallbackId next_id_ GPULEDGER_GUARDED_BY(mutex_) = 1;
  std::vector<OutOfMemory> out_of_memory_ GPULEDGER_GUARDED_BY(mutex_);
  std::vector<NearCap> near_cap_ GPULEDGER_GUARDED_BY(mutex_);
};

}  // namespace gpuledger
