// tracing/replay/timeline.h - what was reserved, in use and requested, over the trace's time. Thread-safe.
#pragma once

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "allocation_trace.h"
#include "gpuledger/allocator.h"
#include "replay.h"

namespace gpuledger::replay {

class Timeline {
 public:
  // As many equal parts as there may be samples.
  Timeline(const AllocationTrace& trace, size_t samples)
      : part_us_(samples == 0 ? 0 : trace.duration_us() / samples + 1), samples_(samples) {}

  [[nodiscard]] bool kept() const { return samples_ != 0; }

  // After the allocator's call of a row; `size` was requested, or given back.
  void Add(const Row& row, Bytes size, const CachingAllocator& allocator) {
    const std::lock_guard lock(mutex_);
    if (row.op == Op::kAllocate) requested_ += size;
    if (row.op == Op::kFree) requested_ -= size;
    const Totals totals = allocator.totals();
    const size_t part = row.time_us / part_us_;
    // Parts without a row go on as the one before ended.
    while (parts_.size() <= part) {
      parts_.push_back({static_cast<double>((parts_.size() + 1) * part_us_) / 1e6, last_.reserved, last_.in_use, last_.requested});
    }
    last_ = {0, totals.reserved, totals.in_use, requested_};
    Sample& sample = parts_.back();
    sample.reserved = std::max(sample.reserved, last_.reserved);
    sample.in_use = std::max(sample.in_use, last_.in_use);
    sample.requested = std::max(sample.requested, last_.requested);
  }

  std::vector<Sample> Take() { return std::move(parts_); }

 private:
  const uint64_t part_us_;
  const size_t samples_;
  std::mutex mutex_;
  std::vector<Sample> parts_;
  Sample last_;
  Bytes requested_;
};

}  // namespace gpuledger::replay
