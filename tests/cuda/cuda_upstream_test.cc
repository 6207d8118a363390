// What is particular to the CUDA upstream: devices, contexts, options, captures, forks, and the end of the driver.
#include <sys/wait.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/allocator.h"
#include "machine.h"

namespace gpuledger::testing {
namespace {

using ::testing::HasSubstr;

class CudaUpstreamTest : public CudaTest {
 protected:
  static cuda::Context Current() {
    cuda::Context context = nullptr;
    EXPECT_EQ(machine().Call("cuCtxGetCurrent", &context), cuda::kSuccess);
    return context;
  }
  // Every kind of call once; nothing stays behind.
  static void UseEverything(CudaUpstream& upstream) {
    const Bytes granule = upstream.granularity();
    const Range range = upstream.Reserve(granule * 2u).value();
    const HandleId handle = upstream.CreateHandle(granule).value();
    EXPECT_TRUE(upstream.Map(range.base, handle).ok());
    EXPECT_TRUE(upstream.Map(range.base + granule, handle).ok());
    const Stream stream = Stream::Default(upstream.device());
    const FenceId fence = upstream.RecordFence(stream).value();
    EXPECT_TRUE(upstream.MakeStreamWait(stream, fence).ok());
    EXPECT_TRUE(upstream.PollFence(fence).ok());
    EXPECT_TRUE(upstream.WaitFence(fence).ok());
    upstream.DropFence(fence);
    EXPECT_GT(upstream.memory_info().free, granule);
    EXPECT_TRUE(upstream.Unmap(range.base, handle).ok());
    EXPECT_TRUE(upstream.Unmap(range.base + granule, handle).ok());
    EXPECT_TRUE(upstream.ReleaseHandle(handle).ok());
    EXPECT_TRUE(upstream.Unreserve(range).ok());
  }
};

TEST_F(CudaUpstreamTest, SaysWhatItIs) {
  EXPECT_EQ(upstream().name(), "cuda");
  EXPECT_EQ(upstream().device(), DeviceId(0));
  EXPECT_TRUE(upstream().capabilities().mapping);
  EXPECT_TRUE(upstream().capabilities().aliasing);
  EXPECT_FALSE(upstream().capabilities().host_accessible);
  EXPECT_GE(upstream().memory_info().total, 1_GiB);
}

TEST_F(CudaUpstreamTest, NamesADeviceThatIsNotThere) {
  for (const int device : {-1, 99}) {
    const absl::Status status = CudaUpstream::Open(DeviceId(device)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.ToString(), HasSubstr("device " + std::to_string(device) + ": this process sees "));
    EXPECT_THAT(status.ToString(), HasSubstr("CUDA_VISIBLE_DEVICES"));
  }
}

TEST_F(CudaUpstreamTest, LeavesTheCurrentContextAsItWas) {
  ASSERT_EQ(Current(), nullptr);
  UseEverything(upstream());
  EXPECT_EQ(Current(), nullptr);
  cuda::Context other = nullptr;
  ASSERT_EQ(machine().Call("cuCtxCreate_v2", &other, 0u, 0), cuda::kSuccess);
  UseEverything(upstream());
  OpenCuda().reset();
  EXPECT_EQ(Current(), other);
  EXPECT_EQ(machine().Call("cuCtxDestroy_v2", other), cuda::kSuccess);
}

TEST_F(CudaUpstreamTest, SeveralDevicesHaveMemoryAndStreamsOfTheirOwn) {
  const std::unique_ptr<CudaUpstream> second = OpenCuda(1);
  if (second == nullptr) GTEST_SKIP() << "one device here";
  const Bytes before = upstream().memory_info().free, free = second->memory_info().free;
  const Bytes granule = second->granularity();
  const HandleId handle = second->CreateHandle(granule * 8u).value();
  EXPECT_GE(free - second->memory_info().free, granule * 8u);
  EXPECT_EQ(upstream().memory_info().free, before);
  EXPECT_TRUE(absl::IsFailedPrecondition(second->RecordFence(stream()).status()));
  EXPECT_TRUE(second->ReleaseHandle(handle).ok());
  UseEverything(*second);
  UseEverything(upstream());
}

TEST_F(CudaUpstreamTest, TheSpecialStreamsAreStreams) {
  for (const uintptr_t special : {0, 1, 2}) {  // the default stream; legacy and per-thread by name
    const Stream stream(DeviceId(0), reinterpret_cast<CUstream_st*>(special));
    const FenceId fence = upstream().RecordFence(stream).value();
    EXPECT_TRUE(upstream().MakeStreamWait(stream, fence).ok());
    EXPECT_TRUE(upstream().WaitFence(fence).ok());
    upstream().DropFence(fence);
  }
}

TEST_F(CudaUpstreamTest, AnOptionThatTheDeviceLacksIsRefusedByName) {
  const absl::Status status = CudaUpstream::Open(DeviceId(0), {.exportable = true, .mapping = false}).status();
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status.ToString();
  EXPECT_THAT(status.ToString(), HasSubstr("CudaOptions::exportable"));
}

TEST_F(CudaUpstreamTest, ADeviceThatCannotMapHasRangesThatComeWithTheirMemory) {
  if (!machine().fake()) GTEST_SKIP() << "needs a device that cannot map";
  machine().InjectFaults("cuDeviceGetAttribute:1+=801");  // it does not even know the attribute
  const std::unique_ptr<CudaUpstream> plain = OpenCuda();
  machine().ClearFaults();
  EXPECT_FALSE(plain->capabilities().mapping);
  EXPECT_FALSE(plain->capabilities().aliasing);
  const uint64_t created = machine().Calls("cuMemCreate"), bought = machine().Calls("cuMemAlloc"),
                 freed = machine().Calls("cuMemFree");
  {
    CachingAllocator allocator(*plain, {});
    const Buffer small = allocator.Allocate(1_KiB, stream()).value(),
                 large = allocator.Allocate(40_MiB, stream()).value();
    EXPECT_EQ(allocator.totals().reserved, 72_MiB);  // one range for small blocks, one for the large one
    EXPECT_TRUE(allocator.CheckInvariants().ok());
  }
  EXPECT_EQ(machine().Calls("cuMemAlloc") - bought, machine().Calls("cuMemFree") - freed);
  EXPECT_EQ(machine().Calls("cuMemCreate"), created);
}

TEST_F(CudaUpstreamTest, ACaptureSurvivesEveryCall) {
  const OwnStream own, beside;
  const FenceId before = upstream().RecordFence(beside.stream()).value();
  constexpr auto kGlobal = static_cast<int>(cuda::kCaptureModeGlobal);
  ASSERT_EQ(machine().Call("cuStreamBeginCapture_v2", own.raw(), kGlobal), cuda::kSuccess);

  const absl::Status fence = upstream().RecordFence(own.stream()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(fence)) << fence.ToString();
  EXPECT_THAT(fence.ToString(), HasSubstr("is being captured into a graph"));
  EXPECT_TRUE(upstream().PollFence(before).ok());
  EXPECT_TRUE(upstream().WaitFence(before).ok());
  const FenceId during = upstream().RecordFence(beside.stream()).value();
  const absl::Status wait = upstream().MakeStreamWait(own.stream(), during);
  EXPECT_TRUE(wait.ok() || absl::IsFailedPrecondition(wait)) << wait.ToString();
  const Range range = upstream().Reserve(upstream().granularity()).value();
  const HandleId handle = upstream().CreateHandle(upstream().granularity()).value();
  EXPECT_TRUE(upstream().Map(range.base, handle).ok());
  EXPECT_TRUE(upstream().Unmap(range.base, handle).ok());
  EXPECT_TRUE(upstream().ReleaseHandle(handle).ok());
  EXPECT_TRUE(upstream().Unreserve(range).ok());
  EXPECT_FALSE(upstream().memory_info().free.is_zero());

  void* graph = nullptr;
  EXPECT_EQ(machine().Call("cuStreamEndCapture", own.raw(), &graph), cuda::kSuccess);
  EXPECT_NE(graph, nullptr);
  machine().Call("cuGraphDestroy", graph);
  const FenceId after = upstream().RecordFence(own.stream()).value();
  EXPECT_TRUE(upstream().WaitFence(after).ok());
  for (const FenceId f : {before, during, after}) upstream().DropFence(f);
}

TEST_F(CudaUpstreamTest, ABlockFreedDuringACaptureStaysPendingUntilItsEnd) {
  const OwnStream captured;
  CachingAllocator allocator(upstream(), {});
  const DevicePtr block = allocator.AllocateRaw(1_MiB, stream()).value();
  EXPECT_TRUE(allocator.RecordStream(block, captured.stream()).ok());
  constexpr auto kRelaxed = static_cast<int>(cuda::kCaptureModeRelaxed);
  ASSERT_EQ(machine().Call("cuStreamBeginCapture_v2", captured.raw(), kRelaxed), cuda::kSuccess);
  allocator.Free(block);
  EXPECT_EQ(allocator.CompletePending(), 0u);
  EXPECT_EQ(allocator.totals().pending, 1_MiB);
  void* graph = nullptr;
  ASSERT_EQ(machine().Call("cuStreamEndCapture", captured.raw(), &graph), cuda::kSuccess);
  machine().Call("cuGraphDestroy", graph);
  EXPECT_TRUE(allocator.Settle().ok());
  EXPECT_EQ(allocator.totals().pending, 0_B);
}

TEST_F(CudaUpstreamTest, AForkedChildIsRefusedWithASentenceAndEndsQuietly) {
  const Range range = upstream().Reserve(upstream().granularity()).value();
  const HandleId handle = upstream().CreateHandle(upstream().granularity()).value();
  const FenceId fence = upstream().RecordFence(stream()).value();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const absl::Status answers[] = {upstream().Reserve(upstream().granularity()).status(),
                                    upstream().CreateHandle(upstream().granularity()).status(),
                                    upstream().Map(range.base, handle),
                                    upstream().Unmap(range.base, handle),
                                    upstream().ReleaseHandle(handle),
                                    upstream().Unreserve(range),
                                    upstream().RecordFence(stream()).status(),
                                    upstream().PollFence(fence).status(),
                                    upstream().WaitFence(fence),
                                    upstream().MakeStreamWait(stream(), fence),
                                    CudaUpstream::Open(DeviceId(0)).status()};
    int wrong = 0;
    for (const absl::Status& answer : answers) {
      const bool right = absl::IsFailedPrecondition(answer) && answer.ToString().find("spawn") != std::string::npos;
      if (!right) std::fprintf(stderr, "in the child: %s\n", answer.ToString().c_str());
      wrong += !right;
    }
    upstream().DropFence(fence);
    wrong += !upstream().PassedFences({&fence, 1}).empty() + !upstream().memory_info().free.is_zero();
    upstream_.reset();
    _exit(wrong);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
  EXPECT_TRUE(upstream().WaitFence(fence).ok());  // here all goes on
  upstream().DropFence(fence);
  EXPECT_TRUE(upstream().Map(range.base, handle).ok());
}

TEST_F(CudaUpstreamTest, TheEndAfterTheDriversEndIsSilent) {
  if (!machine().fake()) GTEST_SKIP() << "needs the controls of the fake driver";
  const Range range = upstream().Reserve(upstream().granularity()).value();
  EXPECT_TRUE(upstream().Map(range.base, upstream().CreateHandle(upstream().granularity()).value()).ok());
  EXPECT_TRUE(upstream().RecordFence(stream()).ok());
  std::string faults;
#define GPULEDGER_FAULT(name, version, parameters) faults += std::string(faults.empty() ? "" : ",") + #name ":1+=4";
  GPULEDGER_CUDA_FUNCTIONS(GPULEDGER_FAULT)
#undef GPULEDGER_FAULT
  machine().InjectFaults(faults);
  ::testing::internal::CaptureStderr();
  const uint64_t unmaps = machine().Calls("cuMemUnmap");
  upstream_.reset();
  EXPECT_EQ(machine().Calls("cuMemUnmap"), unmaps);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST_F(CudaUpstreamTest, AnErrorNamesTheCallTheErrorAndTheWayOut) {
  if (!machine().fake()) GTEST_SKIP() << "needs the controls of the fake driver";
  const auto text = [&](const std::string& fault) {
    machine().InjectFaults(fault);
    const std::string said = upstream().CreateHandle(upstream().granularity()).status().ToString();
    machine().ClearFaults();
    return said;
  };
  EXPECT_EQ(text("cuMemCreate:1=2"),
            "RESOURCE_EXHAUSTED: CreateHandle of 2,097,152 B on device 0: cuMemCreate failed with "
            "CUDA_ERROR_OUT_OF_MEMORY (2); free memory that this process or others hold on the device (nvidia-smi "
            "lists them)");
  EXPECT_THAT(text("cuMemCreate:1=700"),
              HasSubstr("INTERNAL: CreateHandle of 2,097,152 B on device 0: cuMemCreate failed "
                        "with CUDA_ERROR_ILLEGAL_ADDRESS (700); a kernel has failed earlier"));
  EXPECT_THAT(text("cuCtxGetCurrent:1=709"),
              HasSubstr("CUDA_ERROR_CONTEXT_IS_DESTROYED (709); the device's primary context"));
  EXPECT_THAT(text("cuMemCreate:1=998"), HasSubstr("cuMemCreate failed with an error without a name (998)"));
}

}  // namespace
}  // namespace gpuledger::testing
