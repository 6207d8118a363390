// Streams with plain work on them: what is filled is read back, in the order of the stream; errors name the call.
#include "gpuledger/cuda_stream.h"

#include <array>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/allocator.h"
#include "machine.h"

namespace gpuledger::testing {
namespace {

class CudaStreamTest : public CudaTest {};

TEST_F(CudaStreamTest, ReadsWhatWasFilledBeforeOnIt) {
  const std::unique_ptr<CudaStream> work = CudaStream::Create(DeviceId(0)).value();
  CachingAllocator allocator(upstream(), {});
  const Buffer block = allocator.Allocate(4000_B, work->stream()).value();
  EXPECT_TRUE(work->Fill(block.ptr(), 0x01020304, 1000).ok());
  EXPECT_TRUE(work->Fill(block.ptr() + 40_B, 0xFFFFFFFF, 1).ok());
  std::vector<uint32_t> words(1000);
  EXPECT_TRUE(work->Read(block.ptr(), std::as_writable_bytes(std::span(words))).ok());
  EXPECT_TRUE(work->Wait().ok());
  std::vector<uint32_t> expected(1000, 0x01020304);
  expected[10] = 0xFFFFFFFF;
  EXPECT_EQ(words, expected);
}

TEST_F(CudaStreamTest, StreamsAreDistinctAndNotTheDefaultOne) {
  const std::unique_ptr<CudaStream> one = CudaStream::Create(DeviceId(0)).value();
  const std::unique_ptr<CudaStream> two = CudaStream::Create(DeviceId(0)).value();
  EXPECT_NE(one->stream(), two->stream());
  EXPECT_NE(one->stream(), Stream::Default(DeviceId(0)));
  const FenceId fence = upstream().RecordFence(one->stream()).value();
  EXPECT_TRUE(upstream().MakeStreamWait(two->stream(), fence).ok());
  EXPECT_TRUE(upstream().WaitFence(fence).ok());
  upstream().DropFence(fence);
}

TEST_F(CudaStreamTest, ADeviceThatIsNotThereIsNamed) {
  EXPECT_EQ(CudaStream::Create(DeviceId(77)).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CudaStreamTest, EachCallThatFailsIsNamed) {
  if (!machine().fake()) GTEST_SKIP() << "needs the controls of the fake driver";
  machine().InjectFaults("cuStreamCreate:1=999");
  EXPECT_THAT(CudaStream::Create(DeviceId(0)).status().ToString(), ::testing::HasSubstr("cuStreamCreate failed with CUDA_ERROR_UNKNOWN (999)"));
  machine().ClearFaults();
  const uint64_t created = machine().Calls("cuStreamCreate"), destroyed = machine().Calls("cuStreamDestroy");
  {
    const std::unique_ptr<CudaStream> work = CudaStream::Create(DeviceId(0)).value();
    CachingAllocator allocator(upstream(), {});
    const Buffer block = allocator.Allocate(4_B, work->stream()).value();
    std::array<std::byte, 4> word;
    machine().InjectFaults("cuMemsetD32Async:1=999,cuMemcpyDtoHAsync:1=999,cuStreamSynchronize:1=999");
    EXPECT_THAT(work->Fill(block.ptr(), 1, 1).ToString(), ::testing::HasSubstr("CudaStream::Fill: cuMemsetD32Async failed"));
    EXPECT_THAT(work->Read(block.ptr(), word).ToString(), ::testing::HasSubstr("CudaStream::Read: cuMemcpyDtoHAsync failed"));
    EXPECT_THAT(work->Wait().ToString(), ::testing::HasSubstr("CudaStream::Wait: cuStreamSynchronize failed"));
    machine().ClearFaults();
    EXPECT_TRUE(work->Fill(block.ptr(), 1, 1).ok() && work->Wait().ok());
  }
  EXPECT_EQ(machine().Calls("cuStreamCreate") - created, 1u);
  EXPECT_EQ(machine().Calls("cuStreamDestroy") - destroyed, 1u);
}

}  // namespace
}  // namespace gpuledger::testing
