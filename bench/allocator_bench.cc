// An allocate-and-free pair with full records, beside glibc's malloc; and what it costs to ask the ledger.
#include <cstdlib>
#include <string>

#include "gpuledger/allocator.h"
#include "gpuledger/host_upstream.h"
#include "pairs.h"
#include "ring_sink.h"
#include "usage.h"

namespace gpuledger {
namespace {

// The caching allocator over anonymous host memory; each record has owner, site, time, thread and stream.
class Gpuledger {
 public:
  class Lane {
   public:
    Lane(Gpuledger& source, int thread)
        : allocator_(source.allocator_), scope_("bench/thread" + std::to_string(thread), Role::kActivation) {}
    uint64_t Allocate(uint64_t size) {
      const absl::StatusOr<DevicePtr> block = allocator_.AllocateRaw(Bytes(size), Stream::Default(DeviceId(0)), site_);
      if (!block.ok()) Die(block.status().ToString());
      return block->address();
    }
    void Free(uint64_t block, uint64_t) { allocator_.Free(DevicePtr(DeviceId(0), block)); }

   private:
    CachingAllocator& allocator_;
    const OwnerScope scope_;
    const SiteId site_ = SiteHere();
  };

  void Ask() { benchmark::DoNotOptimize(allocator_.ledger().usage(owner_)); }

 private:
  HostAnonymousUpstream upstream_;
  RingSink sink_;
  CachingAllocator allocator_{upstream_, AllocatorOptions{}, &sink_};
  OwnerId owner_ = InternOwner("bench/thread0");
};

class Malloc {
 public:
  struct Lane {
    Lane(Malloc&, int) {}
    void* Allocate(uint64_t size) { return std::malloc(size); }
    void Free(void* block, uint64_t) { std::free(block); }
  };
};

[[maybe_unused]] const bool registered = [] {
  RegisterPairs<Gpuledger>("gpuledger");
  RegisterPairs<Malloc>("malloc");
  RegisterUsage<Gpuledger>("gpuledger");
  return true;
}();

}  // namespace
}  // namespace gpuledger
