// gpuledger/upstream.h - where memory comes from.
//
// An upstream deals in the three things that virtual memory management deals in: *ranges* of reserved addresses,
// *handles* of physical memory, and the mapping of one into the other; and in *fences*, points in a stream's work after
// which memory may be reused. Implementations: FakeUpstream (no memory; clock, costs, faults, fences that pass when
// told), HostAnonymousUpstream and HostMemfdUpstream (host_upstream.h), CudaUpstream (cuda_upstream.h). One contract suite
// runs over all (tests/allocator/upstream_contract.h), and every sentence of this header is one of its tests.
//
// Thread-safe: every method may be called from any thread. Errors: kResourceExhausted when memory or addresses run
// out, kInvalidArgument for a size or offset that is not a multiple of granularity(), kInternal for a driver's failure
// (its name and call in the message). A failed call changes nothing. Misuse (unmapping what is not mapped, releasing
// a handle that is mapped, unreserving a range with mappings) is kFailedPrecondition.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <absl/functional/function_ref.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/record.h"
#include "gpuledger/types.h"

namespace gpuledger {

// Reserved addresses, without memory until handles are mapped into them.
struct Range {
  DevicePtr base;
  Bytes size;
};

struct MemoryInfo {
  Bytes free;
  Bytes total;
};

// What an upstream can do; callers ask instead of knowing which upstream they have.
struct Capabilities {
  bool aliasing = false;         // one handle may be mapped at two addresses at the same time
  bool host_accessible = false;  // mapped addresses can be dereferenced by the CPU of this process
  // Memory is mapped into ranges. If not, there are no handles: Reserve buys a range whole, addresses with memory,
  // readable and writable; Unreserve gives it back at once; CreateHandle, ReleaseHandle, Map and Unmap are misuse.
  bool mapping = true;
  // Where ranges are bought whole: how large, if a request does not need more. Smaller ones are asked for where so much is
  // not to be had; a multiple of granularity().
  Bytes usual_range = Bytes(uint64_t{32} << 20);
  // A forked child may go on allocating. If not, every call there is kFailedPrecondition.
  bool survives_fork = true;
};

class GPULEDGER_EXPORT Upstream : public Clock {
 public:
  Upstream() = default;
  Upstream(const Upstream&) = delete;
  Upstream& operator=(const Upstream&) = delete;
  ~Upstream() override = default;

  [[nodiscard]] virtual std::string_view name() const = 0;  // "fake", "host-anonymous", "host-memfd", "cuda"
  [[nodiscard]] virtual DeviceId device() const = 0;
  [[nodiscard]] virtual Capabilities capabilities() const = 0;
  // The unit of handles, and of every size and offset below: 2 MiB or a multiple of it.
  [[nodiscard]] virtual Bytes granularity() const = 0;
  [[nodiscard]] virtual MemoryInfo memory_info() const = 0;

  // Addresses, which cost no memory (but see Capabilities::mapping). The base is a multiple of granularity(), never null,
  // and overlaps no other live range.
  virtual absl::StatusOr<Range> Reserve(Bytes size) = 0;
  virtual absl::Status Unreserve(Range range) = 0;

  // Physical memory; its content is undefined. A released handle's memory is back at once.
  virtual absl::StatusOr<HandleId> CreateHandle(Bytes size) = 0;
  virtual absl::Status ReleaseHandle(HandleId handle) = 0;

  // Maps the whole handle at `address`, readable and writable. The content of a handle survives Unmap and Map.
  // A handle mapped already can be mapped again only if capabilities().aliasing; both addresses then show one memory.
  virtual absl::Status Map(DevicePtr address, HandleId handle) = 0;
  // Takes away one mapping made by Map at this very address. No stream is waited for.
  virtual absl::Status Unmap(DevicePtr address, HandleId handle) = 0;

  // Fences. Each recorded fence is dropped exactly once. Poll never blocks; Wait blocks the calling thread until the
  // fence has passed; MakeStreamWait orders later work of `stream` after it without blocking the caller.
  virtual absl::StatusOr<FenceId> RecordFence(Stream stream) = 0;
  virtual absl::StatusOr<bool> PollFence(FenceId fence) = 0;
  virtual absl::Status WaitFence(FenceId fence) = 0;
  virtual absl::Status MakeStreamWait(Stream stream, FenceId fence) = 0;
  virtual void DropFence(FenceId fence) = 0;
  // Blocks the calling thread until what is queued on `stream` now is done: a fence, recorded, waited for and dropped.
  absl::Status WaitStream(Stream stream);
  // Blocks the calling thread until all work is done that was queued on the device before: every fence recorded by then has
  // passed. kFailedPrecondition while a stream of the device is being captured.
  virtual absl::Status Synchronize() = 0;
  // Whether `stream` is being captured into a graph (or, for the default stream, one that synchronises with it): what
  // forbids Synchronize. Never blocks.
  [[nodiscard]] virtual bool Capturing(Stream) const { return false; }
  // Those of `fences` that have passed, in the order given: PollFence for many at once, and cheaper where one answer tells
  // of others. A fence that cannot be polled is not among them.
  [[nodiscard]] virtual std::vector<FenceId> PassedFences(std::span<const FenceId> fences);

  // Calls `visit` with the places in host memory where it has noted addresses that it gave out: who looks for the holders
  // of a block leaves these out (process.h: FindLost).
  virtual void VisitNotes(absl::FunctionRef<void(const void* place, size_t size)> visit) const { static_cast<void>(visit); }
};

}  // namespace gpuledger
