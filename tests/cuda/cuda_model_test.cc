// The model test over the CUDA upstream: the same random operations and naive map as over the fake upstream.
#include "allocator_episode.h"
#include "machine.h"

namespace gpuledger::model {
namespace {

// The streams of the model (handles 0, 16 and 32) as streams of the device.
class TranslatedStreams final : public Upstream {
 public:
  explicit TranslatedStreams(CudaUpstream& upstream) : upstream_(upstream) {}
  std::string_view name() const override { return upstream_.name(); }
  DeviceId device() const override { return upstream_.device(); }
  Capabilities capabilities() const override { return upstream_.capabilities(); }
  Bytes granularity() const override { return upstream_.granularity(); }
  MemoryInfo memory_info() const override { return upstream_.memory_info(); }
  TimePoint now() const override { return upstream_.now(); }
  absl::StatusOr<Range> Reserve(Bytes size) override { return upstream_.Reserve(size); }
  absl::Status Unreserve(Range range) override { return upstream_.Unreserve(range); }
  absl::StatusOr<HandleId> CreateHandle(Bytes size) override { return upstream_.CreateHandle(size); }
  absl::Status ReleaseHandle(HandleId handle) override { return upstream_.ReleaseHandle(handle); }
  absl::Status Map(DevicePtr address, HandleId handle) override { return upstream_.Map(address, handle); }
  absl::Status Unmap(DevicePtr address, HandleId handle) override { return upstream_.Unmap(address, handle); }
  absl::StatusOr<FenceId> RecordFence(Stream stream) override { return upstream_.RecordFence(Translated(stream)); }
  absl::StatusOr<bool> PollFence(FenceId fence) override { return upstream_.PollFence(fence); }
  absl::Status WaitFence(FenceId fence) override { return upstream_.WaitFence(fence); }
  absl::Status MakeStreamWait(Stream stream, FenceId fence) override {
    return upstream_.MakeStreamWait(Translated(stream), fence);
  }
  void DropFence(FenceId fence) override { upstream_.DropFence(fence); }
  std::vector<FenceId> PassedFences(std::span<const FenceId> fences) override { return upstream_.PassedFences(fences); }

 private:
  Stream Translated(Stream stream) const {
    const auto which = reinterpret_cast<uintptr_t>(stream.raw()) / 16;
    return which == 0 ? stream : (which == 1 ? first_ : second_).stream();
  }
  CudaUpstream& upstream_;
  const testing::OwnStream first_, second_;
};

class CudaModel : public testing::CudaTest {
 protected:
  void Run(uint64_t operations, const CudaOptions& options) {
    const std::unique_ptr<CudaUpstream> cuda = testing::OpenCuda(0, options);
    ASSERT_NE(cuda, nullptr);
    TranslatedStreams streams(*cuda);
    const Bytes free = cuda->memory_info().free;
    const bool fake = machine().fake();
    if (fake) machine().HoldEvents(true);
    // The fake has no passing of one stream's events alone: some of the oldest pass instead.
    const auto pass = [&](Stream) {
      if (fake) machine().ReleaseEvents(3);
    };
    RunModel(operations, [&](const std::vector<Operation>& episode) {
      Replay(episode, World{.upstream = streams, .pass = pass, .cap = kMemory, .fences_wait = fake});
    });
    if (fake) {
      EXPECT_EQ(cuda->memory_info().free, free);
    }
  }
};

TEST_F(CudaModel, AgreesWithANaiveMapAfterEveryOperation) { Run(60'000, {}); }
TEST_F(CudaModel, AgreesWithANaiveMapWhereTheDeviceCannotMap) { Run(40'000, {.mapping = false}); }

}  // namespace
}  // namespace gpuledger::model
