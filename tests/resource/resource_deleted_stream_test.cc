// Streams that are destroyed before the resource. The fake driver ends the program at any call on such a stream, and a real
// one crashes: that these tests end at all is the proof that no such call is made.
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "resource_cases.h"

namespace gpuledger::testing {
namespace {

constexpr size_t kBytes = 3'000'000;

template <class Case>
class ResourceDeletedStreamTest : public ResourceContractTest<Case> {
 protected:
  void* AllocateFilled(cudaStream_t stream, size_t bytes, uint8_t value) {
    void* const pointer = this->resource().allocate(stream, bytes, 256);
    Fill(pointer, bytes, value, stream);
    return pointer;
  }
};
TYPED_TEST_SUITE(ResourceDeletedStreamTest, AllCases);

TYPED_TEST(ResourceDeletedStreamTest, ABlockOutlivesItsStreamAndGoesBackOnIt) {
  RuntimeStream stream;
  const cudaStream_t dead = stream.raw(), other = this->NewStream();
  void* const pointer = this->AllocateFilled(dead, kBytes, 5);
  Synchronize(dead);
  stream.Destroy();
  EXPECT_TRUE(Holds(pointer, kBytes, 5, other));
  this->resource().deallocate(dead, pointer, kBytes, 256);
  EXPECT_TRUE(this->allocator().totals().in_use.is_zero());
  this->resource().deallocate(other, this->AllocateFilled(other, kBytes, 6), kBytes, 256);
}

TYPED_TEST(ResourceDeletedStreamTest, ABlockOutlivesItsStreamAndGoesBackOnAnother) {
  RuntimeStream stream;
  const cudaStream_t dead = stream.raw(), other = this->NewStream();
  void* const pointer = this->AllocateFilled(dead, kBytes, 5);
  Synchronize(dead);
  stream.Destroy();
  this->resource().deallocate(other, pointer, kBytes, 256);
  this->resource().deallocate_sync(this->resource().allocate_sync(kBytes, 256), kBytes, 256);
  EXPECT_TRUE(this->allocator().Settle().ok());
  EXPECT_TRUE(this->allocator().totals().pending.is_zero());
}

TYPED_TEST(ResourceDeletedStreamTest, OthersAreServedWhenAStreamWithCachedMemoryIsGone) {
  const cudaStream_t other = this->NewStream();
  for (int round = 0; round < 3; ++round) {  // the handle may come back as another stream's
    RuntimeStream stream;
    const cudaStream_t dead = stream.raw();
    std::vector<void*> cached;
    for (int i = 0; i < 5; ++i) cached.push_back(this->AllocateFilled(dead, kBytes, 1));
    for (void* const pointer : cached) this->resource().deallocate(dead, pointer, kBytes, 256);
    Synchronize(dead);
    stream.Destroy();
    void* const pointer = this->AllocateFilled(other, kBytes, 2);
    EXPECT_TRUE(Holds(pointer, kBytes, 2, other));
    this->resource().deallocate(other, pointer, kBytes, 256);
    EXPECT_EQ(this->allocator().CheckInvariants(), absl::OkStatus());
  }
}

// The same as it should be done: the allocator is told before.
TYPED_TEST(ResourceDeletedStreamTest, WhatARetiredStreamHadCachedGoesToOthers) {
  MemoryResource resource(this->allocator());
  const cudaStream_t other = this->NewStream();
  RuntimeStream stream;
  const size_t most = 400u << 20;  // of the cap of 512 MiB
  this->resource().deallocate(stream.raw(), this->resource().allocate(stream.raw(), most, 256), most, 256);
  ASSERT_EQ(resource.RetireStream(stream.raw()), absl::OkStatus());
  stream.Destroy();
  this->resource().deallocate(other, this->resource().allocate(other, 300u << 20, 256), 300u << 20, 256);
  EXPECT_LE(this->allocator().totals().reserved, kTestCap);
}

TYPED_TEST(ResourceDeletedStreamTest, ABlockInUseOutlivesItsRetiredStream) {
  MemoryResource resource(this->allocator());
  const cudaStream_t other = this->NewStream();
  for (int round = 0; round < 3; ++round) {  // the handle may come back as another stream's
    RuntimeStream stream;
    const cudaStream_t dead = stream.raw();
    void* const first = this->AllocateFilled(dead, kBytes, 5);
    void* const second = this->AllocateFilled(dead, kBytes, 6);
    ASSERT_EQ(resource.RetireStream(dead), absl::OkStatus());
    stream.Destroy();
    EXPECT_TRUE(Holds(first, kBytes, 5, other));
    EXPECT_TRUE(Holds(second, kBytes, 6, other));
    this->resource().deallocate(other, first, kBytes, 256);
    this->resource().deallocate_sync(second, kBytes, 256);
  }
  EXPECT_TRUE(this->allocator().Settle().ok());
  EXPECT_TRUE(this->allocator().totals().pending.is_zero());
}

TYPED_TEST(ResourceDeletedStreamTest, ShortOfMemoryItTakesThatOfAStreamThatIsGone) {
  const cudaStream_t other = this->NewStream();
  RuntimeStream stream;
  const cudaStream_t dead = stream.raw();
  const size_t most = 400u << 20;
  this->resource().deallocate(dead, this->resource().allocate(dead, most, 256), most, 256);
  Synchronize(dead);
  stream.Destroy();
  std::string answer = "served";
  try {
    this->resource().deallocate(other, this->resource().allocate(other, 300u << 20, 256), 300u << 20, 256);
  } catch (const OutOfMemoryError& error) {
    answer = "out of memory";
  }
  EXPECT_EQ(answer, "served");
  EXPECT_EQ(this->allocator().CheckInvariants(), absl::OkStatus());
  this->resource().deallocate(other, this->resource().allocate(other, 50u << 20, 256), 50u << 20, 256);
}

TYPED_TEST(ResourceDeletedStreamTest, AllMemoryGoesBackAtTheEnd) {
  size_t before = 0, after = 0, total = 0;
  ASSERT_EQ(CUDART(cudaMemGetInfo)(&before, &total), cudaSuccess);
  {
    TypeParam one;
    RuntimeStream stream;
    one.held.deallocate(stream.raw(), one.held.allocate(stream.raw(), kBytes, 256), kBytes, 256);
    Synchronize(stream.raw());
    stream.Destroy();
  }
  ASSERT_EQ(CUDART(cudaMemGetInfo)(&after, &total), cudaSuccess);
  EXPECT_EQ(after, before);
}

}  // namespace
}  // namespace gpuledger::testing
