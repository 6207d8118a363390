// The memory of a CUDA device, with real streams: each block is filled with a word of its own, in the order of its stream,
// and looked at, for each kStride-th block, when it is freed. A block that was used elsewhere is filled once more by a
// side stream after its own: were it reused too early, that would run over what its next holder had written.
#include <array>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "gpuledger/cuda_stream.h"
#include "gpuledger/cuda_upstream.h"
#include "replay_device.h"

namespace gpuledger::replay {
namespace {

constexpr DeviceId kDevice{0};
constexpr uint32_t kMostStreams = 1024;
constexpr uint32_t kStride = 4;  // to look is to wait for the stream
constexpr uint32_t kSideStreams = 4;

using Streams = std::vector<std::unique_ptr<CudaStream>>;

uint32_t WordOf(uint32_t allocation) { return (allocation + 1) * 0x9E3779B1u; }

// A block of 1 to 3 bytes is charged more than that.
uint64_t WordsOf(Bytes size) { return size.count() < 4 ? 1 : size.count() / 4; }

class CudaDevice final : public ReplayDevice {
 public:
  CudaDevice(const AllocationTrace& trace, Streams streams, Streams side, std::unique_ptr<CudaUpstream> upstream)
      : trace_(trace),
        streams_(std::move(streams)),
        side_(std::move(side)),
        upstream_(std::move(upstream)),
        measured_(*upstream_) {}

  MeasuredUpstream& upstream() override { return measured_; }
  [[nodiscard]] Stream StreamOf(uint32_t stream) const override { return streams_[stream]->stream(); }
  [[nodiscard]] uint64_t driver_nanoseconds() const override { return measured_.nanoseconds(); }

  absl::Status Write(const LiveBlock& block) override {
    return HomeOf(block).Fill(block.address, WordOf(block.allocation), WordsOf(block.size));
  }

  absl::Status Check(const LiveBlock& block) override {
    if (block.allocation % kStride != 0 && !trace_.allocations[block.allocation].used_elsewhere) return absl::OkStatus();
    const uint64_t words = WordsOf(block.size);
    const std::array<uint64_t, 3> places = {0, words / 2, words - 1};
    std::array<uint32_t, places.size()> found = {};
    CudaStream& home = HomeOf(block);
    absl::Status status;
    for (size_t i = 0; i < places.size(); ++i) {
      status.Update(home.Read(block.address + Bytes(4 * places[i]), std::as_writable_bytes(std::span(&found[i], 1))));
    }
    status.Update(home.Wait());
    for (size_t i = 0; i < places.size() && status.ok(); ++i) {
      if (found[i] != WordOf(block.allocation)) status = LostPattern(block, 4 * places[i]);
    }
    return status;
  }

  absl::StatusOr<Stream> UseElsewhere(const LiveBlock& block) override {
    CudaStream& side = *side_[block.allocation % side_.size()];
    const absl::StatusOr<FenceId> fence = upstream_->RecordFence(block.stream);
    if (!fence.ok()) return fence.status();
    absl::Status status = upstream_->MakeStreamWait(side.stream(), *fence);
    upstream_->DropFence(*fence);
    status.Update(side.Fill(block.address, ~WordOf(block.allocation), WordsOf(block.size)));
    if (!status.ok()) return status;
    return side.stream();
  }

 private:
  [[nodiscard]] CudaStream& HomeOf(const LiveBlock& block) const {
    return *streams_[trace_.allocations[block.allocation].stream];
  }

  const AllocationTrace& trace_;
  const Streams streams_, side_;
  const std::unique_ptr<CudaUpstream> upstream_;
  MeasuredUpstream measured_;
};

absl::StatusOr<Streams> CreateStreams(uint32_t count) {
  Streams streams;
  for (uint32_t i = 0; i < count; ++i) {
    absl::StatusOr<std::unique_ptr<CudaStream>> stream = CudaStream::Create(kDevice);
    if (!stream.ok()) return stream.status();
    streams.push_back(*std::move(stream));
  }
  return streams;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReplayDevice>> MakeCudaDevice(const AllocationTrace& trace) {
  if (trace.streams > kMostStreams) {
    return absl::InvalidArgumentError(fmt::format("{}: it has {} streams; on cuda replay makes {} at most", trace.path,
                                                  trace.streams, kMostStreams));
  }
  absl::StatusOr<std::unique_ptr<CudaUpstream>> upstream = CudaUpstream::Open(kDevice);
  if (!upstream.ok()) return upstream.status();
  const Bytes total = (*upstream)->memory_info().total;
  if (trace.peak_requested > total) return DoesNotFit(trace, "the device", total);
  absl::StatusOr<Streams> streams = CreateStreams(trace.streams);
  if (!streams.ok()) return streams.status();
  absl::StatusOr<Streams> side = CreateStreams(kSideStreams);
  if (!side.ok()) return side.status();
  return std::make_unique<CudaDevice>(trace, *std::move(streams), *std::move(side), *std::move(upstream));
}

}  // namespace gpuledger::replay
