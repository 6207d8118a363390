#include "replay.h"

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trace_file.h"

namespace gpuledger::testing {
namespace {

using replay::AllocationTrace;
using replay::ReplayOptions;
using replay::ReplayResult;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;

ReplayResult OnFake(const AllocationTrace& trace, const ReplayOptions& options = {}) {
  return replay::Replay(trace, *replay::MakeFakeDevice(trace), options).value();
}

uint64_t Calls(const ReplayResult& result, UpstreamCall call) { return result.upstream_calls[static_cast<size_t>(call)]; }

std::string Row(char op, int id, uint64_t size, int stream, uint64_t time) {
  return fmt::format("{},{},{},{},{}\n", op, id, size, stream, time);
}

// Blocks of 1 B to 8 MiB on `streams`, of which one in ten is used elsewhere for a while.
AllocationTrace RandomTrace(unsigned seed, int allocations, int streams) {
  std::mt19937 random(seed);
  struct Block {
    int id;
    uint64_t size;
    int stream;
  };
  std::vector<Block> live, waiting;
  std::string rows;
  uint64_t time = 0;
  const auto take = [&](std::vector<Block>& from) {
    std::swap(from[random() % from.size()], from.back());
    const Block block = from.back();
    from.pop_back();
    return block;
  };
  for (int id = 0; id < allocations;) {
    time += random() % 50;
    if (live.size() < 20 || (live.size() < 60 && random() % 2 == 0)) {
      const Block block{id++, 1 + random() % (uint64_t{1} << (random() % 24)), static_cast<int>(random() % streams)};
      rows += Row('a', block.id, block.size, block.stream, time);
      live.push_back(block);
    } else if (!waiting.empty() && random() % 8 == 0) {
      const Block block = take(waiting);
      rows += Row('c', block.id, block.size, block.stream, time);
    } else {
      const Block block = take(live);
      rows += Row('r', block.id, block.size, block.stream, time);
      if (random() % 10 == 0) {
        waiting.push_back(block);
      } else {
        rows += Row('c', block.id, block.size, block.stream, time);
      }
    }
  }
  return TraceOf(rows);
}

TEST(ReplayTest, AFreedBlockIsReusedAndOneUsedElsewhereOnlyAfterItsCompletion) {
  const uint64_t size = 8 * kMiB;
  const std::string first = Row('a', 0, size, 0, 0) + Row('r', 0, size, 0, 1);
  const std::string completion = Row('c', 0, size, 0, 3);
  const ReplayResult at_once = OnFake(TraceOf(first + Row('c', 0, size, 0, 1) + Row('a', 1, size, 0, 2)));
  EXPECT_EQ(at_once.peak_reserved, Bytes(size));
  EXPECT_EQ(Calls(at_once, UpstreamCall::kRecordFence), 0u);

  const ReplayResult pending = OnFake(TraceOf(first + Row('a', 1, size, 0, 2) + completion));
  EXPECT_EQ(pending.peak_reserved, Bytes(2 * size)) << "still pending when the second one comes";
  EXPECT_EQ(Calls(pending, UpstreamCall::kRecordFence), 1u);

  const ReplayResult later =
      OnFake(TraceOf(first + Row('a', 1, 1, 0, 2) + completion + Row('a', 2, size, 0, 4)));
  EXPECT_LE(later.peak_reserved, Bytes(size + 4 * kMiB)) << "reused once its completion has come";
}

TEST(ReplayTest, StopsAtTheRowThatFindsNoMemoryAndSaysWhatTheAllocatorSaid) {
  const AllocationTrace trace =
      TraceOf(Row('a', 0, 3 * kMiB, 0, 0) + Row('a', 1, 3 * kMiB, 0, 1) + Row('r', 0, 3 * kMiB, 0, 2));
  for (const int threads : {1, 2, 3}) {
    const ReplayResult result = OnFake(trace, {.cap = 4_MiB, .threads = threads});
    EXPECT_FALSE(result.completed);
    EXPECT_EQ(result.stopped_at_line, 3u);
    EXPECT_THAT(result.report, HasSubstr("trace/stream 0"));
    EXPECT_LE(result.peak_reserved, 4_MiB);
  }
  EXPECT_TRUE(OnFake(trace, {.cap = 6_MiB}).completed);
}

TEST(ReplayTest, TheSmallestCapCompletesAndOneStepLessDoesNot) {
  for (const unsigned seed : {1u, 2u, 3u}) {
    const AllocationTrace trace = RandomTrace(seed, 300, 1);
    const Bytes smallest = replay::SmallestCap(trace, OnFake(trace).peak_reserved, 1).value();
    EXPECT_EQ(smallest % 2_MiB, Bytes());
    EXPECT_GE(smallest, trace.peak_requested);
    EXPECT_TRUE(OnFake(trace, {.cap = smallest}).completed) << seed;
    EXPECT_FALSE(OnFake(trace, {.cap = smallest - 2_MiB}).completed) << seed;
  }
}

TEST(ReplayTest, TwoThreadsKeepTheOrderAndSoTheResult) {
  const AllocationTrace trace = RandomTrace(4, 800, 3);
  const ReplayResult one = OnFake(trace), again = OnFake(trace), two = OnFake(trace, {.threads = 2});
  EXPECT_TRUE(one.completed && two.completed);
  EXPECT_EQ(one.peak_reserved, again.peak_reserved);
  EXPECT_EQ(one.upstream_calls, again.upstream_calls);
  EXPECT_EQ(one.upstream_seconds, again.upstream_seconds);
  EXPECT_EQ(one.upstream_seconds_second_half, again.upstream_seconds_second_half);
  const ReplayResult two_again = OnFake(trace, {.threads = 2});
  EXPECT_EQ(two.peak_reserved, two_again.peak_reserved);
  EXPECT_EQ(two.upstream_calls, two_again.upstream_calls);
}

TEST(ReplayTest, AnyNumberOfThreadsCompletes) {
  for (const int threads : {3, 4, 9}) {
    const AllocationTrace trace = RandomTrace(5 + static_cast<unsigned>(threads), 600, 4);
    const ReplayResult result = OnFake(trace, {.threads = threads});
    EXPECT_TRUE(result.completed) << threads;
    EXPECT_GE(result.peak_reserved, Bytes(trace.peak_requested.count() / 2)) << threads;
  }
}

TEST(ReplayTest, UpstreamTimeIsModelledAndSplitAtHalfTheTracesTime) {
  // Nothing new in the second half, then something.
  const std::string first = Row('a', 0, 2 * kMiB, 0, 0);
  const ReplayResult quiet = OnFake(TraceOf(first + Row('r', 0, 2 * kMiB, 0, 1000)));
  EXPECT_GT(quiet.upstream_seconds, 0);
  EXPECT_EQ(quiet.upstream_seconds_second_half, 0);
  const ReplayResult busy = OnFake(TraceOf(first + Row('a', 1, 20 * kMiB, 0, 500) + Row('a', 2, 1, 0, 1000)));
  EXPECT_GT(busy.upstream_seconds_second_half, 0);
  EXPECT_LT(busy.upstream_seconds_second_half, busy.upstream_seconds);
}

TEST(ReplayTest, TheFakesClockFollowsTheTrace) {
  const AllocationTrace trace = TraceOf(Row('a', 0, 1, 0, 7) + Row('r', 0, 1, 0, 1'000'007));
  const auto device = replay::MakeFakeDevice(trace);
  EXPECT_TRUE(replay::Replay(trace, *device, {}).ok());
  EXPECT_GE(device->upstream().now().value(), 1'000'000'000u);
  EXPECT_LT(device->upstream().now().value(), 1'001'000'000u);
}

TEST(ReplayTest, TheTimelineReachesThePeaks) {
  const AllocationTrace trace = RandomTrace(6, 2000, 2);
  const ReplayResult result = OnFake(trace, {.samples = 50});
  ASSERT_LE(result.timeline.size(), 50u);
  ASSERT_GT(result.timeline.size(), 40u);
  Bytes reserved, requested;
  double seconds = 0;
  for (const replay::Sample& sample : result.timeline) {
    EXPECT_GT(sample.seconds, seconds);
    seconds = sample.seconds;
    EXPECT_LE(sample.requested, sample.reserved);
    EXPECT_LE(sample.in_use, sample.reserved);
    reserved = std::max(reserved, sample.reserved);
    requested = std::max(requested, sample.requested);
  }
  EXPECT_EQ(reserved, result.peak_reserved);
  EXPECT_EQ(requested, trace.peak_requested);
}

TEST(ReplayTest, HostMemoryKeepsThePatternOfEveryBlock) {
  const AllocationTrace trace = RandomTrace(7, 600, 3);
  for (const int threads : {1, 2, 4}) {
    const auto device = replay::MakeHostDevice(trace).value();
    const ReplayResult result = replay::Replay(trace, *device, {.threads = threads}).value();
    EXPECT_TRUE(result.completed);
    EXPECT_GT(result.upstream_seconds, 0);
  }
}

TEST(ReplayTest, ABlockThatLostItsPatternIsNamed) {
  for (const uint64_t size : {1u, 9u, 4096u, 300'000u}) {
    const AllocationTrace trace = TraceOf(Row('a', 0, size, 0, 0));
    const auto device = replay::MakeHostDevice(trace).value();
    std::vector<char> memory(size);
    const replay::LiveBlock block{0, DevicePtr(DeviceId(0), reinterpret_cast<uint64_t>(memory.data())), Bytes(size),
                                  device->StreamOf(0)};
    EXPECT_TRUE(device->Write(block).ok());
    EXPECT_TRUE(device->Check(block).ok());
    for (const uint64_t at : {uint64_t{0}, size - 1}) {
      memory[at] ^= 1;
      const absl::Status status = device->Check(block);
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << size << " " << at;
      EXPECT_THAT(std::string(status.message()), HasSubstr("allocation 0 ("));
      memory[at] ^= 1;
    }
    const replay::LiveBlock other{1, block.address, block.size, block.stream};
    EXPECT_TRUE(device->Write(other).ok());
    EXPECT_FALSE(device->Check(block).ok()) << "another block was put there";
  }
}

TEST(ReplayTest, RefusesWhatThisComputersMemoryCannotHold) {
  const absl::Status status = replay::MakeHostDevice(TraceOf(Row('a', 0, uint64_t{1} << 60, 0, 0))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("its peak is 1,152,921,504,606,846,976 B, and this computer has "));
}

TEST(ReplayTest, StopsWhenItIsToldTo) {
  const AllocationTrace trace = RandomTrace(8, 6000, 3);
  for (const int threads : {1, 2, 4}) {
    const auto device = replay::MakeFakeDevice(trace);
    const auto result = replay::Replay(trace, *device, {.threads = threads}, [](uint64_t, uint64_t) { return false; });
    EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled) << threads;
  }
}

}  // namespace
}  // namespace gpuledger::testing
