// upstream_contract.h - what every upstream promises (gpuledger/upstream.h), as one suite of tests.
//
// A test program includes this and instantiates UpstreamContract with the upstreams it can make. What only the CPU can
// look into (the content of memory) is skipped where capabilities() say it cannot.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/upstream.h"

namespace gpuledger::testing {

struct UpstreamMaker {
  std::string name;
  std::function<std::unique_ptr<Upstream>()> make;  // with at least 64 granules of memory free; null: cannot be had here
  Bytes noise = {};  // by how much the figure of free memory moves for other reasons than this program's
  friend std::ostream& operator<<(std::ostream& out, const UpstreamMaker& maker) { return out << maker.name; }
};

class UpstreamContract : public ::testing::TestWithParam<UpstreamMaker> {
 protected:
  void SetUp() override {
    if (upstream_ == nullptr) GTEST_SKIP() << GetParam().name << " cannot be had here";
    granule_ = upstream().granularity();
  }

  Upstream& upstream() { return *upstream_; }
  [[nodiscard]] Bytes granule() const { return granule_; }
  bool SeesMemory() { return upstream().capabilities().host_accessible; }
  bool Maps() { return upstream().capabilities().mapping; }
  Range Reserve(Bytes size) { return upstream().Reserve(size).value(); }
  HandleId Create(Bytes size) { return upstream().CreateHandle(size).value(); }
  Bytes Free() { return upstream().memory_info().free; }
  void ExpectFree(Bytes expected) {
    const Bytes free = Free();
    EXPECT_LE(std::max(free, expected) - std::min(free, expected), GetParam().noise);
  }
  Stream stream() { return Stream::Default(upstream().device()); }

  static char* At(DevicePtr address) { return static_cast<char*>(address.unsafe_host_pointer()); }
  static void Fill(DevicePtr address, Bytes size, char byte) { std::memset(At(address), byte, size.count()); }
  static bool Holds(DevicePtr address, Bytes size, char byte) {
    const char* const bytes = At(address);
    return bytes[0] == byte && std::memcmp(bytes, bytes + 1, size.count() - 1) == 0;
  }

  // A way through every call, alone or beside other threads; leaves nothing behind.
  void UseEverything(unsigned seed);
  void MoveAHandle(Range range, std::minstd_rand& random);

 private:
  const std::unique_ptr<Upstream> upstream_ = GetParam().make();
  Bytes granule_;
};

inline constexpr const char* kNoHandles = "this upstream has no handles";

inline void ExpectCode(absl::StatusCode code, const absl::Status& status) {
  EXPECT_EQ(status.code(), code) << status.ToString();
  EXPECT_FALSE(status.message().empty());
}
inline void ExpectInvalid(const absl::Status& status) { ExpectCode(absl::StatusCode::kInvalidArgument, status); }
inline void ExpectMisuse(const absl::Status& status) { ExpectCode(absl::StatusCode::kFailedPrecondition, status); }
inline void ExpectExhausted(const absl::Status& status) { ExpectCode(absl::StatusCode::kResourceExhausted, status); }
inline void ExpectOk(const absl::Status& status) { EXPECT_TRUE(status.ok()) << status.ToString(); }

// ---- ranges

TEST_P(UpstreamContract, TheGranularityIsAMultipleOf2MiB) {
  EXPECT_FALSE(granule().is_zero());
  EXPECT_EQ(granule() % 2_MiB, 0_B);
}

TEST_P(UpstreamContract, TheBaseOfARangeIsAlignedAndNotNull) {
  for (uint64_t granules : {1, 3, 7, 64}) {
    const Range range = Reserve(granule() * granules);
    EXPECT_FALSE(range.base.is_null());
    EXPECT_EQ(Bytes(range.base.address()) % granule(), 0_B);
    EXPECT_EQ(range.size, granule() * granules);
    EXPECT_EQ(range.base.device(), upstream().device());
    ExpectOk(upstream().Unreserve(range));
  }
}

TEST_P(UpstreamContract, ReservedRangesNeverOverlap) {
  std::vector<Range> ranges;
  for (uint64_t i = 0; i < 40; ++i) {
    if (i % 5 == 4) {  // given-back addresses may come again; live ones may not
      ExpectOk(upstream().Unreserve(ranges.front()));
      ranges.erase(ranges.begin());
    }
    const Range fresh = Reserve(granule() * (1 + i % 4));
    for (const Range& other : ranges) {
      EXPECT_TRUE((fresh.base + fresh.size).address() <= other.base.address() ||
                  (other.base + other.size).address() <= fresh.base.address());
    }
    ranges.push_back(fresh);
  }
  for (const Range& range : ranges) ExpectOk(upstream().Unreserve(range));
}

TEST_P(UpstreamContract, ARangeMayBeLargerThanMemory) {
  const Bytes size = upstream().memory_info().total.RoundUpTo(granule()) * 2u;
  const Bytes free = Free();
  if (!Maps()) return ExpectExhausted(upstream().Reserve(size).status());
  const Range range = Reserve(size);
  ExpectFree(free);  // addresses cost no memory
  ExpectOk(upstream().Unreserve(range));
}

TEST_P(UpstreamContract, AddressesThatRunOutAreResourceExhausted) {
  ExpectExhausted(upstream().Reserve(Bytes(uint64_t{1} << 62).RoundDownTo(granule())).status());
  ExpectExhausted(upstream().Reserve(Bytes::Max().RoundDownTo(granule())).status());
  ExpectOk(upstream().Unreserve(Reserve(granule())));
}

TEST_P(UpstreamContract, SizesThatAreNotMultiplesOfTheGranularityAreInvalid) {
  const Bytes free = Free();
  for (Bytes size : {0_B, 1_B, granule() - 1_B, granule() + 1_B, granule() + 512_B, Bytes::Max()}) {
    ExpectInvalid(upstream().Reserve(size).status());
    if (Maps()) ExpectInvalid(upstream().CreateHandle(size).status());
  }
  ExpectFree(free);
}

TEST_P(UpstreamContract, OnlyAWholeReservedRangeCanBeUnreserved) {
  const Range range = Reserve(granule() * 4u);
  ExpectMisuse(upstream().Unreserve({range.base, granule()}));
  ExpectMisuse(upstream().Unreserve({range.base + granule(), granule() * 3u}));
  ExpectMisuse(upstream().Unreserve({DevicePtr::Null(upstream().device()), granule()}));
  ExpectOk(upstream().Unreserve(range));
  ExpectMisuse(upstream().Unreserve(range));
}

// ---- handles

TEST_P(UpstreamContract, HandlesTakeMemoryAndReleasedMemoryIsBackAtOnce) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  const Bytes free = Free();
  for (int round = 0; round < 100; ++round) {
    const HandleId one = Create(granule());
    const HandleId many = Create(granule() * 16u);
    EXPECT_NE(one, many);
    EXPECT_GE(free + GetParam().noise - Free(), granule() * 17u);
    ExpectOk(upstream().ReleaseHandle(one));
    ExpectOk(upstream().ReleaseHandle(many));
    ExpectFree(free);
  }
}

TEST_P(UpstreamContract, MoreMemoryThanThereIsIsResourceExhausted) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  const Bytes free = Free();
  const HandleId handle = Create(granule());
  ExpectExhausted(upstream().CreateHandle(upstream().memory_info().total.RoundUpTo(granule())).status());
  ExpectExhausted(upstream().CreateHandle(Bytes::Max().RoundDownTo(granule())).status());
  ExpectOk(upstream().ReleaseHandle(handle));
  ExpectFree(free);
}

TEST_P(UpstreamContract, AHandleIsReleasedOnce) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  const HandleId handle = Create(granule());
  ExpectOk(upstream().ReleaseHandle(handle));
  ExpectMisuse(upstream().ReleaseHandle(handle));
  ExpectMisuse(upstream().ReleaseHandle(HandleId(987654321)));
}

// ---- mappings

TEST_P(UpstreamContract, HandlesOfAnySizeFillARangeWithoutGaps) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  const Range range = Reserve(granule() * 8u);
  const HandleId one = Create(granule()), three = Create(granule() * 3u), four = Create(granule() * 4u);
  ExpectOk(upstream().Map(range.base + granule() * 4u, four));
  ExpectOk(upstream().Map(range.base, one));
  ExpectOk(upstream().Map(range.base + granule(), three));
  if (SeesMemory()) {
    Fill(range.base, range.size, 'a');
    EXPECT_TRUE(Holds(range.base, range.size, 'a'));
  }
  ExpectOk(upstream().Unmap(range.base + granule(), three));
  ExpectOk(upstream().Unmap(range.base, one));
  ExpectOk(upstream().Unmap(range.base + granule() * 4u, four));
  for (HandleId handle : {one, three, four}) ExpectOk(upstream().ReleaseHandle(handle));
  ExpectOk(upstream().Unreserve(range));
}

TEST_P(UpstreamContract, ContentSurvivesUnmapAndMap) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  if (!SeesMemory()) GTEST_SKIP() << "the CPU cannot read this memory";
  const Range first = Reserve(granule() * 4u), second = Reserve(granule() * 4u);
  const HandleId a = Create(granule() * 2u), b = Create(granule());
  ExpectOk(upstream().Map(first.base, a));
  ExpectOk(upstream().Map(first.base + granule() * 2u, b));
  Fill(first.base, granule() * 2u, 'a');
  Fill(first.base + granule() * 2u, granule(), 'b');
  ExpectOk(upstream().Unmap(first.base, a));
  EXPECT_TRUE(Holds(first.base + granule() * 2u, granule(), 'b'));
  ExpectOk(upstream().Map(second.base + granule(), a));
  EXPECT_TRUE(Holds(second.base + granule(), granule() * 2u, 'a'));
  ExpectOk(upstream().Unmap(first.base + granule() * 2u, b));
  ExpectOk(upstream().Map(first.base, b));  // where `a` was
  EXPECT_TRUE(Holds(first.base, granule(), 'b'));
  ExpectOk(upstream().Unmap(second.base + granule(), a));
  ExpectOk(upstream().Unmap(first.base, b));
  ExpectOk(upstream().Unreserve(first));
  ExpectOk(upstream().Unreserve(second));
  const Range third = Reserve(granule() * 2u);  // not even its range need survive
  ExpectOk(upstream().Map(third.base, a));
  EXPECT_TRUE(Holds(third.base, granule() * 2u, 'a'));
}

TEST_P(UpstreamContract, OneHandleShowsOneMemoryAtTwoAddressesIfTheUpstreamSaysSo) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  const Range range = Reserve(granule() * 2u);
  const DevicePtr low = range.base, high = range.base + granule();
  const HandleId handle = Create(granule());
  ExpectOk(upstream().Map(low, handle));
  if (!upstream().capabilities().aliasing) {
    ExpectMisuse(upstream().Map(high, handle));
    ExpectOk(upstream().Unmap(low, handle));
    ExpectOk(upstream().Map(high, handle));
    return;
  }
  ExpectOk(upstream().Map(high, handle));
  if (SeesMemory()) {
    At(low)[5] = 'x';
    EXPECT_EQ(At(high)[5], 'x');
    At(high)[6] = 'y';
    EXPECT_EQ(At(low)[6], 'y');
  }
  ExpectOk(upstream().Unmap(low, handle));  // one mapping of the two
  ExpectMisuse(upstream().Unmap(low, handle));
  ExpectMisuse(upstream().ReleaseHandle(handle));
  if (SeesMemory()) {
    EXPECT_EQ(At(high)[5], 'x');
  }
  ExpectOk(upstream().Unmap(high, handle));
  ExpectOk(upstream().ReleaseHandle(handle));
}

TEST_P(UpstreamContract, MapWantsAnAlignedFreePlaceWithinOneRange) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  const Range range = Reserve(granule() * 2u);
  const HandleId one = Create(granule()), other = Create(granule()), two = Create(granule() * 2u);
  ExpectInvalid(upstream().Map(range.base + 512_B, one));
  ExpectInvalid(upstream().Map(range.base + granule() / 2u, one));
  ExpectMisuse(upstream().Map(range.base + granule(), two));      // runs over the end
  ExpectMisuse(upstream().Map(range.base + granule() * 2u, one));  // behind the end
  ExpectMisuse(upstream().Map(DevicePtr::Null(upstream().device()), one));
  const DeviceId elsewhere(upstream().device().value() + 1);
  ExpectMisuse(upstream().Map(DevicePtr(elsewhere, range.base.address()), one));
  ExpectMisuse(upstream().Map(range.base, HandleId(987654321)));
  ExpectOk(upstream().Map(range.base + granule(), one));
  ExpectMisuse(upstream().Map(range.base + granule(), other));  // taken
  ExpectMisuse(upstream().Map(range.base, two));                // its second half is taken
  ExpectOk(upstream().Unmap(range.base + granule(), one));
  ExpectOk(upstream().Map(range.base, two));
  ExpectOk(upstream().Unmap(range.base, two));
}

TEST_P(UpstreamContract, UnmapWantsTheVeryAddressAndHandleOfAMapping) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  const Range range = Reserve(granule() * 4u);
  const HandleId two = Create(granule() * 2u), other = Create(granule());
  ExpectMisuse(upstream().Unmap(range.base, two));
  ExpectOk(upstream().Map(range.base, two));
  ExpectOk(upstream().Map(range.base + granule() * 2u, other));
  ExpectMisuse(upstream().Unmap(range.base + granule(), two));
  ExpectMisuse(upstream().Unmap(range.base, other));
  ExpectMisuse(upstream().Unmap(range.base, HandleId(987654321)));
  ExpectOk(upstream().Unmap(range.base, two));
  ExpectMisuse(upstream().Unmap(range.base, two));
  ExpectOk(upstream().Unmap(range.base + granule() * 2u, other));
}

TEST_P(UpstreamContract, AFailedCallChangesNothing) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  const Range range = Reserve(granule() * 4u);
  const HandleId mapped = Create(granule()), parked = Create(granule() * 2u);
  ExpectOk(upstream().Map(range.base + granule(), mapped));
  if (SeesMemory()) Fill(range.base + granule(), granule(), 'm');
  const Bytes free = Free();

  ExpectMisuse(upstream().Unreserve(range));
  ExpectMisuse(upstream().ReleaseHandle(mapped));
  ExpectMisuse(upstream().Map(range.base, parked));
  ExpectMisuse(upstream().Unmap(range.base, mapped));
  ExpectInvalid(upstream().Map(range.base + 1_B, parked));
  ExpectExhausted(upstream().Reserve(Bytes(uint64_t{1} << 62).RoundDownTo(granule())).status());

  ExpectFree(free);
  if (SeesMemory()) {
    EXPECT_TRUE(Holds(range.base + granule(), granule(), 'm'));
  }
  ExpectOk(upstream().Map(range.base + granule() * 2u, parked));
  ExpectOk(upstream().Unmap(range.base + granule() * 2u, parked));
  ExpectOk(upstream().Unmap(range.base + granule(), mapped));
  ExpectOk(upstream().ReleaseHandle(mapped));
  ExpectOk(upstream().ReleaseHandle(parked));
  ExpectOk(upstream().Unreserve(range));
}

TEST_P(UpstreamContract, TheEndOfAnUpstreamGivesEverythingBack) {  // LeakSanitizer and the next tests look on
  const Range range = Reserve(granule() * 4u);
  if (Maps()) {
    ExpectOk(upstream().Map(range.base, Create(granule())));
    Create(granule() * 2u);
  }
  ASSERT_TRUE(upstream().RecordFence(stream()).ok());
}

// ---- ranges that come with their memory

TEST_P(UpstreamContract, ARangeBoughtWholeTakesMemoryAndGivesItBackAtOnce) {
  if (Maps()) GTEST_SKIP() << "this upstream maps handles into its ranges";
  const Bytes free = Free();
  for (int round = 0; round < 100; ++round) {
    const Range one = Reserve(granule());
    const Range many = Reserve(granule() * 16u);
    EXPECT_GE(free + GetParam().noise - Free(), granule() * 17u);
    if (SeesMemory()) Fill(many.base, many.size, 'w');
    ExpectOk(upstream().Unreserve(one));
    ExpectOk(upstream().Unreserve(many));
    ExpectFree(free);
  }
}

TEST_P(UpstreamContract, AnUpstreamThatCannotMapHasNoHandles) {
  if (Maps()) GTEST_SKIP() << "this upstream maps handles into its ranges";
  const Range range = Reserve(granule());
  EXPECT_FALSE(upstream().capabilities().aliasing);
  ExpectMisuse(upstream().CreateHandle(granule()).status());
  ExpectMisuse(upstream().ReleaseHandle(HandleId(1)));
  ExpectMisuse(upstream().Map(range.base, HandleId(1)));
  ExpectMisuse(upstream().Unmap(range.base, HandleId(1)));
  ExpectOk(upstream().Unreserve(range));
}

// ---- fences

TEST_P(UpstreamContract, AFenceWaitedForHasPassed) {
  const FenceId fence = upstream().RecordFence(stream()).value();
  const FenceId later = upstream().RecordFence(stream()).value();
  EXPECT_NE(fence, later);
  ExpectOk(upstream().WaitFence(later));
  EXPECT_TRUE(upstream().PollFence(later).value());
  EXPECT_TRUE(upstream().PollFence(fence).value());  // recorded earlier on the same stream
  ExpectOk(upstream().WaitFence(fence));
  ExpectOk(upstream().MakeStreamWait(stream(), fence));
  upstream().DropFence(fence);
  upstream().DropFence(later);
}

TEST_P(UpstreamContract, EveryFenceHasPassedWhenTheDeviceIsSynchronised) {
  const FenceId fence = upstream().RecordFence(stream()).value();
  ExpectOk(upstream().Synchronize());
  EXPECT_TRUE(upstream().PollFence(fence).value());
  upstream().DropFence(fence);
}

TEST_P(UpstreamContract, ADroppedFenceIsNoFence) {
  const FenceId fence = upstream().RecordFence(stream()).value();
  upstream().DropFence(fence);
  ExpectMisuse(upstream().PollFence(fence).status());
  ExpectMisuse(upstream().WaitFence(fence));
  ExpectMisuse(upstream().MakeStreamWait(stream(), fence));
}

TEST_P(UpstreamContract, ManyFencesAreAskedForAtOnceAndAnsweredInTheOrderGiven) {
  std::vector<FenceId> fences;
  for (int i = 0; i < 9; ++i) fences.push_back(upstream().RecordFence(stream()).value());
  ExpectOk(upstream().WaitFence(fences.back()));
  std::reverse(fences.begin(), fences.end());
  EXPECT_EQ(upstream().PassedFences(fences), fences);
  const FenceId dropped = fences[4];
  upstream().DropFence(dropped);
  std::vector<FenceId> rest = fences;
  rest.erase(rest.begin() + 4);
  EXPECT_EQ(upstream().PassedFences(fences), rest);  // one that is no fence is left out
  EXPECT_EQ(upstream().PassedFences({}), std::vector<FenceId>());
  for (const FenceId fence : rest) upstream().DropFence(fence);
}

TEST_P(UpstreamContract, AFenceMayBeDroppedWhileAnotherThreadWaitsForIt) {
  for (int round = 0; round < 50; ++round) {
    const FenceId fence = upstream().RecordFence(stream()).value();
    std::thread waiter([&] { upstream().WaitFence(fence).IgnoreError(); });  // found or gone, by chance
    upstream().DropFence(fence);
    waiter.join();
  }
}

TEST_P(UpstreamContract, AStreamOfAnotherDeviceIsMisuse) {
  const Stream elsewhere = Stream::Default(DeviceId(upstream().device().value() + 1));
  ExpectMisuse(upstream().RecordFence(elsewhere).status());
  const FenceId fence = upstream().RecordFence(stream()).value();
  ExpectMisuse(upstream().MakeStreamWait(elsewhere, fence));
  upstream().DropFence(fence);
}

using UpstreamContractDeathTest = UpstreamContract;

TEST_P(UpstreamContractDeathTest, DroppingAFenceTwiceIsFatal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const FenceId fence = upstream().RecordFence(stream()).value();
  upstream().DropFence(fence);
  EXPECT_DEATH(upstream().DropFence(fence), "DropFence");
}

// ---- clock and threads

TEST_P(UpstreamContract, TheClockNeverGoesBack) {
  TimePoint last = upstream().now();
  for (unsigned round = 0; round < 50; ++round) {
    UseEverything(round);
    const TimePoint next = upstream().now();
    EXPECT_LE(last, next);
    last = next;
  }
}

inline void UpstreamContract::UseEverything(unsigned seed) {
  std::minstd_rand random(seed + 1);
  const Range range = Reserve(granule() * 6u);
  const FenceId fence = upstream().RecordFence(stream()).value();
  if (Maps()) MoveAHandle(range, random);
  ExpectOk(upstream().MakeStreamWait(stream(), fence));
  ExpectOk(upstream().WaitFence(fence));
  EXPECT_TRUE(upstream().PollFence(fence).value());
  EXPECT_EQ(upstream().PassedFences({&fence, 1}).size(), 1u);
  upstream().DropFence(fence);
  ExpectOk(upstream().Unreserve(range));
}

inline void UpstreamContract::MoveAHandle(Range range, std::minstd_rand& random) {
  const uint64_t granules = 1 + random() % 2;
  const HandleId handle = Create(granule() * granules);
  const char mark = static_cast<char>('A' + random() % 50);
  DevicePtr at = range.base + granule() * (random() % 4);
  for (int move = 0; move < 3; ++move) {
    ExpectOk(upstream().Map(at, handle));
    char* const bytes = At(at);
    const uint64_t middle = granule().count() * granules / 2;
    if (SeesMemory() && move == 0) bytes[0] = bytes[middle] = mark;
    if (SeesMemory()) {
      EXPECT_TRUE(bytes[0] == mark && bytes[middle] == mark);
    }
    ExpectOk(upstream().Unmap(at, handle));
    at = range.base + granule() * (random() % 4);
  }
  ExpectOk(upstream().ReleaseHandle(handle));
}

TEST_P(UpstreamContract, EveryMethodMayBeCalledFromAnyThread) {
  const Bytes free = Free();
  std::vector<std::thread> threads;
  for (unsigned thread = 0; thread < 4; ++thread) {
    threads.emplace_back([this, thread] {
      for (unsigned round = 0; round < 100; ++round) {
        UseEverything(thread * 1000 + round);
        (void)upstream().now();
        (void)upstream().memory_info();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ExpectFree(free);
}

TEST_P(UpstreamContract, AHandleMadeByOneThreadIsUsedByAnother) {
  if (!Maps()) GTEST_SKIP() << kNoHandles;
  const Range range = Reserve(granule() * 2u);
  const HandleId handle = Create(granule());
  std::thread([&] {
    ExpectOk(upstream().Map(range.base, handle));
    if (SeesMemory()) Fill(range.base, granule(), 't');
    ExpectOk(upstream().Unmap(range.base, handle));
  }).join();
  ExpectOk(upstream().Map(range.base + granule(), handle));
  if (SeesMemory()) {
    EXPECT_TRUE(Holds(range.base + granule(), granule(), 't'));
  }
}

}  // namespace gpuledger::testing
