// What compute-sanitizer looks at: an allocator's blocks, announced as such, and kernels that use them.
//
//   sanitized clean|freed|overflow [mapping|whole]
//
// clean uses blocks as it should; freed writes into a block after its free; overflow one word behind a block. `whole`
// buys ranges with their memory (cuMemAlloc) instead of mapping handles.
#include <cstdio>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "device.cuh"
#include "gpuledger/allocator.h"
#include "gpuledger/forwarding_upstream.h"
#include "nvtx_heaps.h"

namespace gpuledger::gpu {
namespace {

// Handles of 32 MiB: all blocks of the program lie within one, as NvtxHeaps wants it.
class LargeGranules final : public ForwardingUpstream {
 public:
  using ForwardingUpstream::ForwardingUpstream;
  Bytes granularity() const override { return 32_MiB; }
};

bool Churn(CachingAllocator& allocator, const OwnStream& own, WrongWords& wrong) {
  OwnerScope scope("sanitized/churn", Role::kScratch);
  std::mt19937_64 random(7);
  struct Live {
    DevicePtr address;
    uint64_t words, seed;
  };
  std::vector<Live> live;
  for (uint64_t i = 0; i < 300; ++i) {
    if (live.size() < 20 && random() % 2 == 0) {
      const uint64_t words = 1 + random() % 20000;
      const absl::StatusOr<DevicePtr> block = allocator.AllocateRaw(Bytes(words * 8), own.stream());
      if (!block.ok()) return false;
      live.push_back({*block, words, i});
      WritePattern<<<BlocksFor(words), 256, 0, own.raw()>>>(WordsAt(*block), words, i);
    } else if (!live.empty()) {
      const size_t which = random() % live.size();
      CheckPattern<<<BlocksFor(live[which].words), 256, 0, own.raw()>>>(WordsAt(live[which].address), live[which].words,
                                                                        live[which].seed, wrong.device());
      // The tool takes a block away at once, not in the order of the stream: so the kernels must be done.
      if (cudaStreamSynchronize(own.raw()) != cudaSuccess) return false;
      allocator.Free(live[which].address);
      live[which] = live.back();
      live.pop_back();
    }
  }
  if (cudaStreamSynchronize(own.raw()) != cudaSuccess) return false;
  for (const Live& block : live) allocator.Free(block.address);
  return wrong.Count() == 0;
}

int Run(std::string_view what, bool mapping) {
  if (const std::string why = WhyNoDevice(); !why.empty()) {
    std::printf("skipped: %s\n", why.c_str());
    return 77;
  }
  const absl::StatusOr<std::unique_ptr<CudaUpstream>> cuda = CudaUpstream::Open(DeviceId(0), {.mapping = mapping});
  if (!cuda.ok()) {
    std::printf("%s\n", cuda.status().ToString().c_str());
    return 1;
  }
  LargeGranules large(**cuda);
  NvtxHeaps heaps;
  bool good = true;
  {
    const OwnStream own;  // before the allocator, whose end still asks for it
    CachingAllocator allocator(large, {}, &heaps);
    WrongWords wrong;
    good = Churn(allocator, own, wrong);
    OwnerScope scope("sanitized/planted", Role::kScratch);
    constexpr uint64_t kWords = 1000;
    const DevicePtr block = allocator.AllocateRaw(Bytes(kWords * 8), own.stream()).value();
    if (what == "freed") {
      allocator.Free(block);
      WritePattern<<<1, 1, 0, own.raw()>>>(WordsAt(block), 1, 0);
    } else {
      WritePattern<<<1, 1, 0, own.raw()>>>(WordsAt(block), what == "overflow" ? kWords + 1 : kWords, 0);
    }
    std::printf("%s, %s: %s, a tool %s\n", std::string(what).c_str(), mapping ? "mapping" : "whole",
                good ? "no wrong word" : "WRONG", heaps.has_tool() ? "listens" : "does not listen");
    cudaStreamSynchronize(own.raw());  // after an error of the tool the context may be lost
    if (what != "freed") allocator.Free(block);
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace gpuledger::gpu

int main(int argc, char** argv) {
  const std::string_view what = argc > 1 ? argv[1] : "", how = argc > 2 ? argv[2] : "mapping";
  if ((what != "clean" && what != "freed" && what != "overflow") || (how != "mapping" && how != "whole")) {
    std::fprintf(stderr, "usage: sanitized clean|freed|overflow [mapping|whole]\n");
    return 2;
  }
  return gpuledger::gpu::Run(what, how == "mapping");
}
