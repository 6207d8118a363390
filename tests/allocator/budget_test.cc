// A cache hit costs no upstream call and no host allocation: counted, not timed.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "ring_sink.h"

namespace {
thread_local uint64_t host_allocations = 0;
}

// Replaced for the whole program; g++ cannot know that new and delete below belong together.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void* operator new(size_t size) {
  ++host_allocations;
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace gpuledger {
namespace {

TEST(BudgetTest, AHitMakesNoUpstreamCallAndNoHostAllocation) {
  FakeUpstream upstream;
  RingSink sink;
  CachingAllocator allocator(upstream, AllocatorOptions{}, &sink);
  const Stream stream = Stream::Default(DeviceId{0});
  OwnerScope scope("budget/owner", Role::kActivation);
  const uint64_t sizes[] = {512, 70'000, 1 << 20};
  const auto round = [&] {
    DevicePtr blocks[3] = {*allocator.AllocateRaw(Bytes(sizes[0]), stream), *allocator.AllocateRaw(Bytes(sizes[1]), stream),
                           *allocator.AllocateRaw(Bytes(sizes[2]), stream)};
    for (const DevicePtr block : blocks) allocator.Free(block);
  };
  for (int i = 0; i < 10; ++i) round();  // until the thread has its caches, and its budgets of the ledger
  const uint64_t calls = allocator.totals().upstream_calls, allocations = host_allocations;
  for (int i = 0; i < 100; ++i) round();
  EXPECT_EQ(allocator.totals().upstream_calls, calls);
  EXPECT_EQ(host_allocations, allocations);
}

}  // namespace
}  // namespace gpuledger
