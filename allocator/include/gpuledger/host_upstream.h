// gpuledger/host_upstream.h - memory of this computer, by the rules of a GPU's virtual memory management.
//
// Two forms, alike but for where the memory lies. HostAnonymousUpstream moves private anonymous pages by mremap: forked
// children (data loaders) see them copy-on-write, as they would see malloc's; one handle has one address.
// HostMemfdUpstream maps parts of one memory file: a handle can be mapped at two addresses, as on a GPU, and forked
// children share it; it is for tests. In both, ranges are PROT_NONE reservations aligned to 2 MiB, and a page costs
// memory once it is touched (in a memory file also by reading it).
// Work on the host is done when it returns, so a recorded fence has always passed. Thread-safe. Do not fork while
// another thread is inside a call: the child would find the mutex locked.
#pragma once

#include <memory>

#include "gpuledger/types.h"
#include "gpuledger/upstream.h"

namespace gpuledger {

class HostPages;

// Physical memory of this computer, whole 2 MiB units of it.
GPULEDGER_EXPORT Bytes PhysicalMemory();

// What both forms have in common. Its destructor gives everything back, mapped or not.
class GPULEDGER_EXPORT HostUpstream : public Upstream {
 public:
  ~HostUpstream() override;

  [[nodiscard]] TimePoint now() const override;
  [[nodiscard]] DeviceId device() const override { return DeviceId(0); }
  [[nodiscard]] Bytes granularity() const override { return Bytes(uint64_t{2} << 20); }
  [[nodiscard]] MemoryInfo memory_info() const override;  // of `total`, not of what the computer has left
  void VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit) const override;
  absl::StatusOr<Range> Reserve(Bytes size) override;
  absl::Status Unreserve(Range range) override;
  absl::StatusOr<HandleId> CreateHandle(Bytes size) override;
  absl::Status ReleaseHandle(HandleId handle) override;
  absl::Status Map(DevicePtr address, HandleId handle) override;
  absl::Status Unmap(DevicePtr address, HandleId handle) override;
  absl::StatusOr<FenceId> RecordFence(Stream stream) override;
  absl::StatusOr<bool> PollFence(FenceId fence) override;
  absl::Status WaitFence(FenceId fence) override;
  absl::Status MakeStreamWait(Stream stream, FenceId fence) override;
  absl::Status Synchronize() override;
  void DropFence(FenceId fence) override;

 protected:
  HostUpstream(Bytes total, bool aliasing, std::unique_ptr<HostPages> pages);

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

// `total`: how many bytes of handles it gives out at most. Nothing is set aside for them.
class GPULEDGER_EXPORT HostAnonymousUpstream final : public HostUpstream {
 public:
  explicit HostAnonymousUpstream(Bytes total = PhysicalMemory());
  [[nodiscard]] std::string_view name() const override { return "host-anonymous"; }
  [[nodiscard]] Capabilities capabilities() const override { return {.aliasing = false, .host_accessible = true}; }
};

class GPULEDGER_EXPORT HostMemfdUpstream final : public HostUpstream {
 public:
  explicit HostMemfdUpstream(Bytes total = PhysicalMemory());
  [[nodiscard]] std::string_view name() const override { return "host-memfd"; }
  [[nodiscard]] Capabilities capabilities() const override { return {.aliasing = true, .host_accessible = true}; }
};

}  // namespace gpuledger
