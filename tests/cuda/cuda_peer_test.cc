// Memory of one device that another one may use.
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/allocator.h"
#include "machine.h"

namespace gpuledger::testing {
namespace {

using ::testing::HasSubstr;

class CudaPeerTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    int count = 0;
    EXPECT_EQ(machine().Call("cuDeviceGetCount", &count), cuda::kSuccess);
    if (count < 2) GTEST_SKIP() << "needs two devices";
    int can = 0;
    EXPECT_EQ(machine().Call("cuDeviceCanAccessPeer", &can, 1, 0), cuda::kSuccess);
    if (can == 0) GTEST_SKIP() << "needs two devices that reach each other";
  }
  static bool Reaches(int device, DevicePtr address) {
    const cuda::Location location = {cuda::kLocationTypeDevice, device};
    unsigned long long flags = 0;
    EXPECT_EQ(machine().Call("cuMemGetAccess", &flags, &location, static_cast<cuda::Address>(address.address())), cuda::kSuccess);
    return flags == cuda::kAccessReadWrite;
  }
  DevicePtr NewMemory() {
    const Range range = upstream().Reserve(upstream().granularity()).value();
    EXPECT_TRUE(upstream().Map(range.base, upstream().CreateHandle(range.size).value()).ok());
    return range.base;
  }
};

TEST_F(CudaPeerTest, ReachesWhatIsMappedNowAndLater) {
  const DevicePtr before = NewMemory();
  EXPECT_FALSE(Reaches(1, before));
  EXPECT_TRUE(upstream().AllowPeer(DeviceId(1)).ok());
  EXPECT_TRUE(Reaches(1, before) && Reaches(0, before));
  const DevicePtr after = NewMemory();
  EXPECT_TRUE(Reaches(1, after) && Reaches(0, after));
}

TEST_F(CudaPeerTest, ReachesMemoryOfAnAllocatorThatMovesItsHandles) {
  CachingAllocator allocator(upstream(), {.cap = 64_MiB});
  allocator.Free(allocator.AllocateRaw(40_MiB, stream()).value());
  EXPECT_TRUE(upstream().AllowPeer(DeviceId(1)).ok());
  const OwnStream other;
  const DevicePtr moved = allocator.AllocateRaw(60_MiB, other.stream()).value();
  EXPECT_TRUE(Reaches(1, moved) && Reaches(1, moved + 59_MiB));
  allocator.Free(moved);
  EXPECT_TRUE(allocator.Settle().ok());
  EXPECT_TRUE(allocator.RetireStream(other.stream()).ok());
}

TEST_F(CudaPeerTest, IsAllowedOnce) {
  NewMemory();
  EXPECT_TRUE(upstream().AllowPeer(DeviceId(1)).ok());
  EXPECT_TRUE(upstream().AllowPeer(DeviceId(0)).ok());
  if (!machine().fake()) return;
  const uint64_t calls = machine().Calls("cuMemSetAccess");
  EXPECT_TRUE(upstream().AllowPeer(DeviceId(1)).ok());
  EXPECT_EQ(machine().Calls("cuMemSetAccess"), calls);
}

TEST_F(CudaPeerTest, ThatIsNotThereIsNamed) {
  for (const int device : {-1, 77}) {
    const absl::Status status = upstream().AllowPeer(DeviceId(device));
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(status.ToString(), HasSubstr("AllowPeer of device " + std::to_string(device) + " to the memory of device 0"));
  }
}

TEST_F(CudaPeerTest, ReachesRangesThatComeWithTheirMemoryThroughTheContexts) {
  const std::unique_ptr<CudaUpstream> one = OpenCuda(0, {.mapping = false}), two = OpenCuda(0, {.mapping = false});
  EXPECT_TRUE(one->AllowPeer(DeviceId(1)).ok());
  EXPECT_TRUE(one->AllowPeer(DeviceId(1)).ok());
  EXPECT_TRUE(two->AllowPeer(DeviceId(1)).ok());  // the contexts reach each other already
  if (!machine().fake()) return;
  EXPECT_GE(machine().Calls("cuCtxEnablePeerAccess"), 2u);
}

TEST_F(CudaPeerTest, EachCallThatFailsIsReportedAndTheNextTrySucceeds) {
  if (!machine().fake()) GTEST_SKIP() << "needs the controls of the fake driver";
  int reported = 0;
  for (const bool mapping : {true, false}) {
    for (const char* function : {"cuCtxGetCurrent", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceCanAccessPeer", "cuMemSetAccess",
                                 "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuCtxEnablePeerAccess"}) {
      upstream_ = OpenCuda(0, {.mapping = mapping});
      if (mapping) NewMemory();
      machine().InjectFaults(std::string(function) + ":1=999");
      const absl::Status failed = upstream().AllowPeer(DeviceId(1));
      machine().ClearFaults();
      reported += failed.ToString().find("CUDA_ERROR_UNKNOWN (999)") != std::string::npos;
      EXPECT_TRUE(upstream().AllowPeer(DeviceId(1)).ok()) << function;
      if (mapping) {
        EXPECT_TRUE(Reaches(1, NewMemory())) << function;
      }
    }
  }
  EXPECT_GE(reported, 10);
}

}  // namespace
}  // namespace gpuledger::testing
