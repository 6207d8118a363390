// Limits, and the rungs that a request climbs before it fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "gpuledger/allocator.h"
#include "gpuledger/forwarding_upstream.h"
#include "small_fake.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;
using testing::kDevice;
using testing::S;
using testing::SmallFake;

class LimitsTest : public ::testing::Test {
 protected:
  ~LimitsTest() override { EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants(); }
  FakeUpstream upstream{SmallFake(16_MiB)};
  CachingAllocator allocator{upstream, AllocatorOptions{}};
};

// ---- callbacks ---------------------------------------------------------------------------------------------------------

TEST_F(LimitsTest, OutOfMemoryCallbacksAreAskedInTurnUntilTheRequestFits) {
  std::vector<Buffer> hoard;
  for (int i = 0; i < 2; ++i) hoard.push_back(*allocator.Allocate(6_MiB, S(1)));
  std::vector<std::string> asked;
  allocator.OnOutOfMemory([&](Bytes needed) {
    EXPECT_EQ(needed, 8_MiB);
    asked.push_back("first");
    return false;
  });
  allocator.OnOutOfMemory([&](Bytes) {
    asked.push_back("second");
    hoard.clear();
    return true;
  });
  allocator.OnOutOfMemory([&](Bytes) {
    asked.push_back("third");
    return true;
  });
  EXPECT_TRUE(allocator.Allocate(8_MiB, S(1)).ok());
  EXPECT_EQ(asked, (std::vector<std::string>{"first", "second"}));
}

TEST_F(LimitsTest, ARemovedCallbackIsNotAsked) {
  int asked = 0;
  const auto id = allocator.OnOutOfMemory([&](Bytes) { return ++asked > 0; });
  allocator.RemoveCallback(id);
  EXPECT_FALSE(allocator.Allocate(20_MiB, S(1)).ok());
  EXPECT_EQ(asked, 0);
}

TEST_F(LimitsTest, ACallbackMayAllocateAndFreeAndIsNotCalledForThat) {
  int asked = 0;
  allocator.OnOutOfMemory([&](Bytes) {
    ++asked;
    EXPECT_FALSE(allocator.Allocate(32_MiB, S(1)).ok());  // fails, and asks nobody
    EXPECT_TRUE(allocator.Allocate(1_KiB, S(1)).ok());
    return true;
  });
  EXPECT_FALSE(allocator.Allocate(20_MiB, S(1)).ok());
  EXPECT_EQ(asked, 1);
}

TEST_F(LimitsTest, NearTheCapItTellsOnceOnTheWayUp) {
  allocator.set_cap(10_MiB);
  std::vector<Totals> told;
  allocator.OnNearCap(0.75, [&](const Totals& totals) { told.push_back(totals); });
  {
    const Buffer a = *allocator.Allocate(4_MiB, S(1));
    EXPECT_TRUE(told.empty());
    const Buffer b = *allocator.Allocate(4_MiB, S(1));
    ASSERT_EQ(told.size(), 1u);
    EXPECT_EQ(told[0].reserved, 8_MiB);
    const Buffer c = *allocator.Allocate(2_MiB, S(1));
    EXPECT_EQ(told.size(), 1u);
  }
  allocator.ReleaseCached();
  const Buffer again = *allocator.Allocate(9_MiB, S(1));
  EXPECT_EQ(told.size(), 2u);
}

TEST_F(LimitsTest, ASoftCapOfAnOwnerTellsWhoCrossedIt) {
  std::vector<Bytes> told;
  allocator.ledger().set_soft_cap(InternOwner("limits/soft"), 2_MiB, [&](const SoftCapCrossing& crossing) {
    EXPECT_EQ(crossing.cap, 2_MiB);
    told.push_back(crossing.in_use);
  });
  const OwnerScope scope("limits/soft", Role::kActivation);
  const Buffer a = *allocator.Allocate(1_MiB, S(1));
  EXPECT_TRUE(told.empty());
  {
    const Buffer b = *allocator.Allocate(2_MiB, S(1));
    EXPECT_EQ(told, (std::vector<Bytes>{3_MiB}));
    const Buffer c = *allocator.Allocate(1_KiB, S(1));
    EXPECT_EQ(told.size(), 1u);
  }
  const Buffer d = *allocator.Allocate(2_MiB, S(1));
  EXPECT_EQ(told.size(), 2u);
}

// ---- memory that goes back ---------------------------------------------------------------------------------------------

TEST_F(LimitsTest, WhoIsToldOfASoftCapMayFreeTheBlockThatCrossedIt) {
  const Payer hog{InternOwner("limits/receiver"), Role::kCache};
  const DevicePtr block = *allocator.AllocateRaw(1_MiB, S(1));
  int told = 0;
  allocator.ledger().set_soft_cap(hog.owner, 512_KiB, [&](const SoftCapCrossing&) {
    ++told;
    EXPECT_TRUE(allocator.RecordStream(block, S(2)).ok());
    allocator.Free(block);
  });
  ASSERT_TRUE(allocator.Transfer(block, hog).ok());
  EXPECT_EQ(told, 1);
  EXPECT_EQ(allocator.totals().in_use, 0_B);
}

TEST_F(LimitsTest, WhoIsToldNearTheCapFindsTheBlockThatItIsToldOf) {
  int told = 0;
  allocator.OnNearCap(0.5, [&](const Totals& totals) {
    ++told;
    EXPECT_EQ(totals.in_use, 10_MiB);
    EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants();
  });
  EXPECT_TRUE(allocator.Allocate(10_MiB, S(1)).ok());
  EXPECT_EQ(told, 1);
}

TEST_F(LimitsTest, NearTheCapItTellsAgainAfterIdleMemoryWentBack) {
  allocator.set_cap(10_MiB);
  int told = 0;
  allocator.OnNearCap(0.5, [&](const Totals&) { ++told; });
  for (int i = 0; i < 2; ++i) {
    allocator.Free(*allocator.AllocateRaw(6_MiB, S(1)));
    EXPECT_EQ(told, i + 1);
    upstream.Advance(1000);
    EXPECT_EQ(allocator.ReleaseIdle(std::chrono::nanoseconds(1)), 6_MiB);
  }
  allocator.Free(*allocator.AllocateRaw(6_MiB, S(1)));
  allocator.set_cap(14_MiB);  // below the fraction again
  allocator.Free(*allocator.AllocateRaw(8_MiB, S(1)));
  EXPECT_EQ(told, 4);
}

TEST(WholeRangesTest, MemoryUnusedForLongGoesBackOnRequest) {
  FakeOptions options;
  options.mapping = false;
  FakeUpstream upstream(options);
  CachingAllocator allocator(upstream, AllocatorOptions{});
  allocator.Free(*allocator.AllocateRaw(3_MiB, S(1)));
  upstream.Advance(1'000'000);
  allocator.Free(*allocator.AllocateRaw(3_MiB, S(2)));
  EXPECT_EQ(allocator.ReleaseIdle(std::chrono::nanoseconds(900'000)), 32_MiB);
  EXPECT_EQ(allocator.totals().reserved, 32_MiB);
}

TEST_F(LimitsTest, MemoryUnusedForLongGoesBackOnRequest) {
  allocator.Free(*allocator.AllocateRaw(4_MiB, S(1)));
  upstream.Advance(10'000'000'000);
  allocator.Free(*allocator.AllocateRaw(2_MiB, S(2)));
  EXPECT_EQ(allocator.ReleaseIdle(std::chrono::seconds(60)), 0_B);
  upstream.Advance(5'000'000'000);
  EXPECT_EQ(allocator.ReleaseIdle(std::chrono::seconds(9)), 4_MiB);
  EXPECT_EQ(allocator.totals().reserved, 2_MiB);
}

TEST_F(LimitsTest, MemoryUnusedForLongGoesBackByItselfWhenAskedTo) {
  CachingAllocator releasing(upstream, AllocatorOptions{.release_after = std::chrono::seconds(3)});
  releasing.Free(*releasing.AllocateRaw(6_MiB, S(1)));
  upstream.Advance(10'000'000'000);
  releasing.Free(*releasing.AllocateRaw(1_KiB, S(2)));
  EXPECT_LE(releasing.totals().reserved, 2_MiB);
}

// ---- requests that fail ------------------------------------------------------------------------------------------------

TEST_F(LimitsTest, AStreamThatFindsAddressesForOneOfItsPoolsAloneAsksForTheOtherNextTime) {
  ASSERT_TRUE(allocator.Allocate(1_KiB, S(1)).ok());
  const size_t ranges = upstream.live_ranges();
  for (uint64_t nth = 2; nth < 60; ++nth) upstream.FailNext(UpstreamCall::kReserve, absl::ResourceExhaustedError("no addresses"), nth);
  EXPECT_TRUE(absl::IsResourceExhausted(allocator.Allocate(1_KiB, S(2)).status()));
  EXPECT_EQ(upstream.live_ranges(), ranges + 1);
  upstream.ClearFaults();
  EXPECT_TRUE(allocator.Allocate(6_MiB, S(1)).ok());  // looks for donors in all pools
  EXPECT_TRUE(allocator.Allocate(6_MiB, S(2)).ok());
  EXPECT_EQ(upstream.live_ranges(), ranges + 2);
}

TEST_F(LimitsTest, AFailedRequestChangesNothing) {
  const OwnerScope scope("limits/failed", Role::kActivation);
  std::vector<Buffer> held;
  for (int i = 0; i < 3; ++i) held.push_back(*allocator.Allocate(4_MiB, S(1)));
  const std::vector<LiveAllocation> before = allocator.ledger().live();
  const Usage usage = allocator.ledger().usage();
  for (const Bytes size : {5_MiB, 1_GiB, Bytes(uint64_t{1} << 50)}) {
    EXPECT_TRUE(absl::IsResourceExhausted(allocator.Allocate(size, S(2)).status()));
  }
  const std::vector<LiveAllocation> after = allocator.ledger().live();
  ASSERT_EQ(after.size(), before.size());
  for (size_t i = 0; i < after.size(); ++i) EXPECT_EQ(after[i].address, before[i].address);
  EXPECT_EQ(allocator.ledger().usage().peak, usage.peak);
  EXPECT_EQ(allocator.totals().in_use, 12_MiB);
}

TEST_F(LimitsTest, ARequestWaitsForPendingWorkBeforeItFails) {
  const DevicePtr block = *allocator.AllocateRaw(12_MiB, S(1));
  ASSERT_TRUE(allocator.RecordStream(block, S(2)).ok());
  allocator.Free(block);
  const DevicePtr next = *allocator.AllocateRaw(10_MiB, S(3));  // nobody told the fence to pass: it was waited for
  EXPECT_EQ(allocator.totals().pending, 0_B);
  allocator.Free(next);
}

TEST_F(LimitsTest, AnAllocatorEndsThoughWorkOnItsBlocksCannotBeWaitedFor) {
  {
    CachingAllocator ends(upstream, AllocatorOptions{});
    const DevicePtr block = *ends.AllocateRaw(1_MiB, S(1));
    ASSERT_TRUE(ends.RecordStream(block, S(2)).ok());
    ends.Free(block);
    for (uint64_t nth = 1; nth < 50; ++nth) upstream.FailNext(UpstreamCall::kWaitFence, absl::InternalError("the device is lost"), nth);
  }
  upstream.ClearFaults();
  EXPECT_EQ(upstream.bytes_mapped(), 2_MiB);  // work may still touch it
  EXPECT_EQ(upstream.live_fences(), 0u);
}

TEST_F(LimitsTest, WhoeverIsWaitedForMayFreeMeanwhile) {
  // The fence passes once another thread has freed a block that a third stream uses: that free waits for nobody.
  class Gate final : public ForwardingUpstream {
   public:
    using ForwardingUpstream::ForwardingUpstream;
    absl::Status WaitFence(FenceId fence) override {
      if (before_wait) std::exchange(before_wait, nullptr)();
      return inner.WaitFence(fence);
    }
    std::function<void()> before_wait;
  };
  Gate gate(upstream);
  CachingAllocator gated(gate, AllocatorOptions{});
  const DevicePtr waited_for = *gated.AllocateRaw(12_MiB, S(1)), other = *gated.AllocateRaw(1_KiB, S(1));
  ASSERT_TRUE(gated.RecordStream(waited_for, S(2)).ok() && gated.RecordStream(other, S(4)).ok());
  gated.Free(waited_for);
  gate.before_wait = [&] { std::thread([&] { gated.Free(other); }).join(); };
  const DevicePtr next = *gated.AllocateRaw(8_MiB, S(3));
  gated.Free(next);
  EXPECT_EQ(gated.totals().in_use, 0_B);
}

TEST_F(LimitsTest, AThreadThatKeepsBlocksBackDoesNotMakeAnothersRequestFail) {
  std::thread([&] {
    std::vector<DevicePtr> blocks;
    for (int i = 0; i < 200; ++i) blocks.push_back(*allocator.AllocateRaw(32_KiB, S(1)));
    for (const DevicePtr block : blocks) allocator.Free(block);
    allocator.Free(*allocator.AllocateRaw(16_MiB, S(2)));
  }).join();
}

// ---- forks -------------------------------------------------------------------------------------------------------------

TEST_F(LimitsTest, AForkedChildOfADeviceThatDoesNotSurviveForksIsRefusedWithASentence) {
  class Cuda final : public ForwardingUpstream {
   public:
    using ForwardingUpstream::ForwardingUpstream;
    Capabilities capabilities() const override {
      Capabilities c = inner.capabilities();
      c.survives_fork = false;
      return c;
    }
  };
  Cuda device(upstream);
  CachingAllocator on_device(device, AllocatorOptions{});
  const DevicePtr block = *on_device.AllocateRaw(1_KiB, S(1));
  on_device.Free(*on_device.AllocateRaw(1_KiB, S(1)));  // one is in this thread's cache
  const pid_t child = fork();
  if (child == 0) {
    const absl::Status refused = on_device.AllocateRaw(1_KiB, S(1)).status();
    const bool sentence = absl::IsFailedPrecondition(refused) && std::string(refused.message()).find("was forked from one that uses device 0") != std::string::npos;
    on_device.Free(block);
    _exit(sentence && on_device.totals().in_use.is_zero() && allocator.AllocateRaw(1_KiB, S(1)).ok() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  on_device.Free(block);
}

}  // namespace
}  // namespace gpuledger
