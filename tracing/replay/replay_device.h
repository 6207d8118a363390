// tracing/replay/replay_device.h - what a trace is replayed on: an upstream, its streams, and the work on its blocks.
//
// The rows of one trace come to it in an order that no two threads share: Allocated on the thread that allocates on the
// block's stream, the others on the thread that frees. Thread-safe as far as that.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "allocation_trace.h"
#include "gpuledger/types.h"
#include "measured_upstream.h"

namespace gpuledger::replay {

// A block of the trace, while it lives.
struct LiveBlock {
  uint32_t allocation;  // index in the trace: what its pattern is made of
  DevicePtr address;
  Bytes size;
  Stream stream;
};

class ReplayDevice {
 public:
  ReplayDevice() = default;
  ReplayDevice(const ReplayDevice&) = delete;
  ReplayDevice& operator=(const ReplayDevice&) = delete;
  virtual ~ReplayDevice() = default;

  virtual MeasuredUpstream& upstream() = 0;
  [[nodiscard]] virtual Stream StreamOf(uint32_t stream) const = 0;
  // The time of the calls so far, modelled or measured.
  [[nodiscard]] virtual uint64_t driver_nanoseconds() const = 0;

  // The trace has come to this time.
  virtual void AdvanceTo(uint64_t /*microseconds*/) {}
  // The block was allocated: its pattern is written in the order of its stream.
  virtual absl::Status Write(const LiveBlock& /*block*/) { return absl::OkStatus(); }
  // It is about to be freed: its pattern is there, or kDataLoss.
  virtual absl::Status Check(const LiveBlock& /*block*/) { return absl::OkStatus(); }
  // Another stream uses the block, from now until Complete.
  virtual absl::StatusOr<Stream> UseElsewhere(const LiveBlock& block) = 0;
  virtual void Complete(uint32_t /*allocation*/) {}
};

std::unique_ptr<ReplayDevice> MakeFakeDevice(const AllocationTrace& trace);
// kInvalidArgument with both sizes if the trace's peak is more than this computer's memory.
absl::StatusOr<std::unique_ptr<ReplayDevice>> MakeHostDevice(const AllocationTrace& trace);
// Device 0. The same for the device's memory; and the errors of CudaUpstream::Open, such as kUnavailable without a driver.
absl::StatusOr<std::unique_ptr<ReplayDevice>> MakeCudaDevice(const AllocationTrace& trace);

// kInvalidArgument, with both sizes.
absl::Status DoesNotFit(const AllocationTrace& trace, std::string_view what, Bytes memory);
// kDataLoss: the block does not hold at `offset` what was written there.
absl::Status LostPattern(const LiveBlock& block, uint64_t offset);

}  // namespace gpuledger::replay
