#include "scale_model_upstream.h"

#include <fmt/format.h>

namespace gpuledger::scale {

absl::Status StrictUpstream::Fault(UpstreamCall call) {
  if (fake != nullptr) return absl::OkStatus();
  std::lock_guard lock(mutex_);
  bool due = false;
  std::erase_if(faults_, [&](auto& fault) {
    const bool now = fault.first == call && --fault.second == 0;
    due = due || now;
    return now;
  });
  return due ? absl::InternalError("injected") : absl::OkStatus();
}

void StrictUpstream::FailNext(UpstreamCall call, uint64_t nth) {
  const bool memory = call == UpstreamCall::kCreate || (call == UpstreamCall::kReserve && !capabilities().mapping);
  if (fake != nullptr) return fake->FailNext(call, memory ? absl::ResourceExhaustedError("injected") : absl::InternalError("injected"), nth);
  std::lock_guard lock(mutex_);
  faults_.emplace_back(call, nth);
}

void StrictUpstream::ClearFaults() {
  if (fake != nullptr) fake->ClearFaults();
  std::lock_guard lock(mutex_);
  faults_.clear();
}

void StrictUpstream::CountGrowth(uint64_t size) {
  const uint64_t now = created.fetch_add(size) + size;
  if (now > limit.load()) wrong(fmt::format("{} bytes are reserved, the cap is {}", now, limit.load()));
}

absl::StatusOr<Range> StrictUpstream::Reserve(Bytes size) {
  if (absl::Status fault = Fault(UpstreamCall::kReserve); !fault.ok()) return fault;
  absl::StatusOr<Range> range = inner.Reserve(size);
  if (!range.ok()) return range;
  std::lock_guard lock(mutex_);
  ranges_[range->base.address()] = size.count();
  if (capabilities().mapping) return range;
  whole_ranges_[range->base.address()] = size.count();
  CountGrowth(size.count());
  return range;
}

absl::Status StrictUpstream::Unreserve(Range range) {
  const bool whole = !capabilities().mapping;
  if (whole) CheckGoing(range.base.address(), range.size.count());
  if (absl::Status fault = Fault(UpstreamCall::kUnreserve); !fault.ok()) return fault;
  absl::Status status = inner.Unreserve(range);
  if (!status.ok()) return status;
  std::lock_guard lock(mutex_);
  ranges_.erase(range.base.address());
  if (whole && whole_ranges_.erase(range.base.address()) == 1) created.fetch_sub(range.size.count());
  // The host gives addresses out again.
  for (uint64_t at = range.base.address(); !whole && at < range.base.address() + range.size.count(); at += kUnit) {
    if (fake != nullptr) break;
    if (Leaf* leaf = claims.Find(at)) leaf->stream = 0, leaf->last = 0, leaf->pool = 0;
  }
  return status;
}

absl::StatusOr<HandleId> StrictUpstream::CreateHandle(Bytes size) {
  if (absl::Status fault = Fault(UpstreamCall::kCreate); !fault.ok()) return fault;
  absl::StatusOr<HandleId> handle = inner.CreateHandle(size);
  if (!handle.ok()) return handle;
  CountGrowth(size.count());
  std::lock_guard lock(mutex_);
  Handle& mine = handles_[handle->value()];
  mine.size = size.count();
  mine.uses.resize(size.count() / kUnit);
  return handle;
}

absl::Status StrictUpstream::ReleaseHandle(HandleId handle) {
  if (absl::Status fault = Fault(UpstreamCall::kRelease); !fault.ok()) return fault;
  absl::Status status = inner.ReleaseHandle(handle);
  if (!status.ok()) return status;
  std::lock_guard lock(mutex_);
  created.fetch_sub(handles_[handle.value()].size);
  handles_.erase(handle.value());
  return status;
}

void StrictUpstream::Keep(Handle& handle, uint64_t address) {
  for (size_t i = 0; i < handle.uses.size(); ++i) {
    const Leaf* leaf = claims.Find(address + i * kUnit);
    if (leaf == nullptr || leaf->pool == 0) continue;
    handle.uses[i] = {leaf->stream.load(), leaf->last.load(), leaf->pool.load()};
  }
}

absl::Status StrictUpstream::Map(DevicePtr address, HandleId handle) {
  if (absl::Status fault = Fault(UpstreamCall::kMap); !fault.ok()) return fault;
  absl::Status status = inner.Map(address, handle);
  if (!status.ok()) return status;
  std::lock_guard lock(mutex_);
  Handle& mine = handles_[handle.value()];
  for (const uint64_t old : mine.addresses) {
    if (lies_on(old, mine.size, requesting_stream)) wrong("a handle is mapped elsewhere while a block lies on it");
    Keep(mine, old);
  }
  if (!mine.addresses.empty() && requested_pool != 0) wrong("a private pool grew with a handle of another pool");
  for (size_t i = 0; i < mine.uses.size(); ++i) {
    const LastUse& use = mine.uses[i];
    if (use.pool > 1 && !pool_released(use.pool - 1)) wrong("a handle of a private pool went to another address");
    Leaf& leaf = claims.At(address.address() + i * kUnit);
    if (!mine.addresses.empty() || use.pool != 0) {
      leaf.stream = use.stream;
      leaf.last = use.last;
    }
    leaf.pool = 0;
  }
  mine.addresses.push_back(address.address());
  return status;
}

absl::Status StrictUpstream::Unmap(DevicePtr address, HandleId handle) {
  uint64_t size = 0;
  {
    std::lock_guard lock(mutex_);
    size = handles_[handle.value()].size;
  }
  CheckGoing(address.address(), size);
  if (absl::Status fault = Fault(UpstreamCall::kUnmap); !fault.ok()) return fault;
  absl::Status status = inner.Unmap(address, handle);
  if (!status.ok()) return status;
  std::lock_guard lock(mutex_);
  Handle& mine = handles_[handle.value()];
  if (mine.addresses.size() == 1) Keep(mine, address.address());
  std::erase(mine.addresses, address.address());
  return status;
}

void StrictUpstream::CheckGoing(uint64_t begin, uint64_t size) {
  if (lies_on(begin, size, kNoStream)) wrong("memory is unmapped under a block in use or pending");
  for (uint64_t at = begin; at < begin + size; at += kUnit) {
    const Leaf* leaf = claims.Find(at);
    if (leaf != nullptr && leaf->pool > 1 && !pool_released(leaf->pool - 1)) wrong("memory of a private pool is unmapped");
    if (leaf != nullptr && !timeline.Done(leaf->stream, leaf->last)) {
      wrong(fmt::format("memory is unmapped while stream {} has work that was not waited for", leaf->stream.load()));
    }
  }
}

absl::StatusOr<FenceId> StrictUpstream::RecordFence(Stream stream) {
  if (absl::Status fault = Fault(UpstreamCall::kRecordFence); !fault.ok()) return fault;
  const StreamNumber number = NumberOf(stream);
  const uint64_t queued = timeline.queued(number);
  absl::StatusOr<FenceId> fence = inner.RecordFence(stream);
  if (fence.ok()) timeline.Recorded(*fence, number, queued);
  return fence;
}

absl::StatusOr<bool> StrictUpstream::PollFence(FenceId fence) {
  if (absl::Status fault = Fault(UpstreamCall::kPollFence); !fault.ok()) return fault;
  absl::StatusOr<bool> passed = inner.PollFence(fence);
  if (passed.ok() && *passed) timeline.Passed(fence);
  return passed;
}

std::vector<FenceId> StrictUpstream::PassedFences(std::span<const FenceId> fences) {
  std::vector<FenceId> passed = inner.PassedFences(fences);
  for (const FenceId fence : passed) timeline.Passed(fence);
  return passed;
}

absl::Status StrictUpstream::WaitFence(FenceId fence) {
  if (absl::Status fault = Fault(UpstreamCall::kWaitFence); !fault.ok()) return fault;
  absl::Status status = inner.WaitFence(fence);
  if (status.ok()) timeline.Passed(fence);
  return status;
}

absl::Status StrictUpstream::MakeStreamWait(Stream stream, FenceId fence) {
  if (absl::Status fault = Fault(UpstreamCall::kStreamWait); !fault.ok()) return fault;
  absl::Status status = inner.MakeStreamWait(stream, fence);
  if (status.ok()) timeline.MakeWait(NumberOf(stream), fence);
  return status;
}

void StrictUpstream::DropFence(FenceId fence) {
  if (!timeline.Drop(fence) && !may_drop_early()) wrong("a fence was dropped before it was known to have passed");
  inner.DropFence(fence);
}

absl::Status StrictUpstream::Synchronize() {
  if (absl::Status fault = Fault(UpstreamCall::kSynchronize); !fault.ok()) return fault;
  const std::vector<uint64_t> queued = timeline.AllQueued();
  absl::Status status = inner.Synchronize();
  if (status.ok()) timeline.AllDone(queued);
  return status;
}

uint64_t StrictUpstream::BytesThatStay() {
  std::lock_guard lock(mutex_);
  const auto stays = [&](uint64_t begin, uint64_t size) {
    if (claims.AnyClaimed(begin, size)) return true;
    for (uint64_t at = begin; at < begin + size; at += kUnit) {
      const Leaf* leaf = claims.Find(at);
      if (leaf != nullptr && leaf->pool > 1 && !pool_released(leaf->pool - 1)) return true;
    }
    return false;
  };
  uint64_t sum = 0;
  for (const auto& [id, handle] : handles_) {
    sum += std::any_of(handle.addresses.begin(), handle.addresses.end(), [&, size = handle.size](uint64_t at) { return stays(at, size); }) ? handle.size : 0;
  }
  for (const auto& [base, size] : whole_ranges_) sum += stays(base, size) ? size : 0;
  return sum;
}

bool StrictUpstream::Empty() {
  std::lock_guard lock(mutex_);
  return handles_.empty() && whole_ranges_.empty() && ranges_.empty() && timeline.live_fences() == 0;
}

}  // namespace gpuledger::scale
