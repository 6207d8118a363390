// Thread caches: hits without a shared lock, frees from other threads, threads that come and go, forks.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/host_upstream.h"
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

// Threads that allocate and free while they live; their owner is above its soft cap, so every change is made centrally, and
// a thread is often between two locks.
class Churn {
 public:
  explicit Churn(CachingAllocator& allocator, bool elsewhere = false) {
    const OwnerId owner = InternOwner("churn");
    allocator.ledger().set_soft_cap(owner, 0_B, [](const SoftCapCrossing&) {});
    for (int t = 0; t < 3; ++t) {
      threads_.emplace_back([this, &allocator, elsewhere, t] {
        OwnerScope scope("churn", Role::kScratch);
        const DevicePtr null = DevicePtr::Null(kDevice);
        std::array<DevicePtr, 4> blocks{null, null, null, null};
        for (size_t i = 0; !done_; ++i) {
          DevicePtr& block = blocks[i % blocks.size()];
          if (elsewhere && !block.is_null()) allocator.RecordStream(block, S(9)).IgnoreError();
          allocator.Free(block);
          block = *allocator.AllocateRaw(Bytes(1u + 700 * (i % 5)), S(static_cast<uintptr_t>(1 + t)));
          address_ = block.address();
          if (elsewhere && i % 16 == 0) allocator.CompletePending();
        }
        for (const DevicePtr block : blocks) allocator.Free(block);
      });
    }
  }
  ~Churn() {
    done_ = true;
    for (std::thread& thread : threads_) thread.join();
  }
  DevicePtr some() const { return DevicePtr(kDevice, address_); }

 private:
  std::atomic<bool> done_ = false;
  std::atomic<uint64_t> address_ = 0;
  std::vector<std::thread> threads_;
};

TEST(ThreadCacheForkTest, AForkedChildFindsNoBlockBetweenTwoHands) {
  HostAnonymousUpstream upstream;
  CachingAllocator allocator(upstream, AllocatorOptions{});
  for (const bool elsewhere : {false, true}) {
    Churn churn(allocator, elsewhere);
    for (int i = 0; i < 30; ++i) {
      const pid_t child = fork();
      if (child == 0) {
        const absl::Status status = allocator.CheckInvariants();
        if (!status.ok()) fprintf(stderr, "%s\n", std::string(status.message()).c_str());
        allocator.ReleaseCached();
        const Totals totals = allocator.totals();
        _exit(status.ok() && allocator.Settle().ok() && allocator.totals().pending.is_zero() && totals.reserved >= totals.in_use ? 0 : 1);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_EQ(status, 0) << "fork " << i;
    }
  }
  EXPECT_TRUE(allocator.Settle().ok());
}

TEST_F(ThreadCacheTest, WhatIsFoundWhileOthersAllocateIsWhatWasAskedFor) {
  Churn churn(allocator);
  for (int i = 0; i < 5000; ++i) {
    const DevicePtr asked = churn.some();
    if (asked.is_null()) continue;
    if (const absl::StatusOr<LiveAllocation> found = allocator.Find(asked); found.ok()) {
      ASSERT_EQ(found->address, asked);
    }
    if (i % 100 != 0) continue;
    for (const SegmentInfo& segment : allocator.segments()) {
      for (const BlockInfo& block : segment.blocks) {
        for (const LiveAllocation& charge : block.charge) ASSERT_EQ(charge.address, block.address);
      }
    }
  }
}

TEST_F(ThreadCacheTest, TheStatisticsPageIsOfOneInstant) {
  Churn churn(allocator);
  allocator.ledger().set_soft_cap(InternOwner("churn"), 0_B, nullptr);
  for (int i = 0; i < 300; ++i) {
    // "reserved = in use + ..." and "in use = requested + rounding", each with its figures on the line below.
    const std::string page = allocator.Report();
    const size_t figures = page.find(" = ", page.find("cached\n")), second = page.find("rounding\n    ") + 13;
    const std::string in_use = page.substr(figures + 3, page.find(" + ", figures) - figures - 3);
    ASSERT_EQ(page.substr(second, page.find(" = ", second) - second), in_use) << page;
  }
}

// Whose cache it is is looked up while other threads give pools to other streams.
TEST_F(ThreadCacheTest, StreamsComeAndGoOnManyThreadsAtOnce) {
  std::vector<std::thread> threads;
  const DevicePtr kept = Allocate(1_KiB, S(1000));
  ASSERT_TRUE(allocator.RetireStream(S(1000)).ok());
  for (uintptr_t t = 1; t <= 3; ++t) {
    threads.emplace_back([&, t] {
      for (uintptr_t i = 0; i < 300; ++i) {
        const Stream mine = S(t * 1000 + 1 + i % 3);
        const DevicePtr small = Allocate(1_KiB, mine), large = Allocate(300_KiB, mine);
        EXPECT_TRUE(allocator.RecordStream(kept, mine).ok());
        allocator.Free(small);
        allocator.Free(large);
        EXPECT_TRUE(allocator.RetireStream(mine).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  allocator.Free(kept);
  EXPECT_TRUE(allocator.Settle().ok());
  EXPECT_LE(upstream.live_ranges(), 2u * 4);
}

}  // namespace
}  // namespace gpuledger
