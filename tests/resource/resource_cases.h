// The forms in which a program can have the resource, over which the contract suite is typed.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "gpuledger/resource.h"
#include "runtime.h"

namespace gpuledger::testing {

using Accessible = ::cuda::mr::device_accessible;
static_assert(::cuda::mr::resource_with<::cuda::mr::resource_ref<Accessible>, Accessible>);

inline constexpr Bytes kTestCap = 512_MiB;  // of a device of 2 GiB, if it is the fake's

inline MemoryResource OpenResource(int device = 0, const CudaOptions& options = {}, Bytes cap = kTestCap) {
  return MemoryResource::Open(DeviceId(device), {.cap = cap}, options).value();
}

// Each has `held`, through which the suite goes, and `allocator()`, whose books it looks at.
struct ItsOwnAllocator {
  MemoryResource held = OpenResource();
  CachingAllocator& allocator() { return held.allocator(); }
};

struct WithoutMapping {
  MemoryResource held = OpenResource(0, {.mapping = false});
  CachingAllocator& allocator() { return held.allocator(); }
};

struct AnAllocatorOfSomebody {
  std::unique_ptr<CudaUpstream> upstream = CudaUpstream::Open(DeviceId(0)).value();
  CachingAllocator its_allocator{*upstream, AllocatorOptions{.cap = kTestCap, .streams_may_vanish = true}};
  MemoryResource held{its_allocator};
  CachingAllocator& allocator() { return its_allocator; }
};

struct ThroughResourceRef {
  MemoryResource resource = OpenResource();
  ::cuda::mr::resource_ref<Accessible> held{resource};
  CachingAllocator& allocator() { return resource.allocator(); }
};

struct ThroughAnyResource {
  MemoryResource resource = OpenResource();
  ::cuda::mr::any_resource<Accessible> held{resource};
  CachingAllocator& allocator() { return resource.allocator(); }
};

struct ThroughSharedResource {
  MemoryResource resource = OpenResource();
  ::cuda::mr::shared_resource<MemoryResource> held = ::cuda::mr::make_shared_resource<MemoryResource>(resource);
  CachingAllocator& allocator() { return resource.allocator(); }
};

using AllCases = ::testing::Types<ItsOwnAllocator, WithoutMapping, AnAllocatorOfSomebody, ThroughResourceRef, ThroughAnyResource,
                                  ThroughSharedResource>;

// One case at a time; at the end everything must have been given back, and the books must be right.
template <class Case>
class ResourceContractTest : public RuntimeTest {
 protected:
  void SetUp() override {
    RuntimeTest::SetUp();
    if (!IsSkipped()) case_.emplace();
  }
  void TearDown() override {
    RuntimeTest::TearDown();
    if (!case_) return;
    EXPECT_TRUE(allocator().Settle().ok());
    EXPECT_TRUE(allocator().totals().in_use.is_zero());
    EXPECT_EQ(allocator().CheckInvariants(), absl::OkStatus());
  }

  auto& resource() { return case_->held; }
  CachingAllocator& allocator() { return case_->allocator(); }
  // A stream that outlives the resource. Thread-safe.
  cudaStream_t NewStream() {
    const std::lock_guard lock(mutex_);
    return streams_.emplace_back().raw();
  }

 private:
  std::mutex mutex_;
  std::deque<RuntimeStream> streams_;
  std::optional<Case> case_;
};

}  // namespace gpuledger::testing
