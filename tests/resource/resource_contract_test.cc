// The contract of a stream-ordered memory resource, whatever form it is held in: what any caller may rely on who knows
// nothing but the concept. One thread and one stream here; resource_threads_test.cc and resource_streams_test.cc go on.
#include <cstdint>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resource_cases.h"

namespace gpuledger::testing {
namespace {

using ::testing::HasSubstr;

// What keeps a resource from existing without an allocator, or from claiming memory that it does not have.
static_assert(!std::is_default_constructible_v<MemoryResource>);
static_assert(!std::is_convertible_v<CachingAllocator&, MemoryResource>);
static_assert(std::is_nothrow_move_constructible_v<MemoryResource> && std::is_nothrow_copy_assignable_v<MemoryResource>);
static_assert(noexcept(std::declval<MemoryResource&>().deallocate(std::declval<::cuda::stream_ref>(), nullptr, 0, 1)));
static_assert(noexcept(std::declval<MemoryResource&>().deallocate_sync(nullptr, 0, 1)));
static_assert(::cuda::mr::synchronous_resource_with<MemoryResource, Accessible>);
static_assert(std::is_base_of_v<std::bad_alloc, OutOfMemoryError>);

bool AlignedTo(const void* pointer, size_t alignment) { return reinterpret_cast<uintptr_t>(pointer) % alignment == 0; }

TYPED_TEST_SUITE(ResourceContractTest, AllCases);

TYPED_TEST(ResourceContractTest, GivesDistinctAddressesAlignedTo256) {
  const cudaStream_t stream = this->NewStream();
  std::vector<std::pair<void*, size_t>> live;
  for (const size_t bytes : {1, 2, 255, 256, 257, 511, 513, 1000, 4096, 100'000, 2 << 20, (2 << 20) + 1, 5'000'000}) {
    void* const pointer = this->resource().allocate(stream, bytes, 256);
    ASSERT_NE(pointer, nullptr);
    EXPECT_TRUE(AlignedTo(pointer, 256)) << bytes;
    for (const auto& [other, size] : live) {
      EXPECT_TRUE(static_cast<char*>(other) + size <= pointer || static_cast<char*>(pointer) + bytes <= other) << bytes;
    }
    live.emplace_back(pointer, bytes);
  }
  for (const auto& [pointer, bytes] : live) this->resource().deallocate(stream, pointer, bytes, 256);
}

TYPED_TEST(ResourceContractTest, TakesEachPowerOfTwoAsAlignment) {
  const cudaStream_t stream = this->NewStream();
  std::vector<std::pair<void*, size_t>> live;
  for (size_t alignment = 1; alignment <= size_t{16} << 20; alignment *= 2) {
    for (const size_t bytes : {1, 700, 3'000'000}) {
      void* const pointer = this->resource().allocate(stream, bytes, alignment);
      EXPECT_TRUE(AlignedTo(pointer, alignment)) << alignment;
      Fill(pointer, bytes, 0x5A, stream);
      this->resource().deallocate(stream, pointer, bytes, alignment);
    }
    live.emplace_back(this->resource().allocate(stream, 1000, alignment), alignment);
    EXPECT_TRUE(AlignedTo(live.back().first, alignment)) << alignment;
  }
  for (const auto& [pointer, alignment] : live) this->resource().deallocate(stream, pointer, 1000, alignment);
}

TYPED_TEST(ResourceContractTest, RefusesAnAlignmentThatIsNoPowerOfTwo) {
  const cudaStream_t stream = this->NewStream();
  for (const size_t alignment : {0, 3, 384}) {
    EXPECT_THROW((void)this->resource().allocate(stream, 1000, alignment), std::invalid_argument) << alignment;
    EXPECT_THROW((void)this->resource().allocate_sync(1000, alignment), std::invalid_argument) << alignment;
  }
}

TYPED_TEST(ResourceContractTest, ZeroBytesAreNoMemoryAndCanBeDeallocated) {
  const cudaStream_t stream = this->NewStream();
  for (const size_t alignment : {256, 4096}) {
    void* const pointer = this->resource().allocate(stream, 0, alignment);
    EXPECT_EQ(pointer, nullptr);
    this->resource().deallocate(stream, pointer, 0, alignment);
    this->resource().deallocate_sync(this->resource().allocate_sync(0, alignment), 0, alignment);
  }
  EXPECT_TRUE(this->allocator().totals().in_use.is_zero());
}

TYPED_TEST(ResourceContractTest, RefusesAPebibyteWithTheReportAndGoesOn) {
  const cudaStream_t stream = this->NewStream();
  const OwnerScope scope("tests/pebibyte", Role::kScratch);
  void* const before = this->resource().allocate(stream, 1'000'000, 256);
  constexpr size_t kPebibyte = size_t{1} << 50;
  try {
    (void)this->resource().allocate(stream, kPebibyte, 256);
    ADD_FAILURE() << "a pebibyte was allocated";
  } catch (const std::bad_alloc& error) {
    EXPECT_THAT(error.what(), HasSubstr("1,125,899,906,842,624 B"));
    EXPECT_THAT(error.what(), HasSubstr("tests/pebibyte"));
    EXPECT_NE(dynamic_cast<const OutOfMemoryError*>(&error), nullptr);
  }
  EXPECT_THROW((void)this->resource().allocate_sync(kPebibyte, 256), OutOfMemoryError);
  EXPECT_EQ(this->allocator().totals().in_use, Bytes(1'000'000u).RoundUpTo(512_B));
  EXPECT_EQ(this->allocator().CheckInvariants(), absl::OkStatus());
  void* const after = this->resource().allocate(stream, 1'000'000, 256);
  EXPECT_NE(after, before);
  this->resource().deallocate(stream, before, 1'000'000, 256);
  this->resource().deallocate(stream, after, 1'000'000, 256);
}

TYPED_TEST(ResourceContractTest, RefusesSizesThatDoNotFitInANumber) {
  const cudaStream_t stream = this->NewStream();
  for (const size_t bytes : {size_t{1} << 63, std::numeric_limits<size_t>::max() - 100, std::numeric_limits<size_t>::max()}) {
    EXPECT_THROW((void)this->resource().allocate(stream, bytes, 256), OutOfMemoryError) << bytes;
    EXPECT_THROW((void)this->resource().allocate(stream, bytes, 1 << 20), OutOfMemoryError) << bytes;
  }
  EXPECT_THROW((void)this->resource().allocate(stream, 1, size_t{1} << 63), OutOfMemoryError);
}

TYPED_TEST(ResourceContractTest, ServesUpToTheCapAndAgainAfterwards) {
  const cudaStream_t stream = this->NewStream();
  for (int round = 0; round < 3; ++round) {
    std::vector<void*> live;
    try {
      for (;;) live.push_back(this->resource().allocate(stream, 20'000'000, 256));
    } catch (const OutOfMemoryError&) {
    }
    EXPECT_GE(live.size(), 512u / 32);  // without mapping, a range of 32 MiB each
    for (void* const pointer : live) this->resource().deallocate(stream, pointer, 20'000'000, 256);
    EXPECT_LE(this->allocator().totals().reserved, kTestCap);
  }
}

TYPED_TEST(ResourceContractTest, MixedSizesKeepTheirContent) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  struct Live {
    void* pointer;
    size_t bytes;
    uint8_t value;
  };
  const cudaStream_t stream = this->NewStream();
  std::vector<Live> live;
  const auto deallocate = [&](size_t index) {
    const Live block = live[index];
    EXPECT_TRUE(Holds(block.pointer, block.bytes, block.value, stream));
    this->resource().deallocate(stream, block.pointer, block.bytes, 256);
    live[index] = live.back();
    live.pop_back();
  };
  for (int step = 0; step < 600; ++step) {
    if (live.empty() || (live.size() < 100 && random() % 100 < 55)) {
      const size_t bytes = 1 + random() % (size_t{1} << (random() % 23));
      const auto value = static_cast<uint8_t>(random());
      live.push_back({this->resource().allocate(stream, bytes, 256), bytes, value});
      Fill(live.back().pointer, bytes, value, stream);
    } else {
      deallocate(random() % live.size());
    }
  }
  while (!live.empty()) deallocate(live.size() - 1);
}

TYPED_TEST(ResourceContractTest, SynchronousCallsNeedNoStream) {
  const cudaStream_t first = this->NewStream(), second = this->NewStream();
  std::vector<void*> live;
  for (int i = 0; i < 20; ++i) live.push_back(this->resource().allocate_sync(10'000 + i, 256));
  for (int i = 0; i < 20; ++i) Fill(live[i], 10'000 + i, static_cast<uint8_t>(i), first);
  Synchronize(first);
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(Holds(live[i], 10'000 + i, static_cast<uint8_t>(i), second));
    this->resource().deallocate_sync(live[i], 10'000 + i, 256);
  }
}

TYPED_TEST(ResourceContractTest, EachWayOfAllocatingGoesWithEachWayOfDeallocating) {
  const cudaStream_t stream = this->NewStream();
  void* const ordered = this->resource().allocate(stream, 5000, 256);
  void* const synchronous = this->resource().allocate_sync(5000, 256);
  Synchronize(stream);
  this->resource().deallocate_sync(ordered, 5000, 256);
  this->resource().deallocate(stream, synchronous, 5000, 256);
}

TYPED_TEST(ResourceContractTest, ChargesTheOwnerOfTheCallingThread) {
  const cudaStream_t stream = this->NewStream();
  const OwnerScope scope("tests/resource_owner", Role::kQuantized);
  void* const pointer = this->resource().allocate(stream, 1000, 256);
  const Usage usage = this->allocator().ledger().usage(InternOwner("tests/resource_owner"), Role::kQuantized);
  EXPECT_EQ(usage.requested, 1000_B);
  EXPECT_EQ(usage.in_use, 1024_B);
  this->resource().deallocate(stream, pointer, 1000, 256);
}

}  // namespace
}  // namespace gpuledger::testing
