// Thread caches: hits without a shared lock, frees from other threads, threads that come and go, forks.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <mutex>
#include <thread>

#include "gpuledger/allocator.h"
#include "small_fake.h"

namespace gpuledger {
namespace {

using testing::kDevice;
using testing::S;

class ThreadCacheTest : public ::testing::Test {
 protected:
  ~ThreadCacheTest() override { EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants(); }
  DevicePtr Allocate(Bytes size, Stream stream) {
    absl::StatusOr<DevicePtr> block = allocator.AllocateRaw(size, stream);
    EXPECT_TRUE(block.ok()) << block.status();
    return block.ok() ? *block : DevicePtr::Null(kDevice);
  }
  FakeUpstream upstream;
  CachingAllocator allocator{upstream, AllocatorOptions{}};
};

TEST_F(ThreadCacheTest, AFreedBlockComesBackToTheThreadThatAllocatedIt) {
  const DevicePtr block = Allocate(1_KiB, S(1));
  std::thread([&] { allocator.Free(block); }).join();
  EXPECT_EQ(allocator.totals().in_use, 0_B);
  EXPECT_EQ(Allocate(1_KiB, S(1)), block);
  allocator.Free(block);
}

TEST_F(ThreadCacheTest, KeepsNoMoreThanAMegabyteForAThreadThatNeverLooks) {
  std::vector<DevicePtr> blocks;
  for (int i = 0; i < 4096; ++i) blocks.push_back(Allocate(4_KiB, S(1)));
  std::thread([&] {
    for (const DevicePtr block : blocks) allocator.Free(block);
  }).join();
  EXPECT_EQ(allocator.totals().in_use, 0_B);
  // 16 MiB were freed elsewhere; but for one cache's worth they are in the pool, whole: a large block of another thread
  // and the same stream can have the handles they lie in.
  const Bytes reserved = allocator.totals().reserved;
  std::thread([&] { allocator.Free(Allocate(12_MiB, S(1))); }).join();
  EXPECT_LE(allocator.totals().reserved, reserved + 2_MiB);
}

TEST_F(ThreadCacheTest, ADeadThreadsCacheIsAdoptedByTheNextThread) {
  DevicePtr block = DevicePtr::Null(kDevice);
  std::thread([&] {
    block = Allocate(2_KiB, S(1));
    allocator.Free(block);
  }).join();
  const uint64_t calls = allocator.totals().upstream_calls;
  std::thread([&] {
    EXPECT_EQ(Allocate(2_KiB, S(1)), block);
    allocator.Free(block);
  }).join();
  EXPECT_EQ(allocator.totals().upstream_calls, calls);
}

TEST_F(ThreadCacheTest, ABlockOfADeadThreadIsFreedLikeAnyOther) {
  DevicePtr block = DevicePtr::Null(kDevice);
  std::thread([&] { block = Allocate(2_KiB, S(1)); }).join();
  allocator.Free(block);
  EXPECT_EQ(allocator.totals().in_use, 0_B);
  EXPECT_GT(allocator.ReleaseCached(), 0_B);
  EXPECT_EQ(allocator.totals().reserved, 0_B);
}

TEST_F(ThreadCacheTest, WhatCachesHoldIsReclaimedBeforeARequestFails) {
  allocator.set_cap(2_MiB);
  std::vector<DevicePtr> blocks;
  for (int i = 0; i < 16; ++i) blocks.push_back(Allocate(64_KiB, S(1)));
  for (int i = 0; i < 512; ++i) blocks.push_back(Allocate(1_KiB, S(1)));
  for (const DevicePtr block : blocks) allocator.Free(block);
  const DevicePtr whole = Allocate(2_MiB, S(2));  // every byte of the handle, and on another stream
  EXPECT_EQ(allocator.totals().cached, 0_B);
  allocator.Free(whole);
}

TEST_F(ThreadCacheTest, ThreadsHandBlocksAroundAndNothingIsLost) {
  constexpr int kThreads = 4, kRounds = 2000;
  std::vector<std::vector<DevicePtr>> handed(kThreads);
  std::array<std::mutex, kThreads> locks;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const OwnerScope scope("cache/thread." + std::to_string(t), Role::kActivation);
      for (int i = 0; i < kRounds; ++i) {
        const DevicePtr block = Allocate(Bytes(512u * (1u + static_cast<unsigned>(i * 7 + t) % 40)), S(static_cast<uintptr_t>(t)));
        {
          std::lock_guard lock(locks[static_cast<size_t>(t + 1) % kThreads]);
          handed[static_cast<size_t>(t + 1) % kThreads].push_back(block);
        }
        std::vector<DevicePtr> mine;
        {
          std::lock_guard lock(locks[static_cast<size_t>(t)]);
          mine.swap(handed[static_cast<size_t>(t)]);
        }
        for (const DevicePtr b : mine) allocator.Free(b);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& rest : handed) {
    for (const DevicePtr b : rest) allocator.Free(b);
  }
  EXPECT_EQ(allocator.totals().in_use, 0_B);
  EXPECT_EQ(allocator.ledger().usage().count, 0u);
}

TEST_F(ThreadCacheTest, TwoThreadsThatFreeOneBlockFreeItOnce) {
  CachingAllocator warns(upstream, AllocatorOptions{.on_misuse = OnMisuse::kWarn});
  ::testing::internal::CaptureStderr();
  for (int round = 0; round < 200; ++round) {
    const DevicePtr block = *warns.AllocateRaw(1_KiB, S(1));
    std::thread other([&] { warns.Free(block); });
    warns.Free(block);
    other.join();
    ASSERT_EQ(warns.totals().in_use, 0_B);
  }
  ::testing::internal::GetCapturedStderr();
  EXPECT_TRUE(warns.CheckInvariants().ok()) << warns.CheckInvariants();
}

TEST_F(ThreadCacheTest, AForkedChildFindsTheBlocksOfAllThreads) {
  const DevicePtr mine = Allocate(1_KiB, S(1));
  DevicePtr theirs = DevicePtr::Null(kDevice);
  std::thread([&] {
    theirs = Allocate(1_KiB, S(1));
    allocator.Free(Allocate(3_KiB, S(1)));
  }).join();
  const pid_t child = fork();
  if (child == 0) {
    allocator.Free(mine);
    allocator.Free(theirs);
    const bool fine = allocator.totals().in_use.is_zero() && allocator.CheckInvariants().ok() && allocator.AllocateRaw(3_KiB, S(1)).ok();
    _exit(fine ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  allocator.Free(mine);
  allocator.Free(theirs);
}

}  // namespace
}  // namespace gpuledger
