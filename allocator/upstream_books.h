// allocator/upstream_books.h - what an upstream has given out: its ranges, handles, mappings and fences, and who misuses them.
//
// Upstreams differ in how they get memory, not in what is a mistake: every rule of upstream.h that can be checked
// without a device is checked here, once. Each Check says why a call may not be made; each Add or Remove books a call
// that has succeeded. So an upstream checks, acts, and books only what came off: a failed call changes nothing.
// Not thread-safe: the upstream's mutex guards it.
#pragma once

#include <cstdint>
#include <map>
#include <string_view>

#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/types.h"
#include "gpuledger/upstream.h"

namespace gpuledger {

// The sentences about fences, for an upstream that keeps its own book of them.
absl::Status ForeignStream(std::string_view call, Stream stream, DeviceId device);
absl::Status UnknownFence(FenceId fence);
[[noreturn]] void DieOfDoubleDrop(FenceId fence);

class UpstreamBooks {
 public:
  struct Handle {
    Bytes size;
    uint64_t place = 0;     // the upstream's own note of where the memory is; not read here
    uint32_t mappings = 0;  // at how many addresses it is mapped
  };
  struct Mapping {
    HandleId handle;
    Bytes size;
  };

  UpstreamBooks(DeviceId device, Bytes total, Bytes granularity, Capabilities capabilities)
      : device_(device), total_(total), granularity_(granularity), capabilities_(capabilities) {}

  absl::Status CheckReserve(Bytes size) const;
  void AddRange(Range range);
  absl::Status CheckUnreserve(Range range) const;
  void RemoveRange(Range range);

  absl::Status CheckCreate(Bytes size) const;
  HandleId AddHandle(Bytes size, uint64_t place);
  absl::Status CheckRelease(HandleId handle) const;
  void RemoveHandle(HandleId handle);

  absl::Status CheckMap(DevicePtr address, HandleId handle) const;
  void AddMapping(DevicePtr address, HandleId handle);
  absl::Status CheckUnmap(DevicePtr address, HandleId handle) const;
  void RemoveMapping(DevicePtr address, HandleId handle);

  absl::Status CheckStream(Stream stream) const;
  FenceId AddFence(Stream stream);
  // The stream that `fence` was recorded on; kFailedPrecondition if it is not live.
  absl::StatusOr<Stream> FenceStream(FenceId fence) const;
  void RemoveFence(FenceId fence);  // fatal if it is not live: DropFence cannot return an error

  // Requires: a live handle, as a Check has found.
  Handle& handle(HandleId handle) { return handles_.find(handle)->second; }

  // Zero if it is not live.
  [[nodiscard]] Bytes SizeOf(HandleId handle) const {
    const auto found = handles_.find(handle);
    return found == handles_.end() ? Bytes() : found->second.size;
  }

  [[nodiscard]] DeviceId device() const { return device_; }
  [[nodiscard]] Bytes granularity() const { return granularity_; }
  [[nodiscard]] MemoryInfo memory_info() const { return {total_ - created_, total_}; }
  [[nodiscard]] Bytes created() const { return created_; }
  [[nodiscard]] const std::map<uint64_t, Bytes>& ranges() const { return ranges_; }
  [[nodiscard]] const std::map<uint64_t, Mapping>& mappings() const { return mappings_; }
  [[nodiscard]] const absl::flat_hash_map<HandleId, Handle>& handles() const { return handles_; }
  // Upstream::VisitNotes.
  void VisitNotes(absl::FunctionRef<void(const void*, size_t)> visit) const {
    for (const auto& range : ranges_) visit(&range, sizeof(range));
    for (const auto& mapping : mappings_) visit(&mapping, sizeof(mapping));
  }
  [[nodiscard]] size_t fence_count() const { return fences_.size(); }

 private:
  absl::Status CheckSize(std::string_view call, Bytes size) const;
  absl::Status CheckMemory(std::string_view call, Bytes size) const;
  absl::Status CheckHasHandles(std::string_view call) const;
  // The first mapping that touches [address, address + size), or null.
  [[nodiscard]] const std::pair<const uint64_t, Mapping>* MappingIn(uint64_t address, Bytes size) const;

  const DeviceId device_;
  const Bytes total_;
  const Bytes granularity_;
  const Capabilities capabilities_;
  std::map<uint64_t, Bytes> ranges_;      // by base; ordered, since overlap is asked for
  std::map<uint64_t, Mapping> mappings_;  // by address
  absl::flat_hash_map<HandleId, Handle> handles_;
  absl::flat_hash_map<FenceId, Stream> fences_;
  Bytes created_;  // in handles, or in ranges if there are none
  uint64_t last_handle_ = 0;
  uint64_t last_fence_ = 0;
};

}  // namespace gpuledger
