// Placement: the gate, donors that move by alias, what private pools keep, and what is left after a failure.
#include "placement.h"

#include <gtest/gtest.h>

#include "gpuledger/allocator.h"
#include "small_fake.h"

namespace gpuledger {
namespace {

using testing::kDevice;
using testing::S;
using testing::SmallFake;

constexpr PoolId kPrivate{1};

class PlacementTest : public ::testing::Test {
 protected:
  ~PlacementTest() override { EXPECT_TRUE(placement.Check().ok()) << placement.Check(); }

  absl::StatusOr<Block*> Grow(Pool& pool, Bytes size, Bytes cap = Bytes::Max()) {
    return placement.Grow(pool, SizeClass::For(size), live, Bytes(), cap);
  }
  // Grown and put back: cached handles.
  void Leave(Pool& pool, Bytes size) {
    Put(*Grow(pool, size));
  }
  void Put(Block* block) {
    MutexLock lock(block->pool->mutex);
    block->pool->Put(block, upstream.now().value());
  }

  FakeUpstream upstream{SmallFake(1_GiB)};
  Ledger ledger{kDevice, upstream, nullptr};
  AddressMap blocks;
  Placement placement{upstream, ledger, blocks};
  StreamUse first{StreamKey::Of(S(1)), kSharedPool}, second{StreamKey::Of(S(2)), kSharedPool};
  Pool& one = **placement.MakePool(first, PoolKind::kLarge);
  Pool& two = **placement.MakePool(second, PoolKind::kLarge);
  Bytes live;  // of what is not told to the ledger here
};

TEST_F(PlacementTest, MapsADonorAtItsNewAddressBeforeTheOldOneGoes) {
  Leave(one, 16_MiB);
  ASSERT_TRUE(Grow(two, 16_MiB).ok());  // 1.5 % more is one handle: seven move
  EXPECT_EQ(placement.reserved(), 18_MiB);
  EXPECT_EQ(upstream.bytes_created(), 18_MiB);
  EXPECT_EQ(upstream.bytes_mapped(), 18_MiB + 14_MiB);
  EXPECT_EQ(upstream.calls(UpstreamCall::kStreamWait), 1u);
  EXPECT_EQ(upstream.calls(UpstreamCall::kWaitFence), 0u);
  placement.Collect();
  EXPECT_EQ(upstream.calls(UpstreamCall::kUnmap), 0u);  // the donor's stream has not got that far
  upstream.PassFences(S(1));
  placement.Collect();
  EXPECT_EQ(upstream.bytes_mapped(), 18_MiB);
  EXPECT_EQ(upstream.live_fences(), 0u);
}

TEST_F(PlacementTest, MakesNoStreamWaitForItself) {
  Pool& small = **placement.MakePool(first, PoolKind::kSmall);
  Leave(one, 16_MiB);
  for (int i = 0; i < 32; ++i) ASSERT_TRUE(Grow(small, 256_KiB).ok());
  EXPECT_EQ(placement.reserved(), 18_MiB);
  EXPECT_EQ(upstream.calls(UpstreamCall::kStreamWait), 0u);
}

TEST_F(PlacementTest, NeverUsesAddressesWhoseMappingStillWaits) {
  Leave(one, 16_MiB);
  Block* moved = *Grow(two, 16_MiB);
  Put(moved);
  live = 32_MiB;
  const Block* block = *Grow(one, 16_MiB);  // new handles, beside what is dead
  EXPECT_GE(block->offset, 16_MiB);
}

TEST_F(PlacementTest, TakesNoDonorFromAPrivatePool) {
  first.id = kPrivate;
  Leave(one, 16_MiB);
  ASSERT_TRUE(Grow(two, 16_MiB).ok());
  EXPECT_EQ(upstream.bytes_created(), 32_MiB);
  EXPECT_EQ(Grow(two, 16_MiB, 32_MiB).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(PlacementTest, MovesNothingIntoAPrivatePoolButBuysForItWhatOthersGiveBack) {
  second.id = kPrivate;
  Leave(one, 16_MiB);
  ASSERT_TRUE(Grow(two, 16_MiB, 16_MiB).ok());
  EXPECT_EQ(upstream.calls(UpstreamCall::kRelease), 8u);
  EXPECT_EQ(placement.peak_reserved(), 16_MiB);
}

TEST_F(PlacementTest, WaitsItselfWhereAStreamCannotBeMadeToWait) {
  Leave(one, 16_MiB);
  upstream.FailNext(UpstreamCall::kStreamWait, absl::InternalError("CUDA_ERROR_STREAM_CAPTURE_ISOLATION"));
  ASSERT_TRUE(Grow(two, 16_MiB).ok());
  EXPECT_EQ(upstream.calls(UpstreamCall::kWaitFence), 1u);
  EXPECT_EQ(placement.reserved(), 18_MiB);
}

TEST_F(PlacementTest, BuysWhereNeitherStreamNorThreadCanWait) {
  Leave(one, 16_MiB);
  upstream.FailNext(UpstreamCall::kStreamWait, absl::InternalError("no"));
  upstream.FailNext(UpstreamCall::kWaitFence, absl::InternalError("no"));
  ASSERT_TRUE(Grow(two, 16_MiB).ok());
  EXPECT_EQ(placement.reserved(), 32_MiB);
}

TEST_F(PlacementTest, KeepsWhatWasMappedAndGivesTheRestBackWhenAMapFails) {
  Leave(one, 16_MiB);
  upstream.FailNext(UpstreamCall::kMap, absl::InternalError("no"), 3);
  EXPECT_EQ(Grow(two, 16_MiB).status().code(), absl::StatusCode::kInternal);
  EXPECT_LE(placement.reserved(), 18_MiB);
  EXPECT_EQ(upstream.bytes_created(), placement.reserved());
  ASSERT_TRUE(Grow(two, 16_MiB).ok());
  EXPECT_EQ(placement.reserved(), 18_MiB);
}

TEST_F(PlacementTest, BuysLessWhenTheUpstreamHasLessThanItSays) {
  Leave(one, 8_MiB);
  live = 40_MiB;  // the gate is far away
  upstream.FailNext(UpstreamCall::kCreate, absl::ResourceExhaustedError("others hold it"), 3);
  upstream.FailNext(UpstreamCall::kCreate, absl::ResourceExhaustedError("others hold it"), 6);
  ASSERT_TRUE(Grow(two, 8_MiB).ok());
  EXPECT_EQ(placement.reserved(), 12_MiB);  // two new, two moved
}

TEST_F(PlacementTest, GivesBackOnlyWhatHasBeenFreeForLong) {
  Leave(one, 8_MiB);
  upstream.Advance(1'000'000'000);
  second.id = kPrivate;
  Leave(two, 8_MiB);
  placement.Trim(Bytes(), upstream.now().value() - 500'000'000);
  EXPECT_EQ(placement.reserved(), 8_MiB);
  MutexLock lock(two.mutex);
  EXPECT_EQ(two.spare(), 8_MiB);
}

TEST_F(PlacementTest, OpensTheGateWhereMemoryWouldMoveAllTheTimeAndClosesItAgain) {
  const auto by_turns = [&] {
    Leave(one, 120_MiB);
    Leave(two, 60_MiB);
    upstream.PassAllFences();
  };
  for (int round = 0; round < 2000; ++round) by_turns();
  const uint64_t maps = upstream.calls(UpstreamCall::kMap);
  for (int round = 0; round < 100; ++round) by_turns();
  EXPECT_EQ(upstream.calls(UpstreamCall::kMap), maps);  // each has its own by now
  const Bytes reserved = placement.reserved();
  EXPECT_LE(reserved, 180_MiB);
  // Long after: a quiet pool gives what it does not need to another as ever.
  for (int round = 0; round < 100; ++round) {
    upstream.Advance(1'000'000'000);
    Put(*Grow(one, 1_KiB));
  }
  Put(*Grow(**placement.MakePool(first, PoolKind::kSmall), 1_KiB));
  EXPECT_EQ(placement.reserved(), reserved);
}

TEST_F(PlacementTest, GrowsAtTheHoleThatNeedsTheFewestBytes) {
  Block* a = *Grow(one, 2_MiB);
  Block* between = *Grow(one, 2_MiB);
  Block* c = *Grow(one, 3_MiB);
  Block* end = *Grow(one, 1_MiB);
  Put(c);
  placement.Trim(2_MiB * 3u);  // c's first handle goes; its second is shared with the end
  const Bytes before = placement.reserved();
  live = 60_MiB;
  Block* again = *Grow(one, 3_MiB);
  EXPECT_EQ(again->offset, 4_MiB);
  EXPECT_EQ(placement.reserved(), before + 2_MiB);
  for (Block* b : {a, between, again, end}) Put(b);
}

// ---- plans -------------------------------------------------------------------------------------------------------------

FreeHandle Donor(uint64_t id, Bytes size) { return {nullptr, Bytes(), Handle{HandleId(id), size}, 0}; }
Gap Closed(Bytes offset, Bytes size) { return {{offset, size}, {offset, size}}; }

TEST(PlanTest, MakesPowersOfTwoUpToTheLargest) {
  const std::optional<Plan> plan = FillGaps({Closed(2_MiB, 22_MiB)}, {}, {64_MiB, 64_MiB}, {2_MiB, 8_MiB});
  std::vector<Bytes> sizes;
  for (const Piece& piece : plan->pieces) sizes.push_back(piece.size);
  EXPECT_EQ(sizes, (std::vector<Bytes>{8_MiB, 8_MiB, 4_MiB, 2_MiB}));
  EXPECT_EQ(plan->pieces[3].offset, 22_MiB);
}

TEST(PlanTest, LeavesSurplusDonorsWhereTheyAre) {
  // Eight are missing and the gate lets two through: the donor of four covers what that of two was taken for.
  const std::optional<Plan> plan = FillGaps({Closed(0_B, 8_MiB)}, {Donor(1, 2_MiB), Donor(2, 2_MiB), Donor(3, 4_MiB)}, {2_MiB, 64_MiB}, {2_MiB, 2_MiB});
  EXPECT_EQ(plan->created, 2_MiB);
  EXPECT_EQ(plan->pieces.size(), 3u);
}

TEST(PlanTest, LetsALargeDonorReachIntoTheRoomBeside) {
  const Gap above{{4_MiB, 2_MiB}, {4_MiB, 20_MiB}}, below{{30_MiB, 2_MiB}, {24_MiB, 8_MiB}};
  const std::optional<Plan> plan = FillGaps({above, below}, {Donor(1, 8_MiB), Donor(2, 8_MiB)}, {0_B, 0_B}, {2_MiB, 2_MiB});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->pieces[0].offset, 4_MiB);
  EXPECT_EQ(plan->pieces[1].offset, 24_MiB);
}

TEST(PlanTest, HasNoneWhereNoDonorFits) {
  EXPECT_FALSE(FillGaps({Closed(0_B, 2_MiB)}, {Donor(1, 8_MiB)}, {0_B, 0_B}, {2_MiB, 2_MiB}));
}

// ---- the policy as a whole ---------------------------------------------------------------------------------------------

TEST(PolicyTest, ServesPhasesOfOtherSizesAndStreamsOutOfTheSameMemory) {
  FakeUpstream upstream;
  CachingAllocator allocator(upstream, AllocatorOptions{});
  Bytes requested;
  for (const uint64_t size : {1u, 3u, 7u, 2u, 5u, 11u, 4u}) {
    std::vector<Buffer> live;
    Bytes sum;
    for (uint64_t n = 0; sum < 200_MiB; ++n, sum += 1_MiB * size) live.push_back(*allocator.Allocate(1_MiB * size, S(size % 2)));
    requested = std::max(requested, sum);
  }
  // The gate, in whole handles.
  EXPECT_LE(allocator.totals().peak_reserved.count(), (requested + requested / 1000u * 15u + 2_MiB).count());
}

}  // namespace
}  // namespace gpuledger
