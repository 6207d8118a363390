// CachingAllocator over each upstream that needs no device, and its ladder and reports over the fake.
#include "gpuledger/allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "gpuledger/host_upstream.h"
#include "small_fake.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;
using testing::kDevice;
using testing::S;
using testing::SmallFake;

template <class T>
class AllocatorContract : public ::testing::Test {
 protected:
  ~AllocatorContract() override { EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants(); }
  T upstream;
  CachingAllocator allocator{upstream, AllocatorOptions{}};
};
using Upstreams = ::testing::Types<FakeUpstream, HostAnonymousUpstream, HostMemfdUpstream>;
TYPED_TEST_SUITE(AllocatorContract, Upstreams);

TYPED_TEST(AllocatorContract, GivesDistinctAlignedBlocksAndTakesThemBack) {
  std::vector<Buffer> buffers;
  for (uint64_t size : {1u, 511u, 512u, 513u, 4096u, 3u << 20}) {
    absl::StatusOr<Buffer> buffer = this->allocator.Allocate(Bytes(size), S(0));
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(buffer->ptr().address() % 512, 0u);
    EXPECT_EQ(buffer->size(), Bytes(size));
    buffers.push_back(std::move(*buffer));
  }
  EXPECT_EQ(this->allocator.totals().in_use, Bytes(512u + 512 + 512 + 1024 + 4096 + (3u << 20)));
  buffers.clear();
  EXPECT_EQ(this->allocator.totals().in_use, 0_B);
  EXPECT_EQ(this->allocator.totals().cached, this->allocator.totals().reserved);
}

TYPED_TEST(AllocatorContract, ReusesABlockAtOnceOnItsStream) {
  const DevicePtr first = this->allocator.Allocate(1_MiB, S(0))->ptr();
  const uint64_t calls = this->allocator.totals().upstream_calls;
  EXPECT_EQ(this->allocator.Allocate(1_MiB, S(0))->ptr(), first);
  EXPECT_EQ(this->allocator.totals().upstream_calls, calls);
}

TYPED_TEST(AllocatorContract, PutsBlocksWhereTheyWere) {
  CachingAllocator& a = this->allocator;
  const PoolId pool = a.CreatePool();
  std::vector<std::pair<DevicePtr, Bytes>> blocks;
  for (const Bytes size : {512_B, 700_B, 70_KiB, 1_MiB, 3_MiB}) blocks.emplace_back(*a.AllocateRaw(size, S(1), kNoSite, pool), size);
  for (const auto& [block, size] : blocks) a.Free(block);
  const Bytes reserved = a.totals().reserved;
  for (size_t i = blocks.size(); i-- > 0;) {
    const auto& [block, size] = blocks[i];
    EXPECT_EQ(a.AllocateAt(block, size, S(1), kNoSite, pool), absl::OkStatus());
    EXPECT_TRUE(a.Owns(block));
    EXPECT_EQ(a.AllocateAt(block, size, S(1), kNoSite, pool).code(), absl::StatusCode::kFailedPrecondition);  // it is in use
  }
  EXPECT_EQ(a.totals().reserved, reserved);
  for (const auto& [block, size] : blocks) a.Free(block);
  EXPECT_EQ(a.AllocateAt(blocks[0].first, 512_B, S(2), kNoSite, pool).code(), absl::StatusCode::kFailedPrecondition);  // another stream
  EXPECT_EQ(a.AllocateAt(blocks[0].first, 512_B, S(1)).code(), absl::StatusCode::kFailedPrecondition);                 // another pool
  EXPECT_EQ(a.AllocateAt(blocks[0].first, 0_B, S(1), kNoSite, pool).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(a.AllocateAt(blocks[0].first + 1_B, 512_B, S(1), kNoSite, pool).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(a.Owns(blocks[0].first));
  EXPECT_EQ(a.totals().in_use, 0_B);
}

TYPED_TEST(AllocatorContract, ChargesRoomThatIsAskedForAsRounding) {
  const DevicePtr block = *this->allocator.AllocateRaw(1000_B, S(0), kNoSite, kSharedPool, 2_MiB);
  const Usage usage = this->allocator.ledger().usage();
  EXPECT_EQ(usage.in_use, 2_MiB);
  EXPECT_EQ(usage.requested, 1000_B);
  this->allocator.Free(block);
  const DevicePtr other = *this->allocator.AllocateRaw(1000_B, S(0), kNoSite, kSharedPool, 1_B);
  EXPECT_EQ(this->allocator.totals().in_use, 1_KiB);
  this->allocator.Free(other);
}

TYPED_TEST(AllocatorContract, TellsWhosePoolASegmentIs) {
  CachingAllocator& a = this->allocator;
  const PoolId pool = a.CreatePool();
  const DevicePtr small = *a.AllocateRaw(1_KiB, S(0)), large = *a.AllocateRaw(1_MiB, S(1), kNoSite, pool);
  const auto segment_of = [&](DevicePtr block) {
    const std::vector<SegmentInfo> segments = a.segments();
    return *std::find_if(segments.begin(), segments.end(), [&](const SegmentInfo& s) {
      return s.range.base.address() <= block.address() && block.address() < (s.range.base + s.range.size).address();
    });
  };
  EXPECT_EQ(segment_of(small).pool, kSharedPool);
  EXPECT_TRUE(segment_of(small).small);
  EXPECT_EQ(segment_of(large).pool, pool);
  EXPECT_FALSE(segment_of(large).small);
  a.Free(small);
  a.Free(large);
}

TYPED_TEST(AllocatorContract, GivesZeroBytesAsTheNullBuffer) {
  absl::StatusOr<Buffer> buffer = this->allocator.Allocate(0_B, S(0));
  EXPECT_TRUE(buffer->empty());
  EXPECT_EQ(this->allocator.totals().reserved, 0_B);
  this->allocator.Free(DevicePtr::Null(kDevice));
}

TYPED_TEST(AllocatorContract, ChargesTheScopeOfTheCallingThread) {
  const SiteId site = SiteHere();
  OwnerScope scope("alloc/contract", Role::kGradient);
  const Buffer buffer = *this->allocator.Allocate(100_B, S(0), site);
  const absl::StatusOr<LiveAllocation> found = this->allocator.Find(buffer.ptr() + 99_B);
  EXPECT_EQ(OwnerName(found->payer.owner), "alloc/contract");
  EXPECT_EQ(found->payer.role, Role::kGradient);
  EXPECT_EQ(found->site, site);
  EXPECT_EQ(found->requested, 100_B);
  EXPECT_EQ(this->allocator.ledger().usage(found->payer.owner, Role::kGradient).in_use, 512_B);
}

TYPED_TEST(AllocatorContract, KeepsTheContentOfLiveBlocksWhileItGrowsAndShrinks) {
  if (!this->upstream.capabilities().host_accessible) GTEST_SKIP() << "memory of this upstream cannot be read by the CPU";
  struct Filled {
    Buffer buffer;
    unsigned char pattern;
  };
  std::vector<Filled> live;
  std::mt19937 random(7);
  const auto check = [](const Filled& f) {
    const auto* bytes = static_cast<const unsigned char*>(f.buffer.ptr().unsafe_host_pointer());
    for (uint64_t i = 0; i < f.buffer.size().count(); ++i) ASSERT_EQ(bytes[i], f.pattern);
  };
  for (int i = 0; i < 400; ++i) {
    absl::StatusOr<Buffer> buffer = this->allocator.Allocate(Bytes(1u + random() % (1u << (random() % 21))), S(random() % 2));
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    std::memset(buffer->ptr().unsafe_host_pointer(), i & 255, buffer->size().count());
    live.push_back({std::move(*buffer), static_cast<unsigned char>(i & 255)});
    if (live.size() > 40) {
      check(live[random() % live.size()]);
      std::swap(live[random() % live.size()], live.back());
      check(live.back());
      live.pop_back();
    }
    if (i % 50 == 0) this->allocator.ReleaseCached();
  }
  for (const Filled& f : live) check(f);
}

TYPED_TEST(AllocatorContract, GivesEverythingBackOnRelease) {
  { const Buffer buffer = *this->allocator.Allocate(9_MiB, S(1)); }
  EXPECT_EQ(this->allocator.ReleaseCached(), 10_MiB);
  EXPECT_EQ(this->allocator.totals().reserved, 0_B);
  EXPECT_EQ(this->allocator.totals().peak_reserved, 10_MiB);
}

TYPED_TEST(AllocatorContract, NeverExceedsItsCap) {
  this->allocator.set_cap(4_MiB);
  const Buffer kept = *this->allocator.Allocate(3_MiB, S(0));
  const absl::StatusOr<Buffer> refused = this->allocator.Allocate(2_MiB, S(0));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_LE(this->allocator.totals().peak_reserved, 4_MiB);
  EXPECT_EQ(this->allocator.totals().in_use, 3_MiB);
  EXPECT_TRUE(this->allocator.Allocate(1_MiB, S(0)).ok());
}

TYPED_TEST(AllocatorContract, ServesThreadsOnTheirOwnStreams) {
  std::vector<std::thread> threads;
  for (uintptr_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      OwnerScope scope("alloc/thread." + std::to_string(t), Role::kActivation);
      std::mt19937 random(static_cast<unsigned>(t));
      std::vector<Buffer> live;
      for (int i = 0; i < 500; ++i) {
        absl::StatusOr<Buffer> buffer = this->allocator.Allocate(Bytes(1u + random() % 100'000), S(t));
        ASSERT_TRUE(buffer.ok()) << buffer.status();
        live.push_back(std::move(*buffer));
        if (live.size() > 16) live.erase(live.begin() + random() % 16);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(this->allocator.totals().in_use, 0_B);
}

TYPED_TEST(AllocatorContract, RefusesAStreamOfAnotherDevice) {
  EXPECT_EQ(this->allocator.Allocate(1_B, Stream::Default(DeviceId{5})).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(this->allocator.Allocate(Bytes::Max(), S(0)).status().code(), absl::StatusCode::kInvalidArgument);
}

// ---- the ladder, over the fake ---------------------------------------------------------------------------------------

class LadderTest : public ::testing::Test {
 protected:
  ~LadderTest() override { EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants(); }
  FakeUpstream upstream{SmallFake(8_MiB)};
  CachingAllocator allocator{upstream, AllocatorOptions{}};
};

TEST_F(LadderTest, KeepsABlockPendingUntilEveryStreamThatUsesItIsDone) {
  Buffer buffer = *allocator.Allocate(2_MiB, S(0));
  const DevicePtr address = buffer.ptr();
  ASSERT_TRUE(allocator.RecordStream(address, S(1)).ok());
  ASSERT_TRUE(allocator.RecordStream(address, S(2)).ok());
  buffer.Reset();
  upstream.PassFences(S(1));
  EXPECT_EQ(allocator.CompletePending(), 0u);
  EXPECT_EQ(allocator.totals().pending, 2_MiB);
  EXPECT_NE(allocator.Allocate(2_MiB, S(0))->ptr(), address);
  upstream.PassFences(S(2));
  EXPECT_EQ(allocator.CompletePending(), 1u);
  EXPECT_EQ(allocator.totals().pending, 0_B);
  EXPECT_EQ(upstream.live_fences(), 0u);
}

TEST_F(LadderTest, PollsPassedFencesBeforeItGrows) {
  Buffer buffer = *allocator.Allocate(2_MiB, S(0));
  ASSERT_TRUE(allocator.RecordStream(buffer.ptr(), S(1)).ok());
  const DevicePtr address = buffer.ptr();
  buffer.Reset();
  upstream.PassFences(S(1));
  EXPECT_EQ(allocator.Allocate(2_MiB, S(0))->ptr(), address);
  EXPECT_EQ(allocator.totals().reserved, 2_MiB);
}

TEST_F(LadderTest, MovesCachedHandlesOfAnotherStreamWhenMemoryIsOut) {
  { const Buffer other = *allocator.Allocate(8_MiB, S(1)); }
  const Buffer mine = *allocator.Allocate(6_MiB, S(0));
  EXPECT_EQ(allocator.totals().reserved, 8_MiB);
  EXPECT_EQ(upstream.calls(UpstreamCall::kCreate), 4u);  // no fifth is tried: there is none
}

TEST_F(LadderTest, WaitsForPendingWorkBeforeItGivesUp) {
  Buffer buffer = *allocator.Allocate(8_MiB, S(0));
  ASSERT_TRUE(allocator.RecordStream(buffer.ptr(), S(1)).ok());
  buffer.Reset();
  EXPECT_TRUE(allocator.Allocate(8_MiB, S(0)).ok());
  EXPECT_GE(upstream.calls(UpstreamCall::kWaitFence), 1u);
}

TEST_F(LadderTest, PassesOnADriversFailureAsItIs) {
  upstream.FailNext(UpstreamCall::kMap, absl::InternalError("CUDA_ERROR_ILLEGAL_ADDRESS in cuMemMap"));
  const absl::Status status = allocator.Allocate(1_MiB, S(0)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("CUDA_ERROR_ILLEGAL_ADDRESS"));
  EXPECT_EQ(upstream.live_handles(), 0u);
}

TEST_F(LadderTest, RetriesAFenceThatCouldNotBeRecorded) {
  Buffer buffer = *allocator.Allocate(1_MiB, S(0));
  ASSERT_TRUE(allocator.RecordStream(buffer.ptr(), S(1)).ok());
  upstream.FailNext(UpstreamCall::kRecordFence, absl::InternalError("no"));
  buffer.Reset();
  EXPECT_EQ(allocator.totals().pending, 1_MiB);
  upstream.PassAllFences();
  EXPECT_EQ(allocator.CompletePending(), 0u);  // recorded only now
  upstream.PassAllFences();
  EXPECT_EQ(allocator.CompletePending(), 1u);
}

TEST_F(LadderTest, PassesOverAStreamThatFailsWhenItLooksForDonors) {
  { const Buffer bad = *allocator.Allocate(4_MiB, S(1)); }
  { const Buffer good = *allocator.Allocate(4_MiB, S(2)); }
  upstream.FailNext(UpstreamCall::kRecordFence, absl::InternalError("CUDA_ERROR_INVALID_HANDLE"));
  EXPECT_TRUE(allocator.Allocate(4_MiB, S(0)).ok());
}

TEST_F(LadderTest, WaitsForOtherPendingBlocksWhenOneStreamFails) {
  Buffer bad = *allocator.Allocate(2_MiB, S(0)), good = *allocator.Allocate(6_MiB, S(0));
  ASSERT_TRUE(allocator.RecordStream(bad.ptr(), S(1)).ok() && allocator.RecordStream(good.ptr(), S(2)).ok());
  for (uint64_t n = 1; n <= 4; ++n) upstream.FailNext(UpstreamCall::kRecordFence, absl::InternalError("no"), n);
  bad.Reset();
  upstream.ClearFaults();
  good.Reset();
  for (uint64_t n = 1; n <= 4; ++n) upstream.FailNext(UpstreamCall::kRecordFence, absl::InternalError("no"), n);
  EXPECT_TRUE(allocator.Allocate(6_MiB, S(0)).ok());
}

TEST_F(LadderTest, BuysNothingForARequestThatCannotFit) {
  EXPECT_FALSE(allocator.Allocate(10_MiB, S(0)).ok());
  EXPECT_EQ(upstream.calls(UpstreamCall::kCreate), 0u);
}

TEST_F(LadderTest, KeepsHandlesThatTheUpstreamWillNotTakeBackUnderTheCap) {
  allocator.set_cap(4_MiB);
  for (int round = 0; round < 5; ++round) {
    { const Buffer buffer = *allocator.Allocate(4_MiB, S(0)); }
    for (uint64_t n = 1; n <= 2; ++n) upstream.FailNext(UpstreamCall::kRelease, absl::InternalError("no"), n);
    EXPECT_EQ(allocator.ReleaseCached(), 0_B);
    EXPECT_EQ(upstream.bytes_created(), 4_MiB);
    upstream.ClearFaults();
  }
  EXPECT_EQ(allocator.ReleaseCached(), 4_MiB);
}

TEST_F(LadderTest, GivesCachedMemoryBackWhenTheCapIsLowered) {
  { const Buffer buffer = *allocator.Allocate(8_MiB, S(0)); }
  allocator.set_cap(2_MiB);
  EXPECT_EQ(allocator.totals().reserved, 2_MiB);
}

TEST_F(LadderTest, ReportsAtTheLargestCapThereIs) {
  allocator.set_cap(Bytes::Max() - 1_B);
  EXPECT_THAT(std::string(allocator.Allocate(Bytes(uint64_t{1} << 61), S(0)).status().message()), HasSubstr("what would help"));
}

TEST(AllocatorTest, WorksOnAnUpstreamWithoutALimit) {
  FakeOptions options;
  options.total = Bytes::Max();
  FakeUpstream upstream(options);
  CachingAllocator allocator(upstream, AllocatorOptions{});
  EXPECT_TRUE(allocator.Allocate(1_GiB, S(0)).ok());
}

TEST_F(LadderTest, NamesTopOwnersAndWhatIsCachedWhenItRunsOut) {
  allocator.set_cap(6_MiB);
  std::vector<Buffer> live;
  {
    OwnerScope scope("model/embed.weight", Role::kSource);
    live.push_back(*allocator.Allocate(3_MiB, S(0)));
  }
  {
    OwnerScope scope("model/head.weight", Role::kQuantized);
    live.push_back(*allocator.Allocate(1_MiB, S(0)));
    live.push_back(*allocator.Allocate(512_KiB, S(0)));
    live.push_back(*allocator.Allocate(1000_B, S(0)));
    live.push_back(*allocator.Allocate(1_MiB, S(0)));
  }
  live.erase(live.begin() + 2);
  OwnerScope scope("model/layers.0.weight", Role::kSource);
  const absl::Status status = allocator.Allocate(1_MiB, S(0)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(status.message()),
            "out of memory on device 0 (fake): 1.00 MiB (1,048,576 B) for model/layers.0.weight [source] could not be had: the cap is 6,291,456 B\n"
            "  reserved = in use + pending + cached\n"
            "    6,291,456 B = 5,243,904 B + 0 B + 1,047,552 B\n"
            "  cap 6.00 MiB (6,291,456 B); largest cached block of this stream 512.00 KiB (524,288 B); cached in pieces under one handle 1023.00 KiB (1,047,552 B)\n"
            "  top owners of what is in use:\n"
            "            3.00 MiB (3,145,728 B)  model/embed.weight [source], 1 block\n"
            "            2.00 MiB (2,098,176 B)  model/head.weight [quantized], 3 blocks\n"
            "  what would help: a cap of 8.00 MiB (8,388,608 B) or more (GPULEDGER_CAP), or freeing 1.00 MiB (1,048,576 B)");
}

// ---- misuse ------------------------------------------------------------------------------------------------------------

TEST(AllocatorDeathTest, NamesTheLastOwnerOnADoubleFree) {
  EXPECT_DEATH(
      {
        FakeUpstream upstream;
        CachingAllocator allocator(upstream, AllocatorOptions{});
        OwnerScope scope("alloc/twice", Role::kCache);
        const Buffer before = *allocator.Allocate(1_KiB, S(0));
        const Buffer between = *allocator.Allocate(1_KiB, S(0));
        const DevicePtr p = *allocator.AllocateRaw(1_MiB, S(0), SiteHere());
        const_cast<Buffer&>(between).Reset();
        allocator.Free(p);  // merges to the left
        allocator.Free(p);
      },
      "was freed already; its owner was alloc/twice \\[cache\\], allocated at allocator_test.cc");
}

TEST(AllocatorTest, OnlyWarnsOfMisuseWhenToldTo) {
  FakeUpstream upstream;
  CachingAllocator allocator(upstream, AllocatorOptions{.on_misuse = OnMisuse::kWarn});
  const Buffer buffer = *allocator.Allocate(1_MiB, S(0));
  ::testing::internal::CaptureStderr();
  allocator.Free(DevicePtr(kDevice, 12345));
  allocator.Free(buffer.ptr() + 512_B);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("this allocator never handed it out"));
  EXPECT_THAT(said, HasSubstr("it points 512 B into a block of"));
  EXPECT_TRUE(allocator.CheckInvariants().ok());
}

TEST(AllocatorTest, PrintsItsEquations) {
  FakeUpstream upstream;
  CachingAllocator allocator(upstream, AllocatorOptions{});
  OwnerScope scope("alloc/report", Role::kOther);
  const Buffer buffer = *allocator.Allocate(1000_B, S(0));
  EXPECT_EQ(allocator.Report(),
            "device 0 (fake)\n"
            "  reserved = in use + pending + cached\n"
            "    2,097,152 B = 1,024 B + 0 B + 2,096,128 B\n"
            "  in use = requested + rounding\n"
            "    1,024 B = 1,000 B + 24 B\n"
            "  peak in use 1.00 KiB (1,024 B), peak reserved 2.00 MiB (2,097,152 B), cap none\n"
            "  owners of what is in use:\n"
            "                1.00 KiB (1,024 B)  alloc/report [other], 1 block\n");
}

TEST(AllocatorForkTest, RefusesToChangeASharedMemoryFileInAChild) {
  HostMemfdUpstream upstream;
  CachingAllocator allocator(upstream, AllocatorOptions{});
  Buffer buffer = *allocator.Allocate(2_MiB, S(0));
  auto* bytes = static_cast<unsigned char*>(buffer.ptr().unsafe_host_pointer());
  bytes[0] = 1;
  const pid_t child = fork();
  if (child == 0) {
    buffer.Reset();
    allocator.ReleaseCached();
    _exit(allocator.Allocate(4_MiB, S(0)).ok() ? 1 : 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(bytes[0], 1);
}

TEST(AllocatorForkTest, WorksInAForkedChildWithCopyOnWrite) {
  HostAnonymousUpstream upstream;
  CachingAllocator allocator(upstream, AllocatorOptions{});
  Buffer buffer = *allocator.Allocate(4096_B, S(0));
  auto* bytes = static_cast<unsigned char*>(buffer.ptr().unsafe_host_pointer());
  bytes[0] = 1;
  std::atomic<bool> stop = false;
  std::thread busy([&] {  // holds the locks most of the time
    OwnerScope scope("fork/busy", Role::kOther);
    for (; !stop; std::this_thread::yield()) (void)allocator.Allocate(1_KiB, S(1));
  });
  const pid_t child = fork();
  if (child == 0) {
    bool good = bytes[0] == 1;
    bytes[0] = 2;
    const absl::StatusOr<Buffer> more = allocator.Allocate(5_MiB, S(0));
    good = good && more.ok() && allocator.CheckInvariants().ok();
    _exit(good ? 0 : 1);
  }
  stop = true;
  busy.join();
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(bytes[0], 1);
}

}  // namespace
}  // namespace gpuledger
