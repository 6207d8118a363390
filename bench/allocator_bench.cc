// An allocate-and-free pair with full records, beside glibc's malloc; and what it costs to ask the ledger.
#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpuledger/allocator.h"
#include "gpuledger/host_upstream.h"
#include "gpuledger/record.h"
#include "pairs.h"

namespace gpuledger {
namespace {

// Keeps the last 4096 records whole, as a recorder's buffer would.
class RingSink final : public RecordSink {
 public:
  void Write(const Record& record) noexcept override { ring_[record.sequence % ring_.size()] = record; }

 private:
  std::array<Record, 4096> ring_;
};

DevicePtr AllocateOrDie(CachingAllocator& allocator, uint64_t size, SiteId site) {
  absl::StatusOr<DevicePtr> block = allocator.AllocateRaw(Bytes(size), Stream::Default(DeviceId(0)), site);
  if (!block.ok()) Die(block.status().ToString());
  return *block;
}

// The caching allocator over anonymous host memory; each record has owner, site, time, thread and stream.
class Gpuledger {
 public:
  uint64_t Allocate(uint64_t size) { return AllocateOrDie(allocator_, size, site_).address(); }
  void Free(uint64_t block, uint64_t) { allocator_.Free(DevicePtr(DeviceId(0), block)); }

 private:
  HostAnonymousUpstream upstream_;
  RingSink sink_;
  CachingAllocator allocator_{upstream_, AllocatorOptions{}, &sink_};
  OwnerScope scope_{"bench/weight", Role::kActivation};
  SiteId site_ = SiteHere();
};

class Malloc {
 public:
  void* Allocate(uint64_t size) { return std::malloc(size); }
  void Free(void* block, uint64_t) { std::free(block); }
};

// usage(owner) while `writers` other threads allocate and free, each for an owner and on a size of its own.
void Usage(benchmark::State& state) {
  HostAnonymousUpstream upstream;
  RingSink sink;
  CachingAllocator allocator(upstream, AllocatorOptions{}, &sink);
  const OwnerScope scope("bench/reader", Role::kActivation);
  const OwnerId owner = InternOwner("bench/reader");
  const DevicePtr block = AllocateOrDie(allocator, 4096, kNoSite);

  std::atomic<bool> stop = false;
  std::vector<std::thread> writers;
  for (int64_t i = 0; i < state.range(0); ++i) {
    writers.emplace_back([&, i] {
      const OwnerScope writer("bench/writer" + std::to_string(i), Role::kActivation);
      while (!stop) allocator.Free(AllocateOrDie(allocator, 512u << i, kNoSite));
    });
  }
  for (auto _ : state) benchmark::DoNotOptimize(allocator.ledger().usage(owner));
  stop = true;
  for (std::thread& writer : writers) writer.join();
  allocator.Free(block);
}
BENCHMARK(Usage)->Name("usage/gpuledger")->ArgName("writers")->Arg(0)->Arg(1)->Arg(2)->UseRealTime();

[[maybe_unused]] const bool registered = [] {
  RegisterPairs<Gpuledger>("gpuledger");
  RegisterPairs<Malloc>("malloc");
  return true;
}();

}  // namespace
}  // namespace gpuledger
