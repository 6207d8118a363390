// Memory of this computer, with a pattern in each block: its first and last words, and a few between.
#include <cstring>

#include "gpuledger/host_upstream.h"
#include "pattern.h"
#include "replay_device.h"

namespace gpuledger::replay {
namespace {

constexpr DeviceId kDevice{0};

class HostDevice final : public ReplayDevice {
 public:
  explicit HostDevice(uint32_t streams) : streams_(streams) {}

  MeasuredUpstream& upstream() override { return measured_; }
  // Distinct addresses that nothing is read from.
  [[nodiscard]] Stream StreamOf(uint32_t stream) const override { return Handle(stream); }
  [[nodiscard]] uint64_t driver_nanoseconds() const override { return measured_.nanoseconds(); }

  absl::Status Write(const LiveBlock& block) override {
    for (const uint64_t offset : SampledOffsets(block.size)) {
      const Pattern pattern(block.allocation, offset);
      std::memcpy(Host(block, offset), pattern.bytes(), pattern.size(block.size));
    }
    return absl::OkStatus();
  }

  absl::Status Check(const LiveBlock& block) override {
    for (const uint64_t offset : SampledOffsets(block.size)) {
      const Pattern pattern(block.allocation, offset);
      if (std::memcmp(Host(block, offset), pattern.bytes(), pattern.size(block.size)) != 0) {
        return LostPattern(block, offset);
      }
    }
    return absl::OkStatus();
  }

  // Work of the host is done when it returns: the side stream has none.
  absl::StatusOr<Stream> UseElsewhere(const LiveBlock& /*block*/) override { return Handle(streams_); }

 private:
  static Stream Handle(uint64_t number) {
    return {kDevice, reinterpret_cast<CUstream_st*>((number + 1) << 12)};  // NOLINT(performance-no-int-to-ptr)
  }
  static char* Host(const LiveBlock& block, uint64_t offset) {
    return static_cast<char*>(block.address.unsafe_host_pointer()) + offset;
  }

  const uint32_t streams_;
  HostMemfdUpstream upstream_;
  MeasuredUpstream measured_{upstream_};
};

}  // namespace

absl::StatusOr<std::unique_ptr<ReplayDevice>> MakeHostDevice(const AllocationTrace& trace) {
  if (trace.peak_requested > PhysicalMemory()) {
    return DoesNotFit(trace, "this computer", PhysicalMemory());
  }
  return std::make_unique<HostDevice>(trace.streams);
}

}  // namespace gpuledger::replay
