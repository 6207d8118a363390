// The contract between streams: memory freed behind work of another stream, synchronous calls, captures, devices.
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "resource_cases.h"

namespace gpuledger::testing {
namespace {

constexpr size_t kBytes = 3'000'000;

template <class Case>
class ResourceStreamsTest : public ResourceContractTest<Case> {};
TYPED_TEST_SUITE(ResourceStreamsTest, AllCases);

TYPED_TEST(ResourceStreamsTest, MemoryIsReusedAtOnceOnItsOwnStream) {
  const cudaStream_t stream = this->NewStream();
  void* const pointer = this->resource().allocate(stream, kBytes, 256);
  HeldStream held(stream);
  this->resource().deallocate(stream, pointer, kBytes, 256);
  void* const again = this->resource().allocate(stream, kBytes, 256);
  EXPECT_EQ(again, pointer);
  this->resource().deallocate(stream, again, kBytes, 256);
}

TYPED_TEST(ResourceStreamsTest, MemoryFreedOnAnotherStreamWaitsForThatOne) {
  const cudaStream_t own = this->NewStream(), other = this->NewStream();
  void* const pointer = this->resource().allocate(own, kBytes, 256);
  HeldStream held(other);
  Fill(pointer, kBytes, 1, other);
  this->resource().deallocate(other, pointer, kBytes, 256);
  EXPECT_EQ(this->allocator().totals().pending, Bytes(kBytes).RoundUpTo(512_B));

  // Neither stream gets it while the work behind which it was freed is queued.
  void* const meanwhile = this->resource().allocate(own, kBytes, 256);
  void* const on_other = this->resource().allocate(other, kBytes, 256);
  EXPECT_NE(meanwhile, pointer);
  EXPECT_NE(on_other, pointer);
  held.Release();
  this->resource().deallocate(other, on_other, kBytes, 256);
  EXPECT_GT(this->allocator().CompletePending(), 0u);
  EXPECT_TRUE(this->allocator().totals().pending.is_zero());
  void* const again = this->resource().allocate(own, kBytes, 256);
  EXPECT_EQ(again, pointer);
  this->resource().deallocate(own, again, kBytes, 256);
  this->resource().deallocate(own, meanwhile, kBytes, 256);
}

TYPED_TEST(ResourceStreamsTest, SynchronousMemoryFreedOnAStreamWaitsForIt) {
  const cudaStream_t stream = this->NewStream();
  void* const pointer = this->resource().allocate_sync(kBytes, 256);
  HeldStream held(stream);
  Fill(pointer, kBytes, 1, stream);
  this->resource().deallocate(stream, pointer, kBytes, 256);
  EXPECT_FALSE(this->allocator().totals().pending.is_zero());
  void* const other = this->resource().allocate_sync(kBytes, 256);
  EXPECT_NE(other, pointer);
  held.Release();
  this->resource().deallocate_sync(other, kBytes, 256);
}

TYPED_TEST(ResourceStreamsTest, AnAlignedBlockFreedOnAnotherStreamIsFoundByItsAddress) {
  const cudaStream_t own = this->NewStream(), other = this->NewStream();
  std::vector<void*> live;
  for (int i = 0; i < 20; ++i) live.push_back(this->resource().allocate(own, 5000, 64 << 10));
  for (void* const pointer : live) this->resource().deallocate(other, pointer, 5000, 64 << 10);
  EXPECT_TRUE(this->allocator().totals().in_use.is_zero());
}

TYPED_TEST(ResourceStreamsTest, EachThreadsPerThreadDefaultStreamHasItsOwnMemory) {
  void* const mine = this->resource().allocate(cudaStreamPerThread, kBytes, 256);
  HeldStream held(cudaStreamPerThread);
  Fill(mine, kBytes, 7, cudaStreamPerThread);
  this->resource().deallocate(cudaStreamPerThread, mine, kBytes, 256);
  EXPECT_TRUE(this->allocator().totals().pending.is_zero());
  std::thread([&] {
    void* const theirs = this->resource().allocate(cudaStreamPerThread, kBytes, 256);
    EXPECT_NE(theirs, mine);  // this thread's work on it is not done
    this->resource().deallocate(cudaStreamPerThread, theirs, kBytes, 256);
  }).join();
  void* const again = this->resource().allocate(cudaStreamPerThread, kBytes, 256);
  EXPECT_EQ(again, mine);
  this->resource().deallocate(cudaStreamPerThread, again, kBytes, 256);
}

TYPED_TEST(ResourceStreamsTest, TheLegacyDefaultStreamHasTwoNames) {
  void* const pointer = this->resource().allocate(cudaStreamLegacy, kBytes, 256);
  this->resource().deallocate(cudaStream_t{}, pointer, kBytes, 256);
  EXPECT_TRUE(this->allocator().totals().pending.is_zero());
  EXPECT_EQ(this->resource().allocate(cudaStream_t{}, kBytes, 256), pointer);
  this->resource().deallocate(cudaStreamLegacy, pointer, kBytes, 256);
}

class ResourceSyncTest : public RuntimeTest {};

TEST_F(ResourceSyncTest, SynchronousCallsWaitForTheDefaultStream) {
  if (!Machine::Get().fake()) GTEST_SKIP() << "needs the fake's count of calls";
  MemoryResource resource = OpenResource();
  uint64_t waits = Machine::Get().Calls("cuEventSynchronize");
  void* const pointer = resource.allocate_sync(kBytes);
  EXPECT_EQ(Machine::Get().Calls("cuEventSynchronize"), ++waits);
  resource.deallocate_sync(pointer, kBytes);
  EXPECT_EQ(Machine::Get().Calls("cuEventSynchronize"), ++waits);
  const RuntimeStream stream;
  void* const ordered = resource.allocate(cudaStreamLegacy, kBytes);
  resource.deallocate(cudaStreamLegacy, ordered, kBytes);
  EXPECT_EQ(Machine::Get().Calls("cuEventSynchronize"), waits);
}

TEST_F(ResourceSyncTest, WhereACaptureForbidsWaitingSynchronousCallsSaySoAndTakeNothing) {
  RuntimeStream captured;
  {
    MemoryResource resource = OpenResource();
    void* const before = resource.allocate_sync(kBytes);
    ASSERT_EQ(CUDART(cudaStreamBeginCapture)(captured.raw(), cudaStreamCaptureModeRelaxed), cudaSuccess);
    cudaStream_t blocking = nullptr;
    ASSERT_EQ(CUDART(cudaStreamCreate)(&blocking), cudaSuccess);
    ASSERT_EQ(CUDART(cudaStreamBeginCapture)(blocking, cudaStreamCaptureModeRelaxed), cudaSuccess);
    const Bytes in_use = resource.allocator().totals().in_use;
    cudaGraph_t graph = nullptr;
    try {
      (void)resource.allocate_sync(kBytes);
      ADD_FAILURE() << "the default stream was waited for in a capture";
    } catch (const AllocationError& error) {
      EXPECT_EQ(error.status().code(), absl::StatusCode::kFailedPrecondition) << error.what();
    }
    EXPECT_EQ(resource.allocator().totals().in_use, in_use);
    resource.deallocate_sync(before, kBytes);  // never throws
    EXPECT_TRUE(resource.allocator().totals().in_use.is_zero());
    // The captures went on.
    EXPECT_EQ(CUDART(cudaStreamEndCapture)(captured.raw(), &graph), cudaSuccess);
    EXPECT_EQ(CUDART(cudaGraphDestroy)(graph), cudaSuccess);
    EXPECT_EQ(CUDART(cudaStreamEndCapture)(blocking, &graph), cudaSuccess);
    EXPECT_EQ(CUDART(cudaGraphDestroy)(graph), cudaSuccess);
    EXPECT_EQ(CUDART(cudaStreamDestroy)(blocking), cudaSuccess);
  }
}

TEST_F(ResourceSyncTest, ADriverThatFailsIsAnAllocationErrorAndNoLackOfMemory) {
  if (!Machine::Get().fake()) GTEST_SKIP() << "needs the faults of the fake driver";
  const RuntimeStream stream;
  MemoryResource resource = OpenResource();
  Machine::Get().InjectFaults("cuMemMap:1=999");
  try {
    (void)resource.allocate(stream.raw(), kBytes);
    ADD_FAILURE() << "the fault was not noticed";
  } catch (const OutOfMemoryError& error) {
    ADD_FAILURE() << error.what();
  } catch (const AllocationError& error) {
    EXPECT_EQ(error.status().code(), absl::StatusCode::kInternal) << error.what();
    EXPECT_EQ(std::string(error.what()), std::string(error.status().message()));
  }
  Machine::Get().ClearFaults();
  resource.deallocate(stream.raw(), resource.allocate(stream.raw(), kBytes), kBytes);
}

class ResourceDevicesTest : public RuntimeTest {};

TEST_F(ResourceDevicesTest, EachDeviceHasAResourceOfItsOwn) {
  if (DeviceCount() < 2) GTEST_SKIP() << "one device here";
  const RuntimeStream streams[] = {RuntimeStream(0), RuntimeStream(1)};
  MemoryResource resources[] = {OpenResource(0), OpenResource(1)};
  EXPECT_FALSE(resources[0] == resources[1]);
  for (int device = 0; device < 2; ++device) {
    // Whatever device is current.
    for (int current = 0; current < 2; ++current) {
      ASSERT_EQ(CUDART(cudaSetDevice)(current), cudaSuccess);
      void* const pointer = resources[device].allocate(streams[device].raw(), kBytes);
      cudaPointerAttributes attributes{};
      EXPECT_EQ(CUDART(cudaPointerGetAttributes)(&attributes, pointer), cudaSuccess);
      EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
      EXPECT_EQ(attributes.device, device);
      EXPECT_TRUE(resources[1 - device].allocator().totals().in_use.is_zero());
      resources[device].deallocate(streams[device].raw(), pointer, kBytes);
      resources[device].deallocate_sync(resources[device].allocate_sync(kBytes), kBytes);
      int now = -1;
      EXPECT_EQ(CUDART(cudaGetDevice)(&now), cudaSuccess);
      EXPECT_EQ(now, current);
    }
  }
  ASSERT_EQ(CUDART(cudaSetDevice)(0), cudaSuccess);
}

}  // namespace
}  // namespace gpuledger::testing
