// allocator/torch/cuda/plugged_upstream.h - memory out of another CUDAAllocator: that of a MemPool which was made with one.
//
// Ranges are bought whole, each with raw_alloc and given back with raw_delete, as large as the request or 2 MiB; nothing is
// mapped. Fences and everything else are the device's own. A plug-in's errors are c10 errors: those of Reserve come back as
// statuses, and OutOfMemoryError as kResourceExhausted.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include <c10/cuda/CUDACachingAllocator.h>

#include "gpuledger/upstream.h"

namespace gpuledger::pytorch {

using c10::cuda::CUDACachingAllocator::CUDAAllocator;

// What all plugged memory of a device may grow to: a memory fraction bounds what is reserved, whoever gives it. Thread-safe.
class PluggedBudget {
 public:
  // Bytes that plugged memory may have now.
  explicit PluggedBudget(std::function<Bytes()> limit) : limit_(std::move(limit)) {}

  // False, and nothing has changed, if that is too much.
  [[nodiscard]] bool Take(Bytes size) {
    const uint64_t after = taken_.fetch_add(size.count()) + size.count();
    if (Bytes(after) <= limit_()) return true;
    taken_.fetch_sub(size.count());
    return false;
  }
  void GiveBack(Bytes size) { taken_.fetch_sub(size.count()); }
  [[nodiscard]] Bytes taken() const { return Bytes(taken_.load(std::memory_order_relaxed)); }

 private:
  const std::function<Bytes()> limit_;
  std::atomic<uint64_t> taken_ = 0;
};

class PluggedUpstream final : public Upstream {
 public:
  // `device` and `budget` outlive it; `allocator` is kept.
  PluggedUpstream(Upstream& device, std::shared_ptr<CUDAAllocator> allocator, PluggedBudget& budget)
      : device_(device), allocator_(std::move(allocator)), budget_(budget) {}

  [[nodiscard]] std::string_view name() const override { return "plugged"; }
  [[nodiscard]] DeviceId device() const override { return device_.device(); }
  [[nodiscard]] Capabilities capabilities() const override {
    return {.aliasing = false, .host_accessible = false, .mapping = false, .usual_range = granularity(), .survives_fork = false};
  }
  [[nodiscard]] Bytes granularity() const override { return Bytes(uint64_t{2} << 20); }
  [[nodiscard]] MemoryInfo memory_info() const override { return device_.memory_info(); }
  [[nodiscard]] TimePoint now() const override { return device_.now(); }

  absl::StatusOr<Range> Reserve(Bytes size) override;
  absl::Status Unreserve(Range range) override;
  absl::StatusOr<HandleId> CreateHandle(Bytes) override { return NoHandles(); }
  absl::Status ReleaseHandle(HandleId) override { return NoHandles(); }
  absl::Status Map(DevicePtr, HandleId) override { return NoHandles(); }
  absl::Status Unmap(DevicePtr, HandleId) override { return NoHandles(); }

  absl::StatusOr<FenceId> RecordFence(Stream stream) override { return device_.RecordFence(stream); }
  absl::StatusOr<bool> PollFence(FenceId fence) override { return device_.PollFence(fence); }
  absl::Status WaitFence(FenceId fence) override { return device_.WaitFence(fence); }
  absl::Status MakeStreamWait(Stream stream, FenceId fence) override { return device_.MakeStreamWait(stream, fence); }
  void DropFence(FenceId fence) override { device_.DropFence(fence); }
  absl::Status Synchronize() override { return device_.Synchronize(); }
  [[nodiscard]] bool Capturing(Stream stream) const override { return device_.Capturing(stream); }
  [[nodiscard]] std::vector<FenceId> PassedFences(std::span<const FenceId> fences) override { return device_.PassedFences(fences); }
  void VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit) const override;

 private:
  static absl::Status NoHandles() { return absl::FailedPreconditionError("a plugged allocator's memory comes whole: it has no handles"); }

  Upstream& device_;
  absl::StatusOr<Range> Buy(Bytes size);

  const std::shared_ptr<CUDAAllocator> allocator_;
  PluggedBudget& budget_;
  mutable std::mutex mutex_;
  std::vector<uint64_t> bought_;  // guarded by mutex_
};

}  // namespace gpuledger::pytorch
