// A pattern in every block: kernels write it at allocation and check it at use and at free, on several streams, while
// blocks are reused, ranges grow, and handles move between them. One wrong word is a failure.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "device.cuh"
#include "gpuledger/allocator.h"

namespace gpuledger::gpu {
namespace {

constexpr int kStreams = 4;
using Streams = std::array<OwnStream, kStreams>;  // declared before their allocator: its end still asks for them

struct LiveBlock {
  DevicePtr address;
  uint64_t words, seed;
  int stream;
};

class PatternTest : public DeviceTest, public testing::WithParamInterface<bool> {
 protected:
  // Random blocks under a cap; how many patterns were checked.
  uint64_t Churn(CachingAllocator& allocator, const Streams& streams, uint64_t operations, uint64_t seed,
                 WrongWords& wrong) {
    std::mt19937_64 random(seed);
    std::vector<LiveBlock> live;
    uint64_t next_seed = 0, checks = 0;
    cudaEvent_t event = nullptr;
    EXPECT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    const auto check = [&](const LiveBlock& block, int stream) {
      CheckPattern<<<BlocksFor(block.words), 256, 0, streams[stream].raw()>>>(WordsAt(block.address), block.words,
                                                                              block.seed, wrong.device());
      ++checks;
    };
    const auto free_one = [&](size_t which) {
      check(live[which], live[which].stream);
      allocator.Free(live[which].address);
      live[which] = live.back();
      live.pop_back();
    };
    for (uint64_t i = 0; i < operations && !HasFailure(); ++i) {
      const uint64_t dice = random() % 100;
      if (dice < 45 || live.empty()) {
        const int stream = static_cast<int>(random() % kStreams);
        const uint64_t shift = random() % 22;  // 8 B to 16 MiB
        const uint64_t words = 1 + random() % (uint64_t{1} << shift);
        const absl::StatusOr<DevicePtr> block = allocator.AllocateRaw(Bytes(words * 8), streams[stream].stream());
        if (!block.ok()) {
          EXPECT_TRUE(absl::IsResourceExhausted(block.status())) << block.status();
          for (int n = 0; n < 8 && !live.empty(); ++n) free_one(random() % live.size());
          continue;
        }
        live.push_back({*block, words, ++next_seed, stream});
        WritePattern<<<BlocksFor(words), 256, 0, streams[stream].raw()>>>(WordsAt(*block), words, next_seed);
      } else if (dice < 75) {
        free_one(random() % live.size());
      } else if (dice < 95) {  // another stream reads the block, after its own has written it
        const LiveBlock& block = live[random() % live.size()];
        const int other = static_cast<int>(random() % kStreams);
        EXPECT_CUDA(cudaEventRecord(event, streams[block.stream].raw()));
        EXPECT_CUDA(cudaStreamWaitEvent(streams[other].raw(), event, 0));
        check(block, other);
        EXPECT_TRUE(allocator.RecordStream(block.address, streams[other].stream()).ok());
      } else if (dice < 99) {
        allocator.CompletePending();
      } else {
        allocator.ReleaseCached();
      }
      if (i % 4096 == 0) {
        EXPECT_TRUE(allocator.CheckInvariants().ok());
      }
    }
    EXPECT_CUDA(cudaGetLastError());
    while (!live.empty()) free_one(live.size() - 1);
    EXPECT_TRUE(allocator.Settle().ok());
    EXPECT_CUDA(cudaEventDestroy(event));
    return checks;
  }
};

TEST_P(PatternTest, NoWordOfAnyBlockIsEverWrong) {
  const char* const text = std::getenv("GPULEDGER_GPU_OPERATIONS");
  const uint64_t operations = text != nullptr ? std::strtoull(text, nullptr, 10) : 60'000;
  const uint64_t seed = std::random_device{}();
  std::printf("seed %llu, %llu operations\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(operations));
  const std::unique_ptr<CudaUpstream> cuda = *CudaUpstream::Open(DeviceId(0), {.mapping = GetParam()});
  WrongWords wrong;
  AllocatorOptions options;
  options.cap = 768_MiB;  // small, so that handles move and pending work is waited for
  const Streams streams;
  CachingAllocator allocator(*cuda, options);
  const uint64_t checks = Churn(allocator, streams, operations, seed, wrong);
  EXPECT_EQ(wrong.Count(), 0u);
  EXPECT_GT(checks, operations / 4);
  RecordProperty("patterns_checked", std::to_string(checks));
  RecordProperty("upstream_calls", std::to_string(allocator.totals().upstream_calls));
}

TEST_P(PatternTest, AWriteThroughAFreedBlockIsFound) {  // the check is able to fail
  const std::unique_ptr<CudaUpstream> cuda = *CudaUpstream::Open(DeviceId(0), {.mapping = GetParam()});
  WrongWords wrong;
  const OwnStream own;
  CachingAllocator allocator(*cuda, {});
  constexpr uint64_t kWords = 1000;
  const DevicePtr freed = allocator.AllocateRaw(Bytes(kWords * 8), own.stream()).value();
  allocator.Free(freed);
  const DevicePtr next = allocator.AllocateRaw(Bytes(kWords * 8), own.stream()).value();
  ASSERT_EQ(next, freed);
  WritePattern<<<4, 256, 0, own.raw()>>>(WordsAt(next), kWords, 1);
  WritePattern<<<1, 1, 0, own.raw()>>>(WordsAt(freed), 10, 2);
  CheckPattern<<<4, 256, 0, own.raw()>>>(WordsAt(next), kWords, 1, wrong.device());
  EXPECT_EQ(wrong.Count(), 10u);
  allocator.Free(next);
}

INSTANTIATE_TEST_SUITE_P(, PatternTest, testing::Bool(),
                         [](const auto& given) { return given.param ? "Mapping" : "WithoutMapping"; });

}  // namespace
}  // namespace gpuledger::gpu
