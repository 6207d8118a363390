// The ledger of a device whose memory somebody else hands out: events, and what was alive before the first of them.
#include "observed_device.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "gpuledger/settle.h"

namespace gpuledger {
namespace {

const DeviceId kDevice(1);

absl::Status NothingToWaitFor() { return absl::OkStatus(); }
MemoryInfo NoDriver() { return {}; }

ChargeRequest Of(uint64_t address, Bytes requested, Bytes charged, Payer payer = {}) {
  return {payer, requested, charged, Stream::Default(kDevice), DevicePtr(kDevice, address), kNoSite};
}

TEST(ObservedDeviceTest, ABlockIsInUseThenPendingThenGone) {
  ObservedDevice device(kDevice, NothingToWaitFor, NoDriver);
  const OwnerId owner = InternOwner("observed/block");
  device.Mapped(0x100000, 2_MiB, nullptr);
  device.Allocated(Of(0x100000, 1000_B, 1536_B, {owner, Role::kActivation}));
  EXPECT_EQ(ProcessUsage(owner, Role::kActivation).in_use, 1536_B);
  EXPECT_EQ(ProcessUsage(owner).requested, 1000_B);
  EXPECT_EQ(FindInProcess(0x100000 + 1535)->payer.owner, owner);
  EXPECT_FALSE(FindInProcess(0x100000 + 1536).ok());
  ASSERT_TRUE(TransferInProcess(0x100000, {InternOwner("observed/other"), Role::kOther}).ok());
  device.FreeRequested(0x100000);
  EXPECT_EQ(ProcessUsage().in_use, Bytes());
  EXPECT_EQ(ProcessUsage().pending, 1536_B);
  EXPECT_FALSE(TransferInProcess(0x100000, {owner, Role::kOther}).ok());
  EXPECT_EQ(device.totals().cached, 2_MiB - 1536_B);
  device.FreeCompleted(0x100000);
  EXPECT_EQ(ProcessUsage().pending, Bytes());
  device.Unmapped(0x100000, 2_MiB, nullptr);
  EXPECT_EQ(device.totals().reserved, Bytes());
  EXPECT_EQ(device.totals().peak_reserved, 2_MiB);
  EXPECT_TRUE(device.ledger().CheckInvariants().ok());
}

TEST(ObservedDeviceTest, EventsDuringATakeoverAreNeitherLostNorCountedTwice) {
  ObservedDevice device(kDevice, NothingToWaitFor, NoDriver);
  device.BeginTakeover();
  device.Mapped(0xa00000, 2_MiB, nullptr);  // in the list, which counts it
  device.Allocated(Of(0x1000, 512_B, 512_B));
  device.FreeRequested(0x2000), device.FreeCompleted(0x2000);  // alive before, gone before the list
  device.Allocated(Of(0x3000, 512_B, 512_B));
  device.FreeRequested(0x3000), device.FreeCompleted(0x3000);
  device.SnapshotTaken();
  device.FreeRequested(0x4000), device.FreeCompleted(0x4000);  // in the list, gone by now
  device.FreeRequested(0x5000);                                // in the list, pending by now
  device.Mapped(0xc00000, 20_MiB, nullptr);
  device.Allocated(Of(0xc00000, 512_B, 512_B));
  device.FreeRequested(0x6000), device.FreeCompleted(0x6000);
  device.Allocated(Of(0x6000, 2048_B, 2048_B));  // another block by now
  const auto listed = [](uint64_t address, bool pending = false) {
    return ObservedDevice::Found{address, 1000_B, 1024_B, nullptr, pending};
  };
  device.EndTakeover({listed(0x1000), listed(0x4000), listed(0x5000), listed(0x6000), listed(0x7000), listed(0x8000, true)}, 4_MiB);
  // 0x1000, 0xc00000, 0x6000 as told, 0x7000 as listed.
  EXPECT_EQ(ProcessUsage().in_use, 512_B + 512_B + 2048_B + 1024_B);
  EXPECT_EQ(ProcessUsage().pending, 2048_B);
  EXPECT_EQ(device.totals().reserved, 24_MiB);
  device.FreeRequested(0x7000), device.FreeCompleted(0x7000);
  device.FreeCompleted(0x5000), device.FreeCompleted(0x8000);
  EXPECT_EQ(ProcessUsage().in_use, 512_B + 512_B + 2048_B);
  EXPECT_EQ(ProcessUsage().pending, Bytes());
  device.SnapshotTaken();  // anybody's, later
  EXPECT_EQ(device.totals().reserved, 24_MiB);
}

TEST(ObservedDeviceTest, ASettleWaitsForWhatIsPendingAndJudgesWhatIsAlive) {
  ObservedDevice* waited = nullptr;
  int waits = 0;
  ObservedDevice device(kDevice, [&] {
    ++waits;
    waited->FreeCompleted(0x1000);
    return absl::OkStatus();
  }, NoDriver);
  waited = &device;
  device.Allocated(Of(0x1000, 512_B, 512_B));
  device.Allocated(Of(0x2000, 4096_B, 4096_B));
  device.FreeRequested(0x1000);
  Settle settle;
  ASSERT_TRUE(settle.Complete().ok());
  settle.Collected(), settle.Released(), settle.End();
  EXPECT_EQ(waits, 1);
  const absl::StatusOr<LeakReport> report = settle.Report({});
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->settled);
  EXPECT_EQ(report->in_use, 4096_B);
  EXPECT_EQ(settle.places().size(), 1u);
  Settle again;
  ASSERT_TRUE(again.Complete().ok());
  EXPECT_EQ(waits, 1);  // there was nothing to wait for
}

TEST(ObservedDeviceTest, AForkedChildFreesAndDoesNotWait) {
  ObservedDevice device(kDevice, NothingToWaitFor, NoDriver);
  device.Allocated(Of(0x1000, 512_B, 512_B));
  device.Allocated(Of(0x2000, 512_B, 512_B));
  device.FreeRequested(0x2000);
  const pid_t child = fork();
  if (child == 0) {
    device.FreeRequested(0x1000), device.FreeCompleted(0x1000);
    const bool right = ProcessUsage().in_use == Bytes() && device.Settle().code() == absl::StatusCode::kFailedPrecondition;
    _exit(right ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(ProcessUsage().in_use, 512_B);
  EXPECT_EQ(device.Settle().code(), absl::StatusCode::kInternal);  // nobody completes it here
}

}  // namespace
}  // namespace gpuledger
