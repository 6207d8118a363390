// How fences ask the driver: seldom, and never wrongly. On the fake driver, whose events can be held.
#include <algorithm>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "machine.h"

namespace gpuledger::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::IsEmpty;

class CudaFencesTest : public CudaTest {
 protected:
  CudaFencesTest() : CudaTest(/*needs_fake=*/true) {}
  std::vector<FenceId> Record(Stream stream, int count) {
    std::vector<FenceId> fences;
    for (int i = 0; i < count; ++i) fences.push_back(upstream().RecordFence(stream).value());
    return fences;
  }
  uint64_t queries() { return machine().Calls("cuEventQuery"); }
  void Drop(const std::vector<FenceId>& fences) {
    for (const FenceId fence : fences) upstream().DropFence(fence);
  }
};

TEST_F(CudaFencesTest, OneQuestionToAStreamTellsThatNoneHasPassed) {
  machine().HoldEvents(true);
  const std::vector<FenceId> fences = Record(stream(), 100);
  const uint64_t before = queries();
  EXPECT_THAT(upstream().PassedFences(fences), IsEmpty());
  EXPECT_EQ(queries() - before, 1u);
  machine().HoldEvents(false);
  Drop(fences);
}

TEST_F(CudaFencesTest, TwoQuestionsToAStreamTellThatAllHavePassed) {
  machine().HoldEvents(true);
  const std::vector<FenceId> fences = Record(stream(), 100);
  machine().HoldEvents(false);
  const uint64_t before = queries();
  EXPECT_THAT(upstream().PassedFences(fences), ElementsAreArray(fences));
  EXPECT_EQ(queries() - before, 2u);
  EXPECT_TRUE(upstream().PollFence(fences[50]).value());  // known by now
  EXPECT_EQ(queries() - before, 2u);
  Drop(fences);
}

TEST_F(CudaFencesTest, ALogarithmOfQuestionsFindsTheLastThatHasPassed) {
  const OwnStream other;
  machine().HoldEvents(true);
  for (const uint64_t passed : {1, 2, 37, 63, 99}) {
    std::vector<FenceId> fences = Record(stream(), 100);
    machine().ReleaseEvents(passed);
    const std::vector<FenceId> others = Record(other.stream(), 3);  // held, on a stream of their own
    std::vector<FenceId> asked = others;
    asked.insert(asked.end(), fences.begin(), fences.end());
    const uint64_t before = queries();
    EXPECT_THAT(upstream().PassedFences(asked),
                ElementsAreArray(fences.begin(), fences.begin() + static_cast<long>(passed)));
    EXPECT_LE(queries() - before, 1u + 2u + 7u);
    machine().ReleaseEvents(200);
    Drop(asked);
  }
}

TEST_F(CudaFencesTest, AFencePolledAloneFollowsItsEvent) {
  machine().HoldEvents(true);
  const std::vector<FenceId> fences = Record(stream(), 3);
  EXPECT_FALSE(upstream().PollFence(fences[0]).value());
  machine().ReleaseEvents(1);
  EXPECT_TRUE(upstream().PollFence(fences[0]).value());
  EXPECT_FALSE(upstream().PollFence(fences[1]).value());
  EXPECT_TRUE(upstream().WaitFence(fences[1]).ok());
  EXPECT_TRUE(upstream().PollFence(fences[1]).value());
  EXPECT_FALSE(upstream().PollFence(fences[2]).value());
  machine().HoldEvents(false);
  Drop(fences);
}

TEST_F(CudaFencesTest, OneStreamSaysNothingAboutAnother) {
  const OwnStream first, second;
  machine().HoldEvents(true);
  const FenceId held = upstream().RecordFence(first.stream()).value();
  const FenceId waited_for = upstream().RecordFence(second.stream()).value();
  EXPECT_TRUE(upstream().WaitFence(waited_for).ok());
  EXPECT_FALSE(upstream().PollFence(held).value());
  machine().HoldEvents(false);
  Drop({held, waited_for});
}

TEST_F(CudaFencesTest, TheHandleOfADestroyedStreamSaysNothingAboutItsFences) {
  machine().HoldEvents(true);
  auto old = std::make_unique<OwnStream>();
  const CUstream_st* const handle = old->raw();
  const FenceId held = upstream().RecordFence(old->stream()).value();
  old.reset();
  std::vector<std::unique_ptr<OwnStream>> fresh;  // one may get the same handle
  for (int i = 0; i < 20 && (fresh.empty() || fresh.back()->raw() != handle); ++i)
    fresh.push_back(std::make_unique<OwnStream>());
  const FenceId later = upstream().RecordFence(fresh.back()->stream()).value();
  EXPECT_TRUE(upstream().WaitFence(later).ok());
  EXPECT_FALSE(upstream().PollFence(held).value());
  machine().HoldEvents(false);
  Drop({held, later});
}

TEST_F(CudaFencesTest, EachThreadHasAPerThreadStreamOfItsOwn) {
  const Stream per_thread(DeviceId(0), reinterpret_cast<CUstream_st*>(uintptr_t{2}));
  machine().HoldEvents(true);
  const FenceId held = upstream().RecordFence(per_thread).value();
  FenceId other(0);
  std::thread([&] {
    other = upstream().RecordFence(per_thread).value();
    EXPECT_TRUE(upstream().WaitFence(other).ok());
  }).join();
  EXPECT_FALSE(upstream().PollFence(held).value());
  machine().HoldEvents(false);
  Drop({held, other});
}

TEST_F(CudaFencesTest, WithoutStreamIdsEachFenceIsAskedForItself) {
  machine().HoldEvents(true);
  machine().InjectFaults("cuStreamGetId:1+=801");
  const std::vector<FenceId> fences = Record(stream(), 4);
  machine().ReleaseEvents(2);
  const uint64_t before = queries();
  EXPECT_THAT(upstream().PassedFences(fences), ElementsAre(fences[0], fences[1]));
  EXPECT_EQ(queries() - before, 4u);
  machine().HoldEvents(false);
  Drop(fences);
}

TEST_F(CudaFencesTest, EventsAreUsedAgain) {
  const uint64_t before = machine().Calls("cuEventCreate");
  for (int round = 0; round < 1000; ++round) Drop(Record(stream(), 3));
  EXPECT_EQ(machine().Calls("cuEventCreate") - before, 3u);
  const uint64_t destroyed = machine().Calls("cuEventDestroy");
  upstream_.reset();
  EXPECT_EQ(machine().Calls("cuEventDestroy") - destroyed, 3u);
}

TEST_F(CudaFencesTest, AStreamWaitsForAHeldFenceOnTheDevice) {
  const OwnStream first, second;
  machine().HoldEvents(true);
  const FenceId fence = upstream().RecordFence(first.stream()).value();
  EXPECT_TRUE(upstream().MakeStreamWait(second.stream(), fence).ok());
  machine().HoldEvents(true);
  const FenceId behind = upstream().RecordFence(second.stream()).value();
  EXPECT_FALSE(upstream().PollFence(behind).value());
  EXPECT_TRUE(upstream().WaitFence(behind).ok());
  EXPECT_TRUE(upstream().PollFence(fence).value());  // it passed before
  machine().HoldEvents(false);
  Drop({fence, behind});
}

}  // namespace
}  // namespace gpuledger::testing
