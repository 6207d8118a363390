// The model test over the fake upstream, with its faults and its held fences.
#include "allocator_episode.h"

namespace gpuledger::model {
namespace {

void ReplayOnFake(const std::vector<Operation>& operations, bool mapping) {
  FakeOptions options;
  options.total = kMemory;
  options.hold_fences = true;
  options.mapping = mapping;
  FakeUpstream fake(options);
  Replay(operations, World{.upstream = fake, .fake = &fake});
}

TEST(AllocatorModel, AgreesWithANaiveMapAfterEveryOperation) {
  RunModel(1'000'000, [](const std::vector<Operation>& operations) { ReplayOnFake(operations, true); });
}

TEST(AllocatorModel, AgreesWithANaiveMapWhereRangesComeWithTheirMemory) {
  RunModel(300'000, [](const std::vector<Operation>& operations) { ReplayOnFake(operations, false); });
}

TEST(AllocatorModel, PrintsASequenceThatCompilesAsARegression) {
  EXPECT_EQ(AsRegression({Allocate{512, 0, 1}, UseOn{0, 2}, Free{0}, Pass{2}, Complete{}}),
            "Replay({Allocate{512, 0, 1}, UseOn{0, 2}, Free{0}, Pass{2}, Complete{}, });");
  ReplayOnFake({Allocate{512, 0, 1}, UseOn{0, 2}, Free{0}, Pass{2}, Complete{}, }, true);
}

}  // namespace
}  // namespace gpuledger::model
