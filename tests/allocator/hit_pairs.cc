// What instruction_budget.py counts: allocate-and-free pairs of 512 B that hit, records written in full.
//
//   hit_pairs COUNT      ends with 1 if one of the pairs made an upstream call
#include <cstdint>
#include <cstdlib>

#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "ring_sink.h"

namespace gpuledger {
namespace {

[[gnu::always_inline]] inline void Pairs(CachingAllocator& allocator, Stream stream, SiteId site, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const absl::StatusOr<DevicePtr> block = allocator.AllocateRaw(Bytes(512u), stream, site);
    if (!block.ok()) std::abort();
    allocator.Free(*block);
  }
}

// callgrind counts inside it, by its name.
extern "C" [[gnu::noinline]] void CountedPairs(CachingAllocator& allocator, Stream stream, SiteId site, uint64_t count) {
  Pairs(allocator, stream, site, count);
}

int Run(uint64_t count) {
  FakeUpstream upstream;
  RingSink sink;
  CachingAllocator allocator(upstream, AllocatorOptions{}, &sink);
  const Stream stream = Stream::Default(DeviceId{0});
  const OwnerScope scope("budget/owner", Role::kActivation);
  const SiteId site = SiteHere();
  Pairs(allocator, stream, site, 10'000);  // caches fill and memory grows outside of what is counted
  const uint64_t calls = allocator.totals().upstream_calls;
  CountedPairs(allocator, stream, site, count);
  return allocator.totals().upstream_calls == calls ? 0 : 1;
}

}  // namespace
}  // namespace gpuledger

int main(int argc, char** argv) { return argc == 2 ? gpuledger::Run(std::strtoull(argv[1], nullptr, 10)) : 2; }
