// The model test over the fake upstream, with its faults and its held fences.
#include "allocator_episode.h"

namespace gpuledger::model {
namespace {

// What a fake can be: one that maps and aliases, as a GPU does, unless said otherwise.
struct Kind {
  bool mapping = true;
  bool aliasing = true;
  Bytes granularity = kHandle;
};

void ReplayOnFake(const std::vector<Operation>& operations, Kind kind = {}) {
  FakeOptions options;
  options.total = kMemory;
  options.hold_fences = true;
  options.mapping = kind.mapping;
  options.aliasing = kind.aliasing;
  options.granularity = kind.granularity;
  FakeUpstream fake(options);
  Replay(operations, World{.upstream = fake, .fake = &fake});
}

TEST(AllocatorModel, AgreesWithANaiveMapAfterEveryOperation) {
  RunModel(600'000, [](const std::vector<Operation>& operations) { ReplayOnFake(operations); });
}

// Small units make handles of many sizes, which must be fitted into each other's places.
TEST(AllocatorModel, AgreesWithANaiveMapWhereHandlesHaveManySizes) {
  RunModel(300'000, [](const std::vector<Operation>& operations) { ReplayOnFake(operations, {.granularity = 16_KiB}); });
}

TEST(AllocatorModel, AgreesWithANaiveMapWhereNothingCanBeMappedTwice) {
  RunModel(300'000, [](const std::vector<Operation>& operations) { ReplayOnFake(operations, {.aliasing = false}); });
}

TEST(AllocatorModel, AgreesWithANaiveMapWhereRangesComeWithTheirMemory) {
  RunModel(300'000, [](const std::vector<Operation>& operations) { ReplayOnFake(operations, {.mapping = false}); });
}

TEST(AllocatorModel, PrintsASequenceThatCompilesAsARegression) {
  EXPECT_EQ(AsRegression({Allocate{512, 0, 1}, UseOn{0, 2}, Free{0}, Pass{2}, Complete{}}),
            "Replay({Allocate{512, 0, 1}, UseOn{0, 2}, Free{0}, Pass{2}, Complete{}, });");
  ReplayOnFake({Allocate{512, 0, 1}, UseOn{0, 2}, Free{0}, Pass{2}, Complete{}, });
}

}  // namespace
}  // namespace gpuledger::model
