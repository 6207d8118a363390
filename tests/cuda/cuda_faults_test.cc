// Each driver call fails in turn: the error is passed on, nothing stays behind, and the next try succeeds.
#include <functional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/allocator.h"
#include "machine.h"

namespace gpuledger::testing {
namespace {

// The functions that are called after the driver is loaded, by the name that faults have.
std::vector<std::string> Functions() {
  std::vector<std::string> names;
#define GPULEDGER_NAME(name, version, parameters) names.push_back(#name);
  GPULEDGER_CUDA_FUNCTIONS(GPULEDGER_NAME)
  GPULEDGER_CUDA_OPTIONAL_FUNCTIONS(GPULEDGER_NAME)
#undef GPULEDGER_NAME
  return names;
}

class CudaFaultsTest : public CudaTest, public ::testing::WithParamInterface<CudaOptions> {
 protected:
  CudaFaultsTest() : CudaTest(/*needs_fake=*/true) {}

  // A way through all calls; what fails is skipped with what depends on it. Returns the errors.
  static std::vector<absl::Status> Run(const CudaOptions& options) {
    std::vector<absl::Status> errors;
    const auto note = [&](const absl::Status& status) {
      if (!status.ok()) errors.push_back(status);
      return status.ok();
    };
    auto opened = CudaUpstream::Open(DeviceId(0), options);
    if (!note(opened.status())) return errors;
    CudaUpstream& upstream = **opened;
    const Stream stream = Stream::Default(DeviceId(0));
    const Bytes granule = upstream.granularity();
    const auto range = upstream.Reserve(granule * 4u);
    note(range.status());
    const auto fence = upstream.RecordFence(stream);
    if (note(fence.status())) {
      note(upstream.PollFence(*fence).status());
      note(upstream.MakeStreamWait(stream, *fence));
      note(upstream.WaitFence(*fence));
      upstream.DropFence(*fence);
    }
    if (upstream.capabilities().mapping) {
      const auto handle = upstream.CreateHandle(granule);
      if (note(handle.status()) && range.ok()) {
        if (note(upstream.Map(range->base, *handle))) note(upstream.Unmap(range->base, *handle));
        note(upstream.Map(range->base + granule, *handle));  // stays: the end of the upstream takes it away
      } else if (handle.ok()) {
        note(upstream.ReleaseHandle(*handle));
      }
      const auto second = upstream.CreateHandle(granule);
      if (note(second.status())) note(upstream.ReleaseHandle(*second));
    }
    const auto other = upstream.Reserve(granule);
    if (note(other.status())) note(upstream.Unreserve(*other));
    (void)upstream.memory_info();
    return errors;
  }

  // Faults of calls that give something back leave it: with those alone, the upstream has said so and tried.
  static bool GivesBack(const std::string& function) {
    for (const char* one : {"cuMemUnmap", "cuMemRelease", "cuMemAddressFree", "cuMemFree", "cuEventDestroy",
                            "cuDevicePrimaryCtxRelease", "cuCtxPopCurrent"}) {
      if (function == one) return true;
    }
    return false;
  }
};

TEST_P(CudaFaultsTest, EachCallThatFailsIsReportedAndLeavesNothingBehind) {
  int reported = 0;
  for (const std::string& function : Functions()) {
    for (int nth = 1; nth <= 4; ++nth) {
      const Bytes free = upstream().memory_info().free;
      const uint64_t created = machine().Calls("cuEventCreate"), destroyed = machine().Calls("cuEventDestroy");
      machine().InjectFaults(function + ":" + std::to_string(nth) + "=999");
      const std::vector<absl::Status> errors = Run(GetParam());
      machine().ClearFaults();
      for (const absl::Status& error : errors) {
        EXPECT_FALSE(error.message().empty());
        reported += error.ToString().find("CUDA_ERROR_UNKNOWN (999)") != std::string::npos;
      }
      // A destructor cannot try again: what the driver would not take back at the very end is the driver's.
      if (!GivesBack(function)) {
        EXPECT_EQ(upstream().memory_info().free, free) << function << ", call " << nth;
      }
      if (function != "cuEventCreate" && function != "cuEventDestroy" && function != "cuCtxGetCurrent") {
        EXPECT_EQ(machine().Calls("cuEventCreate") - created, machine().Calls("cuEventDestroy") - destroyed)
            << function;
      }
      EXPECT_THAT(Run(GetParam()), ::testing::IsEmpty()) << "after " << function << ", call " << nth;
    }
  }
  EXPECT_GE(reported, GetParam().mapping ? 20 : 12);
}

TEST_P(CudaFaultsTest, AnAllocatorSurvivesEachCallThatFailsAndGivesEverythingBack) {
  const Bytes free = upstream().memory_info().free;
  const OwnStream other;
  for (const std::string& function : Functions()) {
    for (int nth = 1; nth <= 3; ++nth) {
      const std::unique_ptr<CudaUpstream> own = OpenCuda(0, GetParam());
      {
        CachingAllocator allocator(*own, {});
        machine().InjectFaults(function + ":" + std::to_string(nth) + "=999");
        for (const Bytes size : {1_KiB, 3_MiB, 40_MiB, 1_MiB}) {
          const absl::StatusOr<DevicePtr> block = allocator.AllocateRaw(size, stream());
          if (!block.ok()) continue;
          EXPECT_TRUE(allocator.RecordStream(*block, other.stream()).ok());
          allocator.Free(*block);
          allocator.CompletePending();
          if (size == 3_MiB) allocator.ReleaseCached();
          EXPECT_TRUE(allocator.CheckInvariants().ok()) << function;
        }
        machine().ClearFaults();
        EXPECT_TRUE(allocator.AllocateRaw(1_MiB, stream()).ok()) << function;
        for (const SegmentInfo& segment : allocator.segments()) {
          for (const BlockInfo& block : segment.blocks) {
            if (block.state == BlockState::kInUse) allocator.Free(block.address);
          }
        }
        EXPECT_TRUE(allocator.Settle().ok()) << function;
      }
      EXPECT_EQ(upstream().memory_info().free, free) << function << ", call " << nth;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, CudaFaultsTest, ::testing::Values(CudaOptions{}, CudaOptions{.mapping = false}),
                         [](const auto& given) { return given.param.mapping ? "Mapping" : "WithoutMapping"; });

}  // namespace
}  // namespace gpuledger::testing
