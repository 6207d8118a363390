// Who keeps the memory: copies, references, type-erased forms, and when the last of them goes. What CCCL's containers do.
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "resource_cases.h"
#if CCCL_VERSION >= 3005000  // 3.2's buffer has to be compiled by nvcc
#include <cuda/buffer>
#endif

namespace gpuledger::testing {
namespace {

constexpr size_t kBytes = 3'000'000;

class ResourceOwnershipTest : public RuntimeTest {
 protected:
  static Bytes FreeOnDevice() {
    size_t free = 0, total = 0;
    EXPECT_EQ(CUDART(cudaMemGetInfo)(&free, &total), cudaSuccess);
    return Bytes(free);
  }
};

TEST_F(ResourceOwnershipTest, CopiesAreTheSameResource) {
  const RuntimeStream stream;
  MemoryResource first = OpenResource();
  MemoryResource second = first;
  EXPECT_TRUE(first == second);
  void* const pointer = first.allocate(stream.raw(), kBytes);
  EXPECT_EQ(&first.allocator(), &second.allocator());
  second.deallocate(stream.raw(), pointer, kBytes);

  MemoryResource other = OpenResource();
  EXPECT_TRUE(first != other);
  other = first;
  EXPECT_TRUE(first == other);
}

TEST_F(ResourceOwnershipTest, AMovedFromResourceIsStillOne) {
  const RuntimeStream stream;
  MemoryResource first = OpenResource();
  const MemoryResource second = std::move(first);
  EXPECT_TRUE(first == second);
  first.deallocate(stream.raw(), first.allocate(stream.raw(), kBytes), kBytes);
}

TEST_F(ResourceOwnershipTest, TheLastCopyGivesTheMemoryBack) {
  const RuntimeStream stream;
  OpenResource().deallocate_sync(nullptr, 0);  // what the first use of a device takes for good
  const Bytes before = FreeOnDevice();
  std::optional<MemoryResource> first = OpenResource();
  std::optional<::cuda::mr::any_resource<Accessible>> any(*first);
  std::optional<MemoryResource> copy(*first);
  void* const pointer = first->allocate(stream.raw(), 40'000'000);
  first.reset();
  copy.reset();
  EXPECT_LE(FreeOnDevice() + 38_MiB, before);
  Fill(pointer, 40'000'000, 3, stream.raw());
  EXPECT_TRUE(Holds(pointer, 40'000'000, 3, stream.raw()));
  any->deallocate(stream.raw(), pointer, 40'000'000, 256);
  any.reset();
  EXPECT_EQ(FreeOnDevice(), before);
}

TEST_F(ResourceOwnershipTest, ASharedAllocatorLivesAsLongAsEitherSide) {
  const RuntimeStream stream;
  struct Both {
    std::unique_ptr<CudaUpstream> upstream = CudaUpstream::Open(DeviceId(0)).value();
    CachingAllocator allocator{*upstream, AllocatorOptions{}};
  };
  auto both = std::make_shared<Both>();
  const std::weak_ptr<Both> watch = both;
  std::optional<MemoryResource> resource(std::shared_ptr<CachingAllocator>(both, &both->allocator));
  EXPECT_EQ(&resource->allocator(), &both->allocator);
  void* const pointer = resource->allocate(stream.raw(), kBytes);
  both.reset();
  EXPECT_FALSE(watch.expired());
  resource->deallocate(stream.raw(), pointer, kBytes);
  resource.reset();
  EXPECT_TRUE(watch.expired());
}

TEST_F(ResourceOwnershipTest, ResourcesOfOneAllocatorAreEqualAndLeaveItAlone) {
  const RuntimeStream stream;
  const std::unique_ptr<CudaUpstream> upstream = CudaUpstream::Open(DeviceId(0)).value();
  CachingAllocator allocator(*upstream, {});
  {
    MemoryResource first(allocator), second(allocator);
    EXPECT_TRUE(first == second);
    second.deallocate(stream.raw(), first.allocate(stream.raw(), kBytes), kBytes);
  }
  // It is there, with what it cached; blocks of the two ways in are each other's.
  EXPECT_FALSE(allocator.totals().cached.is_zero());
  const DevicePtr block = allocator.AllocateRaw(Bytes(kBytes), gpuledger::Stream(DeviceId(0), stream.raw())).value();
  MemoryResource(allocator).deallocate(stream.raw(), reinterpret_cast<void*>(block.address()), kBytes);
  EXPECT_TRUE(allocator.totals().in_use.is_zero());
}

TEST_F(ResourceOwnershipTest, TypeErasedFormsAreEqualIfTheirResourcesAre) {
  MemoryResource first = OpenResource(), second = OpenResource();
  using Any = ::cuda::mr::any_resource<Accessible>;
  using Ref = ::cuda::mr::resource_ref<Accessible>;
  EXPECT_TRUE(Any(first) == Any(MemoryResource(first)));
  EXPECT_FALSE(Any(first) == Any(second));
  EXPECT_TRUE(Ref(first) == Ref(first));
  EXPECT_FALSE(Ref(first) == Ref(second));
  EXPECT_TRUE(Ref(first) == Any(first));
  const auto shared = ::cuda::mr::make_shared_resource<MemoryResource>(first);
  EXPECT_TRUE(shared == ::cuda::mr::make_shared_resource<MemoryResource>(first));
  EXPECT_FALSE(shared == ::cuda::mr::make_shared_resource<MemoryResource>(second));
}

TEST_F(ResourceOwnershipTest, OpenNamesADeviceThatIsNotThere) {
  EXPECT_TRUE(absl::IsInvalidArgument(MemoryResource::Open(DeviceId(99)).status()));
}

TEST_F(ResourceOwnershipTest, ErrorsAreCopiedWithoutAnException) {
  static_assert(std::is_nothrow_copy_constructible_v<OutOfMemoryError>);
  const OutOfMemoryError error(absl::ResourceExhaustedError("the report"));
  const OutOfMemoryError copy = error;
  EXPECT_STREQ(copy.what(), "the report");
  EXPECT_EQ(copy.status(), error.status());
}

#if CCCL_VERSION >= 3005000
TEST_F(ResourceOwnershipTest, ACcclBufferLivesOnIt) {
  const RuntimeStream stream;
  MemoryResource resource = OpenResource();
  const OwnerScope scope("tests/buffer", Role::kActivation);
  {
    const auto buffer = ::cuda::make_buffer<float>(::cuda::stream_ref(stream.raw()), resource, 1000, ::cuda::no_init);
    EXPECT_EQ(buffer.size(), 1000u);
    EXPECT_EQ(resource.allocator().ledger().usage(InternOwner("tests/buffer")).requested, 4000_B);
  }
  EXPECT_TRUE(resource.allocator().totals().in_use.is_zero());
}
#endif

}  // namespace
}  // namespace gpuledger::testing
