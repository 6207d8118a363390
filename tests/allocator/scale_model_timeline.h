// What the streams of a GPU have queued, and how much of it is known to be done: work is numbered on each stream, a fence
// stands for a number there and for whatever its stream was ordered after. Thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "gpuledger/types.h"

namespace gpuledger::scale {

// Streams are numbered: the ordinary ones by their handles, the per-thread default stream of each thread after them.
using StreamNumber = uint32_t;
inline constexpr StreamNumber kOrdinaryStreams = 64;
inline constexpr StreamNumber kMostStreams = 4096;
inline constexpr StreamNumber kNoStream = ~StreamNumber{0};
inline thread_local StreamNumber this_thread_stream = kOrdinaryStreams;  // of the per-thread default stream

inline StreamNumber NumberOf(Stream stream) {
  if (stream.per_thread()) return this_thread_stream;
  return static_cast<StreamNumber>(reinterpret_cast<uintptr_t>(stream.Canonical().raw()) / 16);
}

class Timeline {
 public:
  uint64_t Queue(StreamNumber stream) { return work_[stream].queued.fetch_add(1, std::memory_order_acq_rel) + 1; }
  [[nodiscard]] uint64_t queued(StreamNumber stream) const { return work_[stream].queued.load(std::memory_order_acquire); }
  [[nodiscard]] bool Done(StreamNumber stream, uint64_t number) const { return work_[stream].done.load(std::memory_order_acquire) >= number; }

  // Whether what `after` does from now on comes after that work.
  bool Ordered(StreamNumber stream, uint64_t number, StreamNumber after) {
    if (stream == after || Done(stream, number)) return true;
    std::lock_guard lock(mutex_);
    return std::any_of(orders_[after].begin(), orders_[after].end(), [&](const Point& p) { return p.stream == stream && p.number >= number; });
  }

  // `number`: what was queued before the fence was recorded.
  void Recorded(FenceId fence, StreamNumber stream, uint64_t number) {
    std::lock_guard lock(mutex_);
    std::vector<Point>& points = fences_[fence.value()] = orders_[stream];
    points.push_back({stream, number});
  }
  void Passed(FenceId fence) {
    std::lock_guard lock(mutex_);
    const auto found = fences_.find(fence.value());
    if (found == fences_.end()) return;
    for (const Point& p : found->second) Raise(p.stream, p.number);
  }
  void MakeWait(StreamNumber stream, FenceId fence) {
    std::lock_guard lock(mutex_);
    for (const Point& p : fences_[fence.value()]) {
      auto known = std::find_if(orders_[stream].begin(), orders_[stream].end(), [&](const Point& k) { return k.stream == p.stream; });
      if (known == orders_[stream].end()) known = orders_[stream].insert(known, {p.stream, 0});
      known->number = std::max(known->number, p.number);
    }
  }
  // False if it is not known to have passed.
  bool Drop(FenceId fence) {
    std::lock_guard lock(mutex_);
    const auto found = fences_.find(fence.value());
    if (found == fences_.end()) return false;
    const bool passed = std::all_of(found->second.begin(), found->second.end(), [this](const Point& p) { return Done(p.stream, p.number); });
    fences_.erase(found);
    return passed;
  }
  [[nodiscard]] size_t live_fences() {
    std::lock_guard lock(mutex_);
    return fences_.size();
  }

  std::vector<uint64_t> AllQueued() const {
    std::vector<uint64_t> all(kMostStreams);
    for (StreamNumber s = 0; s < kMostStreams; ++s) all[s] = queued(s);
    return all;
  }
  void AllDone(const std::vector<uint64_t>& queued_before) {
    for (StreamNumber s = 0; s < kMostStreams; ++s) Raise(s, queued_before[s]);
  }

 private:
  struct Point {
    StreamNumber stream;
    uint64_t number;
  };
  struct Work {
    std::atomic<uint64_t> queued = 0, done = 0;
  };
  void Raise(StreamNumber stream, uint64_t number) {
    uint64_t old = work_[stream].done.load(std::memory_order_relaxed);
    while (old < number && !work_[stream].done.compare_exchange_weak(old, number, std::memory_order_acq_rel)) {
    }
  }

  std::array<Work, kMostStreams> work_;
  std::mutex mutex_;
  absl::flat_hash_map<uint64_t, std::vector<Point>> fences_;
  absl::flat_hash_map<StreamNumber, std::vector<Point>> orders_;
};

}  // namespace gpuledger::scale
