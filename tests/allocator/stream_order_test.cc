// Whose memory when: streams, pending blocks, retired streams, private pools of graphs, per-thread default streams.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "gpuledger/allocator.h"
#include "small_fake.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;
using testing::kDevice;
using testing::S;
using testing::SmallFake;

class StreamOrderTest : public ::testing::Test {
 protected:
  ~StreamOrderTest() override { EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants(); }
  DevicePtr Allocate(Bytes size, Stream stream, PoolId pool = kSharedPool) {
    absl::StatusOr<DevicePtr> block = allocator.AllocateRaw(size, stream, kNoSite, pool);
    EXPECT_TRUE(block.ok()) << block.status();
    return block.ok() ? *block : DevicePtr::Null(kDevice);
  }
  FakeUpstream upstream{SmallFake(64_MiB)};
  CachingAllocator allocator{upstream, AllocatorOptions{}};
};

TEST_F(StreamOrderTest, ABlockThatAnotherStreamUsesIsPendingUntilThatStreamIsDone) {
  for (const Bytes size : {1_KiB, 3_MiB}) {
    const DevicePtr block = Allocate(size, S(1));
    ASSERT_TRUE(allocator.RecordStream(block, S(2)).ok());
    allocator.Free(block);
    EXPECT_EQ(allocator.totals().pending, size);
    EXPECT_EQ(allocator.totals().in_use, 0_B);
    const DevicePtr other = Allocate(size, S(1));
    EXPECT_NE(other, block);
    upstream.PassFences(S(2));
    EXPECT_EQ(allocator.CompletePending(), 1u);
    EXPECT_EQ(allocator.totals().pending, 0_B);
    allocator.Free(other);
  }
}

TEST_F(StreamOrderTest, ABlockFreedTwiceIsFoundWhileItIsPendingToo) {
  CachingAllocator warns(upstream, AllocatorOptions{.on_misuse = OnMisuse::kWarn});
  const DevicePtr block = *warns.AllocateRaw(1_KiB, S(1));
  ASSERT_TRUE(warns.RecordStream(block, S(2)).ok());
  warns.Free(block);
  ::testing::internal::CaptureStderr();
  warns.Free(block);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("gpuledger: warning: Free("));
  EXPECT_EQ(warns.totals().pending, 1_KiB);
}

TEST_F(StreamOrderTest, PendingBlocksOfAStreamAreAskedForOnceAndNotOneByOne) {
  std::vector<DevicePtr> blocks;
  for (int i = 0; i < 1000; ++i) {
    blocks.push_back(Allocate(1_KiB, S(1)));
    ASSERT_TRUE(allocator.RecordStream(blocks.back(), S(2)).ok());
  }
  for (const DevicePtr block : blocks) allocator.Free(block);
  const uint64_t asked = upstream.calls(UpstreamCall::kPollFence);
  EXPECT_EQ(allocator.CompletePending(), 0u);
  EXPECT_LE(upstream.calls(UpstreamCall::kPollFence) - asked, 2u);
  upstream.PassFences(S(2));
  EXPECT_EQ(allocator.CompletePending(), 1000u);
}

// ---- streams that go ---------------------------------------------------------------------------------------------------

TEST_F(StreamOrderTest, ARetiredStreamsBlocksAreFreedAsEver) {
  const DevicePtr small = Allocate(1_KiB, S(1)), large = Allocate(5_MiB, S(1));
  ASSERT_TRUE(allocator.RetireStream(S(1)).ok());
  allocator.Free(small);
  allocator.Free(large);
  EXPECT_EQ(allocator.totals().in_use, 0_B);
  EXPECT_EQ(allocator.ReleaseCached(), 8_MiB);
}

TEST_F(StreamOrderTest, ARecycledHandleIsAnotherStreamOnceTheFirstWasRetired) {
  const DevicePtr kept = Allocate(1_KiB, S(1));
  allocator.Free(Allocate(1_KiB, S(1)));
  const uint64_t fences = upstream.calls(UpstreamCall::kWaitFence);
  ASSERT_TRUE(allocator.RetireStream(S(1)).ok());
  EXPECT_EQ(upstream.calls(UpstreamCall::kWaitFence), fences + 1);  // its work was waited for
  const DevicePtr fresh = Allocate(1_KiB, S(1));
  EXPECT_EQ(allocator.Find(fresh)->stream, S(1));
  allocator.Free(fresh);
  allocator.Free(kept);
}

TEST_F(StreamOrderTest, AThousandStreamsThatComeAndGoUseTheAddressesOfOne) {
  for (uintptr_t i = 1; i <= 1000; ++i) {
    const DevicePtr small = Allocate(1_KiB, S(i)), large = Allocate(3_MiB, S(i));
    allocator.Free(small);
    allocator.Free(large);
    ASSERT_TRUE(allocator.RetireStream(S(i)).ok());
  }
  EXPECT_LE(upstream.live_ranges(), 2u);
  EXPECT_LE(allocator.totals().reserved, 8_MiB);
}

TEST_F(StreamOrderTest, ABlockUsedByARetiredStreamIsNotWaitedForLater) {
  const DevicePtr block = Allocate(1_KiB, S(1));
  ASSERT_TRUE(allocator.RecordStream(block, S(2)).ok());
  ASSERT_TRUE(allocator.RetireStream(S(2)).ok());
  const uint64_t fences = upstream.calls(UpstreamCall::kRecordFence);
  allocator.Free(block);
  allocator.CompletePending();
  EXPECT_EQ(allocator.totals().pending, 0_B);
  EXPECT_EQ(upstream.calls(UpstreamCall::kRecordFence), fences);  // none on a stream that is gone
}

TEST_F(StreamOrderTest, ARecycledHandleThatUsesABlockOfTheStreamBeforeItIsWaitedFor) {
  for (const Bytes size : {1_KiB, 3_MiB}) {
    const DevicePtr block = Allocate(size, S(1));
    ASSERT_TRUE(allocator.RetireStream(S(1)).ok());
    ASSERT_TRUE(allocator.RecordStream(block, S(1)).ok());  // another stream, by the same handle
    allocator.Free(block);
    EXPECT_EQ(allocator.totals().pending, size);
    upstream.PassFences(S(1));
    EXPECT_EQ(allocator.CompletePending(), 1u);
  }
}

TEST_F(StreamOrderTest, ABlockThatWaitsForNoStreamAnyMoreIsStillCounted) {
  const DevicePtr block = Allocate(1_KiB, S(1));
  ASSERT_TRUE(allocator.RecordStream(block, S(2)).ok());
  ASSERT_TRUE(allocator.RetireStream(S(2)).ok());
  allocator.Free(block);
  EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants();
}

// ---- private pools -----------------------------------------------------------------------------------------------------

TEST_F(StreamOrderTest, APrivatePoolServesItselfFromWhatWasFreedInIt) {
  const PoolId graph = allocator.CreatePool();
  const DevicePtr block = Allocate(3_MiB, S(1), graph);
  allocator.Free(block);
  EXPECT_NE(Allocate(3_MiB, S(1)), block);
  EXPECT_EQ(Allocate(3_MiB, S(1), graph), block);
  for (const LiveAllocation& live : allocator.ledger().live()) allocator.Free(live.address);
}

TEST_F(StreamOrderTest, PrivatePoolsOneAfterTheOtherUseTheSameAddresses) {
  uint64_t reserved = 0;
  for (int i = 0; i < 1000; ++i) {
    const PoolId graph = allocator.CreatePool();
    const DevicePtr small = Allocate(1_KiB, S(1), graph), large = Allocate(3_MiB, S(1), graph);
    allocator.Free(small);
    allocator.Free(large);
    ASSERT_TRUE(allocator.ReleasePool(graph).ok());
    allocator.ReleaseCached();
    if (i == 0) reserved = upstream.calls(UpstreamCall::kReserve);
  }
  EXPECT_EQ(upstream.calls(UpstreamCall::kReserve), reserved);
  EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants();
}

TEST_F(StreamOrderTest, PrivatePoolsThatLeaveMemoryBehindDoNotUseUpTheAddresses) {
  for (int i = 0; i < 1000; ++i) {
    const PoolId graph = allocator.CreatePool();
    allocator.Free(Allocate(3_MiB, S(1), graph));
    ASSERT_TRUE(allocator.ReleasePool(graph).ok());
  }
  EXPECT_LE(upstream.calls(UpstreamCall::kReserve), 200u);
  EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants();
}

TEST_F(StreamOrderTest, APrivatePoolTakesNoMemoryThatAnotherLeft) {
  const PoolId first = allocator.CreatePool(), second = allocator.CreatePool();
  const DevicePtr kept = Allocate(3_MiB, S(1), first);
  ASSERT_TRUE(allocator.ReleasePool(first).ok());
  const DevicePtr other = Allocate(3_MiB, S(1), second);
  allocator.Free(kept);
  const DevicePtr more = Allocate(3_MiB, S(1), second);
  EXPECT_NE(more, kept);
  EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants();
  allocator.Free(other);
  allocator.Free(more);
}

TEST_F(StreamOrderTest, NothingOfAPrivatePoolGoesElsewhereWhileItLives) {
  allocator.set_cap(8_MiB);
  const PoolId graph = allocator.CreatePool();
  allocator.Free(Allocate(6_MiB, S(1), graph));
  allocator.Free(Allocate(1_KiB, S(1), graph));
  EXPECT_EQ(allocator.ReleaseCached(), 0_B);
  const absl::Status refused = allocator.AllocateRaw(4_MiB, S(1)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("kept for captured graphs"));
  ASSERT_TRUE(allocator.ReleasePool(graph).ok());
  const uint64_t synchronised = upstream.calls(UpstreamCall::kSynchronize);
  allocator.Free(Allocate(4_MiB, S(1)));
  EXPECT_EQ(upstream.calls(UpstreamCall::kSynchronize), synchronised + 1);  // graphs may have run on any stream
}

TEST_F(StreamOrderTest, AReleasedPrivatePoolIsUnknown) {
  const PoolId graph = allocator.CreatePool();
  ASSERT_TRUE(allocator.ReleasePool(graph).ok());
  EXPECT_TRUE(absl::IsNotFound(allocator.ReleasePool(graph)));
  EXPECT_TRUE(absl::IsNotFound(allocator.AllocateRaw(1_KiB, S(1), kNoSite, graph).status()));
  EXPECT_NE(allocator.CreatePool(), graph);
}

TEST_F(StreamOrderTest, BlocksOutliveTheReleaseOfTheirPrivatePool) {
  const PoolId graph = allocator.CreatePool();
  const DevicePtr small = Allocate(1_KiB, S(1), graph), large = Allocate(3_MiB, S(1), graph);
  ASSERT_TRUE(allocator.ReleasePool(graph).ok());
  allocator.Free(small);
  allocator.Free(large);
  ASSERT_TRUE(allocator.Settle().ok());
  EXPECT_EQ(allocator.ReleaseCached(), 6_MiB);
}

TEST_F(StreamOrderTest, ABlockThatOutlivesItsPrivatePoolIsWaitedForWhenItIsFreed) {
  const PoolId graph = allocator.CreatePool();
  const DevicePtr small = Allocate(1_KiB, S(1), graph), large = Allocate(3_MiB, S(1), graph);
  ASSERT_TRUE(allocator.ReleasePool(graph).ok());
  allocator.ReleaseCached();  // synchronises; after that S(1) may be given more work on the blocks
  allocator.Free(small);
  allocator.Free(large);
  EXPECT_EQ(allocator.totals().pending, 3_MiB + 1_KiB);
  upstream.PassFences(S(1));
  EXPECT_EQ(allocator.CompletePending(), 2u);
}

TEST_F(StreamOrderTest, ABlockThatOutlivesItsPrivatePoolAndItsStreamIsFreedAsEver) {
  const PoolId graph = allocator.CreatePool();
  const DevicePtr before = Allocate(1_KiB, S(1), graph);
  ASSERT_TRUE(allocator.RetireStream(S(1)).ok());
  ASSERT_TRUE(allocator.ReleasePool(graph).ok());
  const PoolId second = allocator.CreatePool();
  const DevicePtr after = Allocate(1_KiB, S(2), second);
  ASSERT_TRUE(allocator.ReleasePool(second).ok());
  ASSERT_TRUE(allocator.RetireStream(S(2)).ok());
  const uint64_t fences = upstream.calls(UpstreamCall::kRecordFence);
  allocator.Free(before);
  allocator.Free(after);
  allocator.CompletePending();
  EXPECT_EQ(allocator.totals().pending, 0_B);
  EXPECT_EQ(upstream.calls(UpstreamCall::kRecordFence), fences);  // none on a stream that is gone
}

TEST_F(StreamOrderTest, AStreamThatMayHaveVanishedIsNotAskedForItsWorkLater) {
  CachingAllocator vanishing(upstream, AllocatorOptions{.streams_may_vanish = true});
  const PoolId graph = vanishing.CreatePool();
  const DevicePtr outlives = *vanishing.AllocateRaw(1_KiB, S(1), kNoSite, graph), used = *vanishing.AllocateRaw(1_KiB, S(2));
  ASSERT_TRUE(vanishing.ReleasePool(graph).ok());
  ASSERT_TRUE(vanishing.RecordStream(used, S(3)).ok());
  upstream.FailNext(UpstreamCall::kRecordFence, absl::FailedPreconditionError("S(3) is being captured"));
  vanishing.Free(used);  // names S(3), as RecordStream did
  const uint64_t fences = upstream.calls(UpstreamCall::kRecordFence);
  vanishing.Free(outlives);
  EXPECT_EQ(vanishing.CompletePending(), 0u);
  EXPECT_EQ(vanishing.totals().pending, 2_KiB);
  ASSERT_TRUE(vanishing.Settle().ok());
  EXPECT_EQ(upstream.calls(UpstreamCall::kRecordFence), fences);
  EXPECT_EQ(vanishing.totals().pending, 0_B);
}

TEST(WholeRangesTest, NothingOfAPrivatePoolIsGivenBackWhileItLives) {
  FakeOptions options;
  options.total = 64_MiB;
  options.mapping = false;
  FakeUpstream upstream(options);
  CachingAllocator allocator(upstream, AllocatorOptions{});
  const PoolId graph = allocator.CreatePool();
  allocator.Free(*allocator.AllocateRaw(6_MiB, S(1), kNoSite, graph));
  EXPECT_EQ(allocator.ReleaseCached(), 0_B);
  EXPECT_TRUE(absl::IsResourceExhausted(allocator.AllocateRaw(60_MiB, S(1)).status()));
  EXPECT_EQ(upstream.live_ranges(), 1u);
  ASSERT_TRUE(allocator.ReleasePool(graph).ok());
  EXPECT_EQ(allocator.ReleaseCached(), 32_MiB);
}

TEST_F(StreamOrderTest, APrivatePoolGrowsWithNewMemoryAlone) {
  allocator.Free(Allocate(6_MiB, S(1)));
  const PoolId graph = allocator.CreatePool();
  const uint64_t created = upstream.calls(UpstreamCall::kCreate), waits = upstream.calls(UpstreamCall::kStreamWait);
  const DevicePtr block = Allocate(4_MiB, S(1), graph);
  EXPECT_GT(upstream.calls(UpstreamCall::kCreate), created);
  EXPECT_EQ(upstream.calls(UpstreamCall::kStreamWait), waits);
  allocator.Free(block);
}

// ---- per-thread default streams ----------------------------------------------------------------------------------------

TEST_F(StreamOrderTest, TheLegacyStreamHasTwoNames) {
  const DevicePtr block = Allocate(1_KiB, Stream::Default(kDevice));
  allocator.Free(block);
  EXPECT_EQ(Allocate(1_KiB, Stream(kDevice, reinterpret_cast<CUstream_st*>(uintptr_t{1}))), block);
  allocator.Free(block);
}

TEST_F(StreamOrderTest, EachThreadsPerThreadStreamIsAStreamOfItsOwn) {
  const Stream per_thread = Stream::PerThread(kDevice);
  const DevicePtr mine = Allocate(1_KiB, per_thread);
  allocator.Free(mine);
  DevicePtr theirs = DevicePtr::Null(kDevice);
  std::thread([&] { theirs = Allocate(1_KiB, per_thread); }).join();
  EXPECT_NE(theirs, mine);
  EXPECT_EQ(Allocate(1_KiB, per_thread), mine);
  allocator.Free(mine);
  allocator.Free(theirs);
}

TEST_F(StreamOrderTest, AUseOnAnotherThreadsPerThreadStreamWaitsForThatThreadOrForTheDevice) {
  const Stream per_thread = Stream::PerThread(kDevice);
  const DevicePtr block = Allocate(1_KiB, per_thread);
  std::thread([&] { ASSERT_TRUE(allocator.RecordStream(block, per_thread).ok()); }).join();
  allocator.Free(block);
  upstream.PassAllFences();
  EXPECT_EQ(allocator.CompletePending(), 0u);  // no fence on this thread's stream could tell
  EXPECT_EQ(allocator.totals().pending, 1_KiB);
  ASSERT_TRUE(allocator.Settle().ok());
  EXPECT_EQ(upstream.calls(UpstreamCall::kSynchronize), 1u);
  EXPECT_EQ(allocator.totals().pending, 0_B);
}

TEST_F(StreamOrderTest, TheMemoryOfADeadThreadsStreamIsHadAfterTheDeviceWasSynchronised) {
  allocator.set_cap(4_MiB);
  std::thread([&] { allocator.Free(Allocate(4_MiB, Stream::PerThread(kDevice))); }).join();
  const DevicePtr block = Allocate(3_MiB, S(1));
  EXPECT_EQ(upstream.calls(UpstreamCall::kSynchronize), 1u);
  allocator.Free(block);
}

TEST_F(StreamOrderTest, TheMemoryThatALivingThreadsStreamHasCachedIsHadAfterTheDeviceWasSynchronised) {
  allocator.set_cap(4_MiB);
  allocator.Free(Allocate(4_MiB, Stream::PerThread(kDevice)));
  std::thread([&] {
    const DevicePtr block = Allocate(3_MiB, S(1));
    EXPECT_EQ(upstream.calls(UpstreamCall::kSynchronize), 1u);
    allocator.Free(block);
  }).join();
}

}  // namespace
}  // namespace gpuledger
