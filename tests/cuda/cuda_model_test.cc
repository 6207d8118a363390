// The model test over the CUDA upstream: the same random operations and naive map as over the fake upstream.
#include "allocator_episode.h"
#include "gpuledger/forwarding_upstream.h"
#include "machine.h"

namespace gpuledger::model {
namespace {

// The streams of the model (handles 0, 16 and 32) as streams of the device.
class TranslatedStreams final : public ForwardingUpstream {
 public:
  using ForwardingUpstream::ForwardingUpstream;
  absl::StatusOr<FenceId> RecordFence(Stream stream) override { return inner.RecordFence(Translated(stream)); }
  absl::Status MakeStreamWait(Stream stream, FenceId fence) override {
    return inner.MakeStreamWait(Translated(stream), fence);
  }
  bool Capturing(Stream stream) const override { return inner.Capturing(Translated(stream)); }

 private:
  Stream Translated(Stream stream) const {
    const auto which = reinterpret_cast<uintptr_t>(stream.raw()) / 16;
    return which == 0 ? stream : (which == 1 ? first_ : second_).stream();
  }
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
