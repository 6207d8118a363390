// tracing/replay/measured_upstream.h - an upstream that counts and times the calls to another one.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "gpuledger/fake_upstream.h"
#include "gpuledger/forwarding_upstream.h"

namespace gpuledger::replay {

// "reserve", "create", ...: the keys of `upstream_calls`.
std::string_view CallName(UpstreamCall call);

// What the calls of this thread to any measured upstream have taken so far, by the clock on the wall.
uint64_t UpstreamNanosecondsOfThisThread();

class MeasuredUpstream : public ForwardingUpstream {
 public:
  // `its_inner` outlives it. `on_fence` is called with each fence that was recorded, before anyone else knows it.
  explicit MeasuredUpstream(Upstream& its_inner, std::function<void(Stream, FenceId)> on_fence = {})
      : ForwardingUpstream(its_inner), on_fence_(std::move(on_fence)) {}

  // Fences asked about together count one by one.
  [[nodiscard]] uint64_t calls(UpstreamCall call) const { return calls_[static_cast<size_t>(call)]; }
  // The time that the calls of all threads took.
  [[nodiscard]] uint64_t nanoseconds() const { return nanoseconds_; }

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
  [[nodiscard]] std::vector<FenceId> PassedFences(std::span<const FenceId> fences) override;

 private:
  template <class Call>
  auto Measure(UpstreamCall kind, uint64_t count, const Call& call);

  const std::function<void(Stream, FenceId)> on_fence_;
  std::array<std::atomic<uint64_t>, kUpstreamCallCount> calls_ = {};
  std::atomic<uint64_t> nanoseconds_ = 0;
};

}  // namespace gpuledger::replay
