#include "measured_upstream.h"

#include <chrono>

namespace gpuledger::replay {
namespace {

thread_local uint64_t upstream_nanoseconds = 0;

}  // namespace

std::string_view CallName(UpstreamCall call) {
  switch (call) {
    case UpstreamCall::kReserve: return "reserve";
    case UpstreamCall::kUnreserve: return "unreserve";
    case UpstreamCall::kCreate: return "create";
    case UpstreamCall::kRelease: return "release";
    case UpstreamCall::kMap: return "map";
    case UpstreamCall::kUnmap: return "unmap";
    case UpstreamCall::kRecordFence: return "record_fence";
    case UpstreamCall::kPollFence: return "poll_fence";
    case UpstreamCall::kWaitFence: return "wait_fence";
    case UpstreamCall::kStreamWait: return "stream_wait";
    case UpstreamCall::kSynchronize: return "synchronize";
  }
  Die("CallName: no such call");
}

uint64_t UpstreamNanosecondsOfThisThread() { return upstream_nanoseconds; }

template <class Call>
auto MeasuredUpstream::Measure(UpstreamCall kind, uint64_t count, const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  auto result = call();
  const std::chrono::nanoseconds took = std::chrono::steady_clock::now() - start;
  calls_[static_cast<size_t>(kind)] += count;
  nanoseconds_ += static_cast<uint64_t>(took.count());
  upstream_nanoseconds += static_cast<uint64_t>(took.count());
  return result;
}

absl::StatusOr<Range> MeasuredUpstream::Reserve(Bytes size) {
  return Measure(UpstreamCall::kReserve, 1, [&] { return inner.Reserve(size); });
}

absl::Status MeasuredUpstream::Unreserve(Range range) {
  return Measure(UpstreamCall::kUnreserve, 1, [&] { return inner.Unreserve(range); });
}

absl::StatusOr<HandleId> MeasuredUpstream::CreateHandle(Bytes size) {
  return Measure(UpstreamCall::kCreate, 1, [&] { return inner.CreateHandle(size); });
}

absl::Status MeasuredUpstream::ReleaseHandle(HandleId handle) {
  return Measure(UpstreamCall::kRelease, 1, [&] { return inner.ReleaseHandle(handle); });
}

absl::Status MeasuredUpstream::Map(DevicePtr address, HandleId handle) {
  return Measure(UpstreamCall::kMap, 1, [&] { return inner.Map(address, handle); });
}

absl::Status MeasuredUpstream::Unmap(DevicePtr address, HandleId handle) {
  return Measure(UpstreamCall::kUnmap, 1, [&] { return inner.Unmap(address, handle); });
}

absl::StatusOr<FenceId> MeasuredUpstream::RecordFence(Stream stream) {
  absl::StatusOr<FenceId> fence = Measure(UpstreamCall::kRecordFence, 1, [&] { return inner.RecordFence(stream); });
  if (fence.ok() && on_fence_) on_fence_(stream, *fence);
  return fence;
}

absl::StatusOr<bool> MeasuredUpstream::PollFence(FenceId fence) {
  return Measure(UpstreamCall::kPollFence, 1, [&] { return inner.PollFence(fence); });
}

absl::Status MeasuredUpstream::WaitFence(FenceId fence) {
  return Measure(UpstreamCall::kWaitFence, 1, [&] { return inner.WaitFence(fence); });
}

absl::Status MeasuredUpstream::MakeStreamWait(Stream stream, FenceId fence) {
  return Measure(UpstreamCall::kStreamWait, 1, [&] { return inner.MakeStreamWait(stream, fence); });
}

absl::Status MeasuredUpstream::Synchronize() {
  return Measure(UpstreamCall::kSynchronize, 1, [&] { return inner.Synchronize(); });
}

std::vector<FenceId> MeasuredUpstream::PassedFences(std::span<const FenceId> fences) {
  return Measure(UpstreamCall::kPollFence, fences.size(), [&] { return inner.PassedFences(fences); });
}

}  // namespace gpuledger::replay
