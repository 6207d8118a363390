// What FakeUpstream offers beyond the contract: its clock, injected faults, held fences, and what it counts.
#include "gpuledger/fake_upstream.h"

#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gpuledger {
namespace {

const Bytes kUnit = 2_MiB;

CUstream_st* Raw(uintptr_t number) { return reinterpret_cast<CUstream_st*>(number); }

class FakeUpstreamTest : public ::testing::Test {
 protected:
  uint64_t Took(const std::function<void()>& work) {
    const uint64_t before = fake_.now().value();
    work();
    return fake_.now().value() - before;
  }
  FenceId Record(Stream stream) { return fake_.RecordFence(stream).value(); }
  bool Passed(FenceId fence) { return fake_.PollFence(fence).value(); }

  const Stream one_{DeviceId(0), Raw(1)};
  const Stream two_{DeviceId(0), Raw(2)};
  const Stream three_{DeviceId(0), Raw(3)};
  FakeCosts costs_;
  FakeUpstream fake_;
};

TEST_F(FakeUpstreamTest, TimePassesByTheCostOfEachCallAndByAdvanceAlone) {
  Range range{DevicePtr::Null(DeviceId(0)), 0_B};
  HandleId handle(0);
  FenceId fence(0);
  EXPECT_EQ(fake_.now(), TimePoint(0));
  EXPECT_EQ(Took([&] { range = fake_.Reserve(kUnit).value(); }), costs_.reserve);
  EXPECT_EQ(Took([&] { handle = fake_.CreateHandle(kUnit).value(); }), costs_.create);
  EXPECT_EQ(Took([&] { (void)fake_.Map(range.base, handle); }), costs_.map);
  EXPECT_EQ(Took([&] { fence = Record(one_); }), costs_.record_fence);
  EXPECT_EQ(Took([&] { (void)fake_.PollFence(fence); }), costs_.poll_fence);
  EXPECT_EQ(Took([&] { (void)fake_.WaitFence(fence); }), costs_.wait_fence);
  EXPECT_EQ(Took([&] { (void)fake_.MakeStreamWait(two_, fence); }), costs_.stream_wait);
  EXPECT_EQ(Took([&] { fake_.DropFence(fence); }), 0u);
  EXPECT_EQ(Took([&] { (void)fake_.Unmap(range.base, handle); }), costs_.unmap);
  EXPECT_EQ(Took([&] { (void)fake_.ReleaseHandle(handle); }), costs_.release);
  EXPECT_EQ(Took([&] { (void)fake_.Unreserve(range); }), costs_.unreserve);
  EXPECT_EQ(Took([&] { (void)fake_.memory_info(); }), 0u);
  const uint64_t driver = fake_.driver_nanoseconds();
  EXPECT_EQ(driver, fake_.now().value());
  EXPECT_EQ(Took([&] { fake_.Advance(1'000'000); }), 1'000'000u);
  EXPECT_EQ(fake_.driver_nanoseconds(), driver);
}

TEST_F(FakeUpstreamTest, CostsCanBeChosen) {
  FakeUpstream slow(FakeOptions{.costs = {.create = 5'000'000}});
  ASSERT_TRUE(slow.CreateHandle(kUnit).ok());
  EXPECT_EQ(slow.now(), TimePoint(5'000'000));
}

TEST_F(FakeUpstreamTest, EveryCallIsCountedAlsoOneThatFails) {
  ASSERT_TRUE(fake_.CreateHandle(kUnit).ok());
  EXPECT_FALSE(fake_.CreateHandle(1_B).ok());
  EXPECT_FALSE(fake_.ReleaseHandle(HandleId(99)).ok());
  EXPECT_EQ(fake_.calls(UpstreamCall::kCreate), 2u);
  EXPECT_EQ(fake_.calls(UpstreamCall::kRelease), 1u);
  EXPECT_EQ(fake_.calls(UpstreamCall::kMap), 0u);
  EXPECT_EQ(fake_.driver_nanoseconds(), 2 * costs_.create + costs_.release);
}

TEST_F(FakeUpstreamTest, AFaultFailsTheNthCallOfItsKindOnce) {
  fake_.FailNext(UpstreamCall::kCreate, absl::InternalError("injected"), 3);
  fake_.FailNext(UpstreamCall::kCreate, absl::ResourceExhaustedError("at once"));
  EXPECT_EQ(fake_.CreateHandle(kUnit).status(), absl::ResourceExhaustedError("at once"));
  EXPECT_TRUE(fake_.Reserve(kUnit).ok());
  EXPECT_TRUE(fake_.CreateHandle(kUnit).ok());
  EXPECT_EQ(fake_.CreateHandle(kUnit).status(), absl::InternalError("injected"));
  EXPECT_TRUE(fake_.CreateHandle(kUnit).ok());
  EXPECT_EQ(fake_.live_handles(), 2u);
}

TEST_F(FakeUpstreamTest, AFaultInAnyCallChangesNothing) {
  const absl::Status fault = absl::InternalError("injected");
  for (int call = 0; call < kUpstreamCallCount; ++call) fake_.FailNext(static_cast<UpstreamCall>(call), fault, 2);
  const Range range = fake_.Reserve(kUnit).value();
  const HandleId handle = fake_.CreateHandle(kUnit).value();
  const FenceId fence = Record(one_);
  ASSERT_TRUE(Passed(fence) && fake_.WaitFence(fence).ok() && fake_.MakeStreamWait(two_, fence).ok());
  ASSERT_TRUE(fake_.Map(range.base, handle).ok() && fake_.Unmap(range.base, handle).ok());
  EXPECT_FALSE(fake_.ReleaseHandle(HandleId(99)).ok());  // the first of its kind
  EXPECT_FALSE(fake_.Unreserve({range.base, kUnit * 2u}).ok());

  EXPECT_EQ(fake_.Reserve(kUnit).status(), fault);
  EXPECT_EQ(fake_.CreateHandle(kUnit).status(), fault);
  EXPECT_EQ(fake_.Map(range.base, handle), fault);
  EXPECT_EQ(fake_.live_mappings(), 0u);
  ASSERT_TRUE(fake_.Map(range.base, handle).ok());
  EXPECT_EQ(fake_.Unmap(range.base, handle), fault);
  EXPECT_EQ(fake_.live_mappings(), 1u);
  ASSERT_TRUE(fake_.Unmap(range.base, handle).ok());
  EXPECT_EQ(fake_.ReleaseHandle(handle), fault);
  EXPECT_EQ(fake_.Unreserve(range), fault);
  EXPECT_EQ(fake_.RecordFence(one_).status(), fault);
  EXPECT_EQ(fake_.PollFence(fence).status(), fault);
  EXPECT_EQ(fake_.WaitFence(fence), fault);
  EXPECT_EQ(fake_.MakeStreamWait(two_, fence), fault);
  EXPECT_EQ(fake_.live_ranges(), 1u);
  EXPECT_EQ(fake_.live_handles(), 1u);
  EXPECT_EQ(fake_.live_fences(), 1u);
  EXPECT_EQ(fake_.bytes_created(), kUnit);
}

TEST_F(FakeUpstreamTest, AFaultDoesNotExcuseMisuse) {
  fake_.FailNext(UpstreamCall::kRelease, absl::InternalError("injected"));
  EXPECT_EQ(fake_.ReleaseHandle(HandleId(99)).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(FakeUpstreamTest, FaultsCanBeCleared) {
  fake_.FailNext(UpstreamCall::kReserve, absl::InternalError("injected"));
  fake_.ClearFaults();
  EXPECT_TRUE(fake_.Reserve(kUnit).ok());
}

TEST_F(FakeUpstreamTest, FencesPassAtOnceUnlessHeld) {
  EXPECT_TRUE(Passed(Record(one_)));
  fake_.HoldFences(true);
  const FenceId held = Record(one_);
  EXPECT_FALSE(Passed(held));
  fake_.Advance(1'000'000'000);  // time alone passes none
  EXPECT_FALSE(Passed(held));
  fake_.HoldFences(false);
  EXPECT_TRUE(Passed(held));
}

TEST_F(FakeUpstreamTest, AFencePassesWithAllThatIsAheadOfItOnItsStream) {
  fake_.HoldFences(true);
  const FenceId first = Record(one_), elsewhere = Record(two_), second = Record(one_), third = Record(one_);
  fake_.PassFence(second);
  EXPECT_TRUE(Passed(first));
  EXPECT_TRUE(Passed(second));
  EXPECT_FALSE(Passed(third));
  EXPECT_FALSE(Passed(elsewhere));
  fake_.PassFence(first);  // has passed: nothing happens
  EXPECT_FALSE(Passed(third));
}

TEST_F(FakeUpstreamTest, PassFencesDrainsOneStreamAndPassAllFencesDrainsAll) {
  fake_.HoldFences(true);
  const FenceId a = Record(one_), b = Record(two_), c = Record(three_);
  fake_.PassFences(one_);
  EXPECT_TRUE(Passed(a));
  EXPECT_FALSE(Passed(b));
  fake_.PassFences(one_);  // nothing queued
  fake_.PassAllFences();
  EXPECT_TRUE(Passed(b));
  EXPECT_TRUE(Passed(c));
  EXPECT_FALSE(Passed(Record(one_)));  // still holding
}

TEST_F(FakeUpstreamTest, WaitingPassesAHeldFenceAsIfTimeHadGoneBy) {
  fake_.HoldFences(true);
  const FenceId first = Record(one_), second = Record(one_), third = Record(one_);
  EXPECT_TRUE(fake_.WaitFence(second).ok());
  EXPECT_TRUE(Passed(first));
  EXPECT_TRUE(Passed(second));
  EXPECT_FALSE(Passed(third));
}

TEST_F(FakeUpstreamTest, AStreamWaitPutsWorkOfAnotherStreamAhead) {
  fake_.HoldFences(true);
  const FenceId a = Record(one_);
  const FenceId before = Record(two_);
  ASSERT_TRUE(fake_.MakeStreamWait(two_, a).ok());
  const FenceId b = Record(two_);
  ASSERT_TRUE(fake_.MakeStreamWait(three_, b).ok());
  const FenceId c = Record(three_);
  fake_.PassFence(before);  // recorded before the wait: does not depend on it
  EXPECT_FALSE(Passed(a));
  fake_.PassFence(c);  // waits for b, which waits for a
  EXPECT_TRUE(Passed(a));
  EXPECT_TRUE(Passed(b));
}

TEST_F(FakeUpstreamTest, DroppingAHeldFenceDoesNotDoItsWork) {
  fake_.HoldFences(true);
  const FenceId a = Record(one_);
  ASSERT_TRUE(fake_.MakeStreamWait(two_, a).ok());
  fake_.DropFence(a);
  const FenceId b = Record(two_), later = Record(one_);
  EXPECT_FALSE(Passed(b));
  EXPECT_TRUE(fake_.WaitFence(b).ok());
  EXPECT_FALSE(Passed(later));
  EXPECT_EQ(fake_.live_fences(), 2u);
}

TEST_F(FakeUpstreamTest, ItTellsWhatIsLive) {
  const Range range = fake_.Reserve(kUnit * 8u).value();
  const HandleId a = fake_.CreateHandle(kUnit).value(), b = fake_.CreateHandle(kUnit * 2u).value();
  ASSERT_TRUE(fake_.Map(range.base + kUnit * 4u, a).ok() && fake_.Map(range.base, b).ok());
  ASSERT_TRUE(fake_.Map(range.base + kUnit * 6u, b).ok());
  const std::vector<FakeUpstream::Mapping> mappings = fake_.mappings();
  ASSERT_EQ(mappings.size(), 3u);
  EXPECT_EQ(mappings[0].handle, b);
  EXPECT_EQ(mappings[1].address, range.base + kUnit * 4u);
  EXPECT_EQ(mappings[2].size, kUnit * 2u);
  EXPECT_EQ(fake_.live_mappings(), 3u);
  EXPECT_EQ(fake_.live_handles(), 2u);
  EXPECT_EQ(fake_.bytes_created(), kUnit * 3u);
  EXPECT_EQ(fake_.bytes_mapped(), kUnit * 5u);
}

TEST_F(FakeUpstreamTest, AddressesAreNeverUsedAgainNorAdjacent) {
  Range last = fake_.Reserve(kUnit).value();
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(fake_.Unreserve(last).ok());
    const Range next = fake_.Reserve(kUnit).value();
    EXPECT_GT(next.base.address(), (last.base + last.size).address());
    last = next;
  }
}

TEST_F(FakeUpstreamTest, MemoryEndsAtTheTotal) {
  FakeUpstream small(FakeOptions{.total = 5_MiB});
  ASSERT_TRUE(small.CreateHandle(4_MiB).ok());
  EXPECT_EQ(small.memory_info().free, 1_MiB);
  const absl::Status status = small.CreateHandle(2_MiB).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("1,048,576 B of 5,242,880 B free"));
}

}  // namespace
}  // namespace gpuledger
