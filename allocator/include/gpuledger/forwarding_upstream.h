// gpuledger/forwarding_upstream.h - an upstream that hands every call to another one: derive from it to change, watch or
// measure some of them. As thread-safe as the other one, whose errors are its own.
#pragma once

#include <span>
#include <vector>

#include "gpuledger/upstream.h"

namespace gpuledger {

class ForwardingUpstream : public Upstream {
 public:
  // `its_inner` outlives it.
  explicit ForwardingUpstream(Upstream& its_inner) : inner(its_inner) {}
  std::string_view name() const override { return inner.name(); }
  DeviceId device() const override { return inner.device(); }
  Capabilities capabilities() const override { return inner.capabilities(); }
  Bytes granularity() const override { return inner.granularity(); }
  MemoryInfo memory_info() const override { return inner.memory_info(); }
  TimePoint now() const override { return inner.now(); }
  absl::StatusOr<Range> Reserve(Bytes size) override { return inner.Reserve(size); }
  absl::Status Unreserve(Range range) override { return inner.Unreserve(range); }
  absl::StatusOr<HandleId> CreateHandle(Bytes size) override { return inner.CreateHandle(size); }
  absl::Status ReleaseHandle(HandleId handle) override { return inner.ReleaseHandle(handle); }
  absl::Status Map(DevicePtr address, HandleId handle) override { return inner.Map(address, handle); }
  absl::Status Unmap(DevicePtr address, HandleId handle) override { return inner.Unmap(address, handle); }
  absl::StatusOr<FenceId> RecordFence(Stream stream) override { return inner.RecordFence(stream); }
  absl::StatusOr<bool> PollFence(FenceId fence) override { return inner.PollFence(fence); }
  absl::Status WaitFence(FenceId fence) override { return inner.WaitFence(fence); }
  absl::Status MakeStreamWait(Stream stream, FenceId fence) override { return inner.MakeStreamWait(stream, fence); }
  absl::Status Synchronize() override { return inner.Synchronize(); }
  bool Capturing(Stream stream) const override { return inner.Capturing(stream); }
  void DropFence(FenceId fence) override { inner.DropFence(fence); }
  std::vector<FenceId> PassedFences(std::span<const FenceId> fences) override { return inner.PassedFences(fences); }
  void VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit) const override { inner.VisitNotes(visit); }

  Upstream& inner;
};

}  // namespace gpuledger
