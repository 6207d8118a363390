// gpuledger/cuda_upstream.h - the memory of a CUDA device.
//
// Handles are physical memory (cuMemCreate), ranges are reserved addresses, and one handle can be mapped at two of
// them. Where a device cannot do that, ranges are bought whole (cuMemAlloc) and capabilities().mapping is false. Fences
// are events, pooled, and asked as seldom as possible. Nothing of CUDA is linked or included: the driver is found at
// run time, and a program that opens no CudaUpstream runs without it.
//
// It works in the device's primary context, which the CUDA runtime and PyTorch use too, and leaves whatever context is
// current on the calling thread as it was. Streams are those of that context; the handles 0 (legacy), 1 and 2 (legacy
// and per-thread default) stand for what they stand for in CUDA.
//
// Stream capture: calls break no capture that is going on. RecordFence and MakeStreamWait on a stream that is being
// captured are kFailedPrecondition, and the capture goes on.
// Fork: in a child of the process that opened it every call is kFailedPrecondition, and its end does nothing. CUDA
// itself works only in the process that initialised it.
// Process exit: it may end after main(), when the driver is gone; then nothing is given back, and nothing is said.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "gpuledger/cuda_ipc.h"
#include "gpuledger/upstream.h"

namespace gpuledger {

struct CudaOptions {
  bool exportable = false;       // handles can be given to other processes as file descriptors
  bool gpu_direct_rdma = false;  // handles can be registered with network adapters
  bool mapping = true;           // false: buy ranges whole even where the device could map
};

class GPULEDGER_EXPORT CudaUpstream final : public Upstream {
 public:
  // Finds the driver and retains the device's primary context. `device` counts as CUDA does (CUDA_VISIBLE_DEVICES
  // applies). Errors, each with the way out: kUnavailable without a driver, with one that is too old (before CUDA 11.3)
  // or has no device; kInvalidArgument for a device that is not there; kUnimplemented for an option that the device
  // lacks; kFailedPrecondition in a forked child; kResourceExhausted if there is no memory for a context.
  static absl::StatusOr<std::unique_ptr<CudaUpstream>> Open(DeviceId device, const CudaOptions& options = {});
  // What the device is able to: Open takes exactly the options that are true here. Errors: those of Open.
  static absl::StatusOr<CudaOptions> Possible(DeviceId device);
  // Gives everything back, mapped or not, after the device has done all its work if anything is still mapped.
  ~CudaUpstream() override;

  // From now on work of device `peer` may read and write all memory of this one, mapped now or later. For good: it cannot be
  // taken back. A second call, or the device itself, is fine and changes nothing. Errors: kInvalidArgument for a device that is
  // not there, kUnimplemented if the hardware has no way from one to the other, and the driver's; after those the peer may
  // have access to a part. Synchronises no device.
  absl::Status AllowPeer(DeviceId peer);

  // What another process needs to map the memory at [address, address + size): ImportedMemory::Import (cuda_ipc.h) takes it.
  // The same bytes each time, as long as the same handles lie there. The caller keeps the handles where they are, and alive,
  // until the other process has imported them: of a CachingAllocator's memory, it exports blocks in use, no others, and frees
  // them after the import. Handles are shared whole: the other process can reach what else lies in them. Each exported handle
  // costs a file descriptor as long as it lives. Errors: kFailedPrecondition without CudaOptions::exportable; kNotFound if
  // not all of it is mapped; the driver's. Synchronises no device.
  absl::StatusOr<ExportedMemory> Export(DevicePtr address, Bytes size);

  [[nodiscard]] TimePoint now() const override;
  [[nodiscard]] std::string_view name() const override { return "cuda"; }
  [[nodiscard]] DeviceId device() const override;
  [[nodiscard]] Capabilities capabilities() const override;
  [[nodiscard]] Bytes granularity() const override;
  // As the driver says: others use this memory too. No byte is free if it cannot say.
  [[nodiscard]] MemoryInfo memory_info() const override;
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
  void DropFence(FenceId fence) override;
  absl::Status Synchronize() override;
  [[nodiscard]] bool Capturing(Stream stream) const override;
  [[nodiscard]] std::vector<FenceId> PassedFences(std::span<const FenceId> fences) override;

 private:
  struct State;
  explicit CudaUpstream(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace gpuledger
