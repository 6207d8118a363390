#include "upstream_books.h"

#include <iterator>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace gpuledger {

absl::Status Upstream::WaitStream(Stream stream) {
  const absl::StatusOr<FenceId> fence = RecordFence(stream);
  if (!fence.ok()) return fence.status();
  const absl::Status waited = WaitFence(*fence);
  DropFence(*fence);
  return waited;
}

std::vector<FenceId> Upstream::PassedFences(std::span<const FenceId> fences) {
  std::vector<FenceId> passed;
  for (const FenceId fence : fences) {
    const absl::StatusOr<bool> answer = PollFence(fence);
    if (answer.ok() && *answer) passed.push_back(fence);
  }
  return passed;
}

namespace {

absl::Status Misuse(std::string message) { return absl::FailedPreconditionError(std::move(message)); }

absl::Status UnknownHandle(std::string_view call, HandleId handle) {
  return Misuse(fmt::format("{}: handle {} is not one of this upstream's live handles", call, handle.value()));
}

}  // namespace

absl::Status UpstreamBooks::CheckSize(std::string_view call, Bytes size) const {
  if (!size.is_zero() && (size % granularity_).is_zero()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}: {} is not a positive multiple of the granularity, {}", call,
                                                ToString(size), ToString(granularity_)));
}

absl::Status UpstreamBooks::CheckMemory(std::string_view call, Bytes size) const {
  const MemoryInfo info = memory_info();
  if (size <= info.free) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      fmt::format("{}: {} asked for, {} of {} free", call, ToString(size), ToString(info.free), ToString(info.total)));
}

absl::Status UpstreamBooks::CheckHasHandles(std::string_view call) const {
  if (capabilities_.mapping) return absl::OkStatus();
  return Misuse(fmt::format("{}: this upstream cannot map memory, a range comes with its own (capabilities().mapping)",
                            call));
}

absl::Status UpstreamBooks::CheckReserve(Bytes size) const {
  if (absl::Status status = CheckSize("Reserve", size); !status.ok()) return status;
  return capabilities_.mapping ? absl::OkStatus() : CheckMemory("Reserve", size);
}

void UpstreamBooks::AddRange(Range range) {
  ranges_.emplace(range.base.address(), range.size);
  if (!capabilities_.mapping) created_ += range.size;
}

void UpstreamBooks::RemoveRange(Range range) {
  ranges_.erase(range.base.address());
  if (!capabilities_.mapping) created_ -= range.size;
}

absl::Status UpstreamBooks::CheckUnreserve(Range range) const {
  const auto found = ranges_.find(range.base.address());
  if (range.base.device() != device_ || found == ranges_.end() || found->second != range.size) {
    return Misuse(fmt::format("Unreserve: {} at {:#x} is not a reserved range", ToString(range.size),
                              range.base.address()));
  }
  if (const auto* mapping = MappingIn(range.base.address(), range.size)) {
    return Misuse(fmt::format("Unreserve: handle {} is still mapped at {:#x}", mapping->second.handle.value(),
                              mapping->first));
  }
  return absl::OkStatus();
}

absl::Status UpstreamBooks::CheckCreate(Bytes size) const {
  if (absl::Status status = CheckHasHandles("CreateHandle"); !status.ok()) return status;
  if (absl::Status status = CheckSize("CreateHandle", size); !status.ok()) return status;
  return CheckMemory("CreateHandle", size);
}

HandleId UpstreamBooks::AddHandle(Bytes size, uint64_t place) {
  const HandleId id(++last_handle_);
  handles_.emplace(id, Handle{size, place, 0});
  created_ += size;
  return id;
}

absl::Status UpstreamBooks::CheckRelease(HandleId handle) const {
  if (absl::Status status = CheckHasHandles("ReleaseHandle"); !status.ok()) return status;
  const auto found = handles_.find(handle);
  if (found == handles_.end()) return UnknownHandle("ReleaseHandle", handle);
  if (found->second.mappings == 0) return absl::OkStatus();
  return Misuse(fmt::format("ReleaseHandle: handle {} is still mapped at {} address(es)", handle.value(),
                            found->second.mappings));
}

void UpstreamBooks::RemoveHandle(HandleId handle) {
  const auto found = handles_.find(handle);
  created_ -= found->second.size;
  handles_.erase(found);
}

absl::Status UpstreamBooks::CheckMap(DevicePtr address, HandleId handle) const {
  if (absl::Status status = CheckHasHandles("Map"); !status.ok()) return status;
  const auto found = handles_.find(handle);
  if (found == handles_.end()) return UnknownHandle("Map", handle);
  const Bytes size = found->second.size;
  if (!(Bytes(address.address()) % granularity_).is_zero()) {
    return absl::InvalidArgumentError(fmt::format("Map: {:#x} is not a multiple of the granularity, {}",
                                                  address.address(), ToString(granularity_)));
  }
  bool inside = false;
  // The range before the first that begins above is the last that begins at or below.
  if (auto range = ranges_.upper_bound(address.address()); address.device() == device_ && range != ranges_.begin()) {
    --range;
    const Bytes offset(address.address() - range->first);
    inside = offset <= range->second && size <= range->second - offset;
  }
  if (!inside) {
    return Misuse(fmt::format("Map: {} at {:#x} do not lie within one reserved range", ToString(size),
                              address.address()));
  }
  if (const auto* mapping = MappingIn(address.address(), size)) {
    return Misuse(fmt::format("Map: handle {} is already mapped at {:#x}", mapping->second.handle.value(),
                              mapping->first));
  }
  if (found->second.mappings > 0 && !capabilities_.aliasing) {
    return Misuse(fmt::format("Map: handle {} is already mapped, and this upstream cannot map one handle at two "
                              "addresses (capabilities().aliasing)",
                              handle.value()));
  }
  return absl::OkStatus();
}

void UpstreamBooks::AddMapping(DevicePtr address, HandleId handle) {
  Handle& mapped = handles_.find(handle)->second;
  ++mapped.mappings;
  mappings_.emplace(address.address(), Mapping{handle, mapped.size});
}

absl::Status UpstreamBooks::CheckUnmap(DevicePtr address, HandleId handle) const {
  if (absl::Status status = CheckHasHandles("Unmap"); !status.ok()) return status;
  if (!handles_.contains(handle)) return UnknownHandle("Unmap", handle);
  const auto found = mappings_.find(address.address());
  if (address.device() == device_ && found != mappings_.end() && found->second.handle == handle) {
    return absl::OkStatus();
  }
  return Misuse(fmt::format("Unmap: handle {} is not mapped at {:#x}", handle.value(), address.address()));
}

void UpstreamBooks::RemoveMapping(DevicePtr address, HandleId handle) {
  --handles_.find(handle)->second.mappings;
  mappings_.erase(address.address());
}

absl::Status ForeignStream(std::string_view call, Stream stream, DeviceId device) {
  return Misuse(fmt::format("{}: a stream of device {} given to an upstream of device {}", call, stream.device().value(),
                            device.value()));
}

absl::Status UnknownFence(FenceId fence) {
  return Misuse(fmt::format("fence {} was never recorded, or has been dropped", fence.value()));
}

void DieOfDoubleDrop(FenceId fence) {
  Die(fmt::format("DropFence: fence {} was never recorded, or has been dropped already", fence.value()));
}

absl::Status UpstreamBooks::CheckStream(Stream stream) const {
  return stream.device() == device_ ? absl::OkStatus() : ForeignStream("fence", stream, device_);
}

FenceId UpstreamBooks::AddFence(Stream stream) {
  const FenceId id(++last_fence_);
  fences_.emplace(id, stream);
  return id;
}

absl::StatusOr<Stream> UpstreamBooks::FenceStream(FenceId fence) const {
  if (const auto found = fences_.find(fence); found != fences_.end()) return found->second;
  return UnknownFence(fence);
}

void UpstreamBooks::RemoveFence(FenceId fence) {
  if (fences_.erase(fence) == 0) DieOfDoubleDrop(fence);
}

const std::pair<const uint64_t, UpstreamBooks::Mapping>* UpstreamBooks::MappingIn(uint64_t address,
                                                                                Bytes size) const {
  auto next = mappings_.lower_bound(address);  // the first that begins at or above
  if (next != mappings_.begin()) {
    const auto before = std::prev(next);
    if (Bytes(address - before->first) < before->second.size) return &*before;
  }
  if (next != mappings_.end() && Bytes(next->first - address) < size) return &*next;
  return nullptr;
}

}  // namespace gpuledger
