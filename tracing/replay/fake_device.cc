// No memory: a clock that follows the trace, and fences of side streams that pass when the trace says so.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "gpuledger/fake_upstream.h"
#include "replay_device.h"

namespace gpuledger::replay {
namespace {

constexpr DeviceId kDevice{0};
// Handles of streams lead nowhere. Those of side streams are told by their value.
constexpr uint64_t kFirstStream = uint64_t{1} << 16, kFirstSideStream = uint64_t{1} << 48;
constexpr uint64_t kStride = 16;

Stream StreamAt(uint64_t base, uint64_t index) {
  return {kDevice, reinterpret_cast<CUstream_st*>(base + kStride * index)};  // NOLINT(performance-no-int-to-ptr)
}

bool IsSideStream(Stream stream) { return reinterpret_cast<uint64_t>(stream.raw()) >= kFirstSideStream; }

// Room for an allocator far worse than any known one; the ranges it reserves are made after it.
Bytes TotalFor(const AllocationTrace& trace) {
  return std::max(Bytes(uint64_t{16} << 30), trace.peak_requested * 4u).RoundUpTo(FakeOptions().granularity);
}

class FakeDevice final : public ReplayDevice {
 public:
  explicit FakeDevice(const AllocationTrace& trace)
      : fake_({.total = TotalFor(trace), .hold_fences = true}), measured_(fake_, [this](Stream stream, FenceId fence) {
          if (!IsSideStream(stream)) fake_.PassFence(fence);
        }) {}

  MeasuredUpstream& upstream() override { return measured_; }
  [[nodiscard]] Stream StreamOf(uint32_t stream) const override { return StreamAt(kFirstStream, stream); }
  [[nodiscard]] uint64_t driver_nanoseconds() const override { return fake_.driver_nanoseconds(); }

  // What the driver took is part of the time between two rows; where it took longer, the trace waits for it.
  void AdvanceTo(uint64_t microseconds) override {
    if (microseconds == at_.load(std::memory_order_relaxed)) return;
    const std::lock_guard lock(clock_);
    at_.store(microseconds, std::memory_order_relaxed);
    const uint64_t now = fake_.now().value();
    if (microseconds * 1000 > now) fake_.Advance(microseconds * 1000 - now);
  }

  // As few side streams as there are blocks in use on one at the same time.
  absl::StatusOr<Stream> UseElsewhere(const LiveBlock& block) override {
    if (idle_.empty()) idle_.push_back(StreamAt(kFirstSideStream, side_streams_++));
    const Stream side = idle_.back();
    idle_.pop_back();
    busy_.emplace(block.allocation, side);
    return side;
  }

  void Complete(uint32_t allocation) override {
    const auto found = busy_.find(allocation);
    if (found == busy_.end()) return;
    fake_.PassFences(found->second);
    idle_.push_back(found->second);
    busy_.erase(found);
  }

 private:
  FakeUpstream fake_;
  MeasuredUpstream measured_;
  std::mutex clock_;
  std::atomic<uint64_t> at_ = 0;
  uint64_t side_streams_ = 0;
  std::vector<Stream> idle_;
  std::unordered_map<uint32_t, Stream> busy_;  // by allocation
};

}  // namespace

std::unique_ptr<ReplayDevice> MakeFakeDevice(const AllocationTrace& trace) { return std::make_unique<FakeDevice>(trace); }

}  // namespace gpuledger::replay
