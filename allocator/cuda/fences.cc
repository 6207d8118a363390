#include "fences.h"

#include <algorithm>

#include <fmt/format.h>

#include "upstream_books.h"

namespace gpuledger::cuda {

Fences::~Fences() {
  const Inside inside(context_);
  if (!inside.ok()) return;  // the process ends, or is a forked child: there is nothing to give back to
  MutexLock lock(mutex_);
  for (const auto& [id, fence] : fences_) context_.driver().cuEventDestroy(fence.event);
  for (const Event event : idle_) context_.driver().cuEventDestroy(event);
}

absl::Status Fences::CheckStream(Stream stream, std::string_view what) const {
  return stream.device() == device_ ? absl::OkStatus() : ForeignStream(what, stream, device_);
}

absl::Status Fences::CheckNotCapturing(Stream stream, std::string_view what) const {
  CaptureStatus status = kCaptureNone;
  const Result result = context_.driver().cuStreamIsCapturing(stream.raw(), &status);
  // The legacy default stream answers with this error while a stream that synchronises with it is captured.
  if (result != kSuccess && result != kStreamCaptureImplicit) {
    return CudaStatus(context_.driver(), result, "cuStreamIsCapturing", what);
  }
  if (result == kSuccess && status == kCaptureNone) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format(
      "{}: stream {} of device {} is being captured into a graph, where a fence never passes; do it after the capture",
      what, fmt::ptr(stream.raw()), stream.device().value()));
}

absl::StatusOr<Fences::Map::iterator> Fences::Find(FenceId fence) {
  const auto found = fences_.find(fence.value());
  if (found == fences_.end() || found->second.dropped) return UnknownFence(fence);
  return found;
}

absl::StatusOr<Event> Fences::TakeEvent() {
  if (!idle_.empty()) {
    const Event event = idle_.back();
    idle_.pop_back();
    return event;
  }
  Event event = nullptr;
  const Result result = context_.driver().cuEventCreate(&event, kEventDisableTiming);
  if (result != kSuccess) return CudaStatus(context_.driver(), result, "cuEventCreate", "RecordFence");
  return event;
}

absl::StatusOr<FenceId> Fences::Record(Stream stream) {
  const Inside inside(context_);
  if (!inside.ok()) return inside.status("RecordFence");
  if (absl::Status status = CheckStream(stream, "RecordFence"); !status.ok()) return status;
  if (absl::Status status = CheckNotCapturing(stream, "RecordFence"); !status.ok()) return status;
  MutexLock lock(mutex_);  // during the recording too: the order of the numbers is that of the events
  const absl::StatusOr<Event> event = TakeEvent();
  if (!event.ok()) return event.status();
  if (const Result result = context_.driver().cuEventRecord(*event, stream.raw()); result != kSuccess) {
    idle_.push_back(*event);
    return CudaStatus(context_.driver(), result, "cuEventRecord", "RecordFence");
  }
  Fence fence{.event = *event, .stream = {}, .number = 0};
  unsigned long long id = 0;
  if (context_.driver().cuStreamGetId != nullptr && context_.driver().cuStreamGetId(stream.raw(), &id) == kSuccess) {
    StreamState& state = streams_[id];
    fence.stream = id;
    fence.number = ++state.recorded;
    ++state.live;
  }
  fences_.emplace(++last_fence_, fence);
  return FenceId(last_fence_);
}

bool Fences::KnownToHavePassed(const Fence& fence) {
  return fence.passed || (fence.stream && streams_.find(*fence.stream)->second.passed >= fence.number);
}

void Fences::NotePassed(Fence& fence) {
  fence.passed = true;
  if (!fence.stream) return;
  uint64_t& passed = streams_.find(*fence.stream)->second.passed;
  passed = std::max(passed, fence.number);
}

absl::StatusOr<bool> Fences::Ask(Fence& fence) {
  const Result result = context_.driver().cuEventQuery(fence.event);
  if (result == kNotReady) return false;
  if (result != kSuccess) return CudaStatus(context_.driver(), result, "cuEventQuery", "PollFence");
  NotePassed(fence);
  return true;
}

absl::StatusOr<bool> Fences::Poll(FenceId id) {
  const Inside inside(context_);
  if (!inside.ok()) return inside.status("PollFence");
  MutexLock lock(mutex_);
  const absl::StatusOr<Map::iterator> found = Find(id);
  if (!found.ok()) return found.status();
  Fence& fence = (*found)->second;
  if (KnownToHavePassed(fence)) return true;
  return Ask(fence);
}

void Fences::AskInOrder(std::span<Fence* const> fences) {
  const auto has_passed = [this](Fence& fence) GPULEDGER_NO_THREAD_SAFETY_ANALYSIS {
    if (KnownToHavePassed(fence)) return true;
    const absl::StatusOr<bool> passed = Ask(fence);
    return passed.ok() && *passed;
  };
  // Mostly nothing has passed, which the oldest tells, or everything, which the newest tells; else it is halved.
  if (!has_passed(*fences.front()) || has_passed(*fences.back())) return;
  size_t low = 0, high = fences.size() - 1;  // fences[low] has passed, fences[high] has not
  while (high - low > 1) {
    const size_t middle = low + (high - low) / 2;
    (has_passed(*fences[middle]) ? low : high) = middle;
  }
}

std::vector<FenceId> Fences::Passed(std::span<const FenceId> ids) {
  std::vector<FenceId> passed;
  const Inside inside(context_);
  if (!inside.ok()) return passed;
  MutexLock lock(mutex_);
  std::unordered_map<uint64_t, std::vector<Fence*>> by_stream;
  for (const FenceId id : ids) {
    const absl::StatusOr<Map::iterator> found = Find(id);
    if (!found.ok()) continue;
    Fence& fence = (*found)->second;
    if (KnownToHavePassed(fence)) continue;
    if (fence.stream) {
      by_stream[*fence.stream].push_back(&fence);
    } else {
      Ask(fence).IgnoreError();
    }
  }
  for (auto& [stream, fences] : by_stream) {
    std::sort(fences.begin(), fences.end(), [](const Fence* a, const Fence* b) { return a->number < b->number; });
    AskInOrder(fences);
  }
  for (const FenceId id : ids) {
    const absl::StatusOr<Map::iterator> found = Find(id);
    if (found.ok() && KnownToHavePassed((*found)->second)) passed.push_back(id);
  }
  return passed;
}

absl::Status Fences::Wait(FenceId id) {
  const Inside inside(context_);
  if (!inside.ok()) return inside.status("WaitFence");
  Event event = nullptr;
  {
    MutexLock lock(mutex_);
    const absl::StatusOr<Map::iterator> found = Find(id);
    if (!found.ok()) return found.status();
    Fence& fence = (*found)->second;
    if (KnownToHavePassed(fence)) return absl::OkStatus();
    ++fence.waiters;
    event = fence.event;
  }
  const Result result = context_.driver().cuEventSynchronize(event);
  MutexLock lock(mutex_);
  const Map::iterator waited_for = fences_.find(id.value());  // there until its last waiter is out
  Fence& fence = waited_for->second;
  --fence.waiters;
  if (result == kSuccess) NotePassed(fence);
  if (fence.dropped && fence.waiters == 0) Retire(waited_for);
  return CudaStatus(context_.driver(), result, "cuEventSynchronize", "WaitFence");
}

absl::Status Fences::MakeStreamWait(Stream stream, FenceId id) {
  const Inside inside(context_);
  if (!inside.ok()) return inside.status("MakeStreamWait");
  MutexLock lock(mutex_);
  const absl::StatusOr<Map::iterator> found = Find(id);
  if (!found.ok()) return found.status();
  if (absl::Status status = CheckStream(stream, "MakeStreamWait"); !status.ok()) return status;
  if (absl::Status status = CheckNotCapturing(stream, "MakeStreamWait"); !status.ok()) return status;
  if (KnownToHavePassed((*found)->second)) return absl::OkStatus();
  const Result result = context_.driver().cuStreamWaitEvent(stream.raw(), (*found)->second.event, 0);
  return CudaStatus(context_.driver(), result, "cuStreamWaitEvent", "MakeStreamWait");
}

void Fences::Drop(FenceId id) {
  if (context_.in_forked_child()) return;
  MutexLock lock(mutex_);
  const absl::StatusOr<Map::iterator> found = Find(id);
  if (!found.ok()) DieOfDoubleDrop(id);
  if ((*found)->second.waiters > 0) {
    (*found)->second.dropped = true;
  } else {
    Retire(*found);
  }
}

void Fences::Retire(Map::iterator fence) {
  idle_.push_back(fence->second.event);
  if (fence->second.stream) {
    const auto state = streams_.find(*fence->second.stream);
    if (--state->second.live == 0) streams_.erase(state);
  }
  fences_.erase(fence);
}

}  // namespace gpuledger::cuda
