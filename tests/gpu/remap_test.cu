// Remapping while kernels run: what the placement of blocks rests on. A handle gets a second address while a kernel
// writes through its first one, and a later kernel reads through the second; other addresses are mapped and unmapped
// meanwhile.
#include <chrono>
#include <cstdlib>
#include <deque>

#include "device.cuh"

namespace gpuledger::gpu {
namespace {

constexpr Bytes kHandle = Bytes(uint64_t{2} << 20);
constexpr uint64_t kWords = kHandle.count() / 8;
constexpr uint64_t kSlots = 16;  // addresses that the handle wanders through

uint64_t Rounds() {
  const char* const text = std::getenv("GPULEDGER_GPU_ROUNDS");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 4000;
}

class RemapTest : public DeviceTest {
 protected:
  // The writer of each round uses the address of the round before; the handle is mapped at the next one while it runs,
  // and the reader uses that. `reading` is the stream of the readers.
  void HandOver(const OwnStream& writing, const OwnStream& reading) {
    const bool across = &writing != &reading;
    const Range range = upstream().Reserve(kHandle * kSlots).value();
    const HandleId handle = upstream().CreateHandle(kHandle).value();
    ASSERT_TRUE(upstream().Map(range.base, handle).ok());
    struct Old {
      FenceId fence;
      DevicePtr address;
    };
    std::deque<Old> old;  // addresses that kernels may still use
    const auto retire = [&](bool wait) {
      if (wait) EXPECT_TRUE(upstream().WaitFence(old.front().fence).ok());
      if (!upstream().PollFence(old.front().fence).value()) return false;
      EXPECT_TRUE(upstream().Unmap(old.front().address, handle).ok());
      upstream().DropFence(old.front().fence);
      old.pop_front();
      return true;
    };
    WrongWords wrong;
    cudaEvent_t written = nullptr;
    ASSERT_EQ(cudaEventCreateWithFlags(&written, cudaEventDisableTiming), cudaSuccess);
    uint64_t in_flight = 0;
    for (uint64_t round = 0; round < Rounds() && !HasFailure(); ++round) {
      const DevicePtr from = range.base + kHandle * (round % kSlots),
                      to = range.base + kHandle * ((round + 1) % kSlots);
      while (old.size() >= kSlots - 2) retire(true);
      while (!old.empty() && retire(false)) {
      }
      WritePatternSlowly<<<32, 256, 0, writing.raw()>>>(WordsAt(from), kWords, round, Cycles(150));
      EXPECT_CUDA(cudaEventRecord(written, writing.raw()));
      EXPECT_TRUE(upstream().Map(to, handle).ok());
      in_flight += cudaEventQuery(written) == cudaErrorNotReady;
      const FenceId after_write = upstream().RecordFence(writing.stream()).value();
      if (across) EXPECT_TRUE(upstream().MakeStreamWait(reading.stream(), after_write).ok());
      CheckPattern<<<32, 256, 0, reading.raw()>>>(WordsAt(to), kWords, round, wrong.device());
      old.push_back({after_write, from});
      if (across) {  // the next writer comes after this reader
        const FenceId after_read = upstream().RecordFence(reading.stream()).value();
        EXPECT_TRUE(upstream().MakeStreamWait(writing.stream(), after_read).ok());
        upstream().DropFence(after_read);
      }
    }
    EXPECT_CUDA(cudaGetLastError());
    EXPECT_EQ(wrong.Count(), 0u);
    EXPECT_GT(in_flight, Rounds() / 2) << "the writer was done before the handle was mapped: nothing was tried";
    RecordProperty("rounds", std::to_string(Rounds()));
    RecordProperty("rounds_with_the_writer_in_flight", std::to_string(in_flight));
    while (!old.empty()) retire(true);
    EXPECT_CUDA(cudaEventDestroy(written));
  }

  // Does `step` again and again while a kernel uses `words`; how often before the kernel was done.
  template <class Step>
  void WhileAKernelUses(uint64_t* words, Step&& step) {
    const OwnStream own;
    WrongWords wrong;
    cudaEvent_t done = nullptr;
    ASSERT_EQ(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), cudaSuccess);
    UseForAWhile<<<32, 256, 0, own.raw()>>>(words, kWords, 7, Cycles(100'000), wrong.device());
    EXPECT_CUDA(cudaEventRecord(done, own.raw()));
    uint64_t steps = 0;
    for (; cudaEventQuery(done) == cudaErrorNotReady && !HasFailure(); ++steps) step();
    EXPECT_EQ(wrong.Count(), 0u);
    EXPECT_GE(steps, 20u) << "the calls waited for the kernel";
    RecordProperty("steps_while_the_kernel_ran", std::to_string(steps));
    EXPECT_CUDA(cudaEventDestroy(done));
  }
};

TEST_F(RemapTest, AHandleIsHandedOverByASecondAddressOnOneStream) {
  const OwnStream own;
  HandOver(own, own);
}

TEST_F(RemapTest, AHandleIsHandedOverByASecondAddressAcrossStreams) {
  const OwnStream writing, reading;
  HandOver(writing, reading);
}

TEST_F(RemapTest, OtherAddressesAreMappedAndUnmappedWhileAKernelRuns) {
  const Range range = upstream().Reserve(kHandle * 4u).value();
  const HandleId used = upstream().CreateHandle(kHandle).value(), other = upstream().CreateHandle(kHandle).value();
  ASSERT_TRUE(upstream().Map(range.base, used).ok());
  WhileAKernelUses(WordsAt(range.base), [&] {
    EXPECT_TRUE(upstream().Map(range.base + kHandle, other).ok());  // beside it
    EXPECT_TRUE(upstream().Map(range.base + kHandle * 3u, other).ok());
    EXPECT_TRUE(upstream().Unmap(range.base + kHandle, other).ok());
    EXPECT_TRUE(upstream().Unmap(range.base + kHandle * 3u, other).ok());
  });
}

TEST_F(RemapTest, ASecondAddressComesAndGoesWhileAKernelUsesTheFirst) {
  const Range range = upstream().Reserve(kHandle * 2u).value();
  const HandleId handle = upstream().CreateHandle(kHandle).value();
  ASSERT_TRUE(upstream().Map(range.base, handle).ok());
  WhileAKernelUses(WordsAt(range.base), [&] {
    EXPECT_TRUE(upstream().Map(range.base + kHandle, handle).ok());
    EXPECT_TRUE(upstream().Unmap(range.base + kHandle, handle).ok());
  });
}

TEST_F(RemapTest, HandlesComeAndGoWhileAKernelRuns) {
  const Range range = upstream().Reserve(kHandle).value();
  const HandleId used = upstream().CreateHandle(kHandle).value();
  ASSERT_TRUE(upstream().Map(range.base, used).ok());
  WhileAKernelUses(WordsAt(range.base),
                   [&] { EXPECT_TRUE(upstream().ReleaseHandle(upstream().CreateHandle(kHandle).value()).ok()); });
}

}  // namespace
}  // namespace gpuledger::gpu
