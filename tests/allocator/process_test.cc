// All allocators of a process at once.
#include "gpuledger/process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "gpuledger/fake_upstream.h"
#include "gpuledger/gpuledger.h"
#include "gpuledger/host_upstream.h"

namespace gpuledger {
namespace {

const Stream kStream = Stream::Default(DeviceId(0));

TEST(ProcessTest, AddsUpWhatAllocatorsHaveAndGivesAnAllocationOneId) {
  HostAnonymousUpstream host;
  FakeUpstream fake;
  CachingAllocator a(host, AllocatorOptions()), b(fake, AllocatorOptions());
  const OwnerScope scope("process/w", Role::kSource);
  const OwnerId weight = InternOwner("process/w");
  const Buffer one = *a.Allocate(1000_B, kStream), two = *b.Allocate(3000_B, kStream);
  EXPECT_EQ(ProcessUsage().in_use, 4096_B);
  EXPECT_EQ(ProcessUsage(weight, Role::kSource).count, 2u);
  EXPECT_EQ(ProcessUsage(weight, Role::kStaging).count, 0u);
  EXPECT_EQ(ProcessUsage({}, Role::kSource).requested, 4000_B);
  EXPECT_NE(a.ledger().live()[0].id, b.ledger().live()[0].id);
  EXPECT_EQ(FindInProcess(two.ptr().address() + 5)->id, b.ledger().live()[0].id);

  EXPECT_EQ(ProcessLineage(weight).state, LineageState::kNone);
  EXPECT_EQ(ProcessResidual("process/*").status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(OpenProcessLineage(weight).ok());
  b.ledger().CloseLineage(weight);
  EXPECT_EQ(ProcessLineage(weight).state, LineageState::kOpen);
  EXPECT_EQ(ProcessResidual("process/*").status().code(), absl::StatusCode::kFailedPrecondition) << "open in one of them";
  ASSERT_TRUE(CloseProcessLineage(weight).ok());
  EXPECT_EQ(ProcessLineage(weight).source.in_use, 4096_B);
  EXPECT_EQ(ProcessResidual("process/*")->bytes, 4096_B);
  ASSERT_TRUE(TransferInProcess(two.ptr().address(), {InternOwner("process/other"), Role::kStaging}).ok());
  EXPECT_EQ(ProcessResidual("process/w")->allocations.size(), 1u);
  EXPECT_EQ(ProcessResidual("process/*").status().code(), absl::StatusCode::kFailedPrecondition) << "staging of an owner without a lineage";
}

TEST(ProcessTest, AnAllocatorThatIsVisitedStaysUntilTheVisitIsOver) {
  FakeUpstream fake;
  auto allocator = std::make_unique<CachingAllocator>(fake, AllocatorOptions());
  std::atomic<bool> gone = false;
  std::thread destroyer;
  ForEachAllocator([&](CachingAllocator& visited) {
    ASSERT_EQ(&visited, allocator.get());
    destroyer = std::thread([&] {
      allocator.reset();
      gone = true;
    });
    const CachingAllocator another(fake, AllocatorOptions());  // meanwhile others come and go
    for (int i = 0; i < 1000; ++i) std::this_thread::yield();
    EXPECT_FALSE(gone);
    EXPECT_TRUE(visited.CheckInvariants().ok());
  });
  destroyer.join();
  ForEachAllocator([](CachingAllocator&) { ADD_FAILURE() << "there is none"; });
}

TEST(ProcessTest, AForkedChildOwesNoVisits) {
  HostAnonymousUpstream host;
  auto allocator = std::make_unique<CachingAllocator>(host, AllocatorOptions());
  std::atomic<bool> visiting = false, done = false;
  std::thread visitor([&] {
    ForEachAllocator([&](CachingAllocator&) {
      visiting = true;
      while (!done) std::this_thread::yield();
    });
  });
  while (!visiting) std::this_thread::yield();
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    const ScopeId scope = [] {
      const OwnerScope transient = OwnerScope::Transient("process/child", Role::kOther);
      return CurrentPayer().scope;
    }();
    allocator.reset();  // the visitor is not here
    _exit(ScopeEnded(scope) ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  done = true;
  visitor.join();
}

TEST(ProcessTest, SumsHoldWhatOtherThreadsHoldBack) {
  HostAnonymousUpstream host;
  CachingAllocator allocator(host, AllocatorOptions());
  std::atomic<int> step = 0;
  std::vector<Buffer> held;
  held.push_back(*allocator.Allocate(1_MiB, kStream));  // a peak that is not reached again
  held.clear();
  std::thread other([&] {
    for (int i = 0; i < 100; ++i) held.push_back(*allocator.Allocate(1024_B, kStream));
    for (int i = 0; i < 40; ++i) held.pop_back();
    step = 1;
    while (step != 2) std::this_thread::yield();  // an ending thread hands in what it held back
  });
  while (step != 1) std::this_thread::yield();
  EXPECT_EQ(ProcessUsage().in_use, 1024_B * 60u);
  EXPECT_EQ(ProcessUsage(kUnattributed).count, 60u);
  step = 2;
  other.join();
}

// A keeper that is no allocator.
class LedgerAlone final : public LedgerKeeper {
 public:
  explicit LedgerAlone(DeviceId device) : ledger_(device, clock_) { RegisterKeeper(this); }
  ~LedgerAlone() override { UnregisterKeeper(this); }
  Ledger& ledger() override { return ledger_; }
  [[nodiscard]] TimePoint now() const override { return clock_.now(); }
  [[nodiscard]] Totals totals() const override { return {}; }
  [[nodiscard]] std::string_view memory_name() const override { return "somebody's"; }
  [[nodiscard]] MemoryInfo memory_info() const override { return {1_KiB, 2_KiB}; }
  [[nodiscard]] absl::StatusOr<LiveAllocation> Find(uint64_t address) const override {
    if (held != nullptr && held->info().address.address() == address) return held->info();
    return absl::NotFoundError("not here");
  }
  absl::Status Transfer(uint64_t address, Payer to) override {
    if (!Find(address).ok()) return absl::NotFoundError("not here");
    ledger_.Transfer(*held, to);
    return absl::OkStatus();
  }
  absl::Status Settle() override { return absl::OkStatus(); }
  void LockForFork() override { ledger_.LockForFork(); }
  void UnlockAfterFork() override { ledger_.UnlockAfterFork(); }
  void ForgetOtherThreads() override { ledger_.ForgetOtherThreads(); }

 private:
  FakeUpstream clock_;
  Ledger ledger_;

 public:
  std::unique_ptr<Charge> held;
};

TEST(ProcessTest, KnowsLedgersThatNoAllocatorKeeps) {
  FakeUpstream fake;
  CachingAllocator allocator(fake, AllocatorOptions());
  LedgerAlone alone(DeviceId(3));
  const OwnerId owner = InternOwner("process/alone");
  const Buffer one = *allocator.Allocate(512_B, kStream);
  alone.held = std::make_unique<Charge>(alone.ledger().Debit(
      {{owner, Role::kSource}, 1000_B, 1024_B, Stream::Default(DeviceId(3)), DevicePtr(DeviceId(3), 0x1000)}));
  EXPECT_EQ(ProcessUsage().in_use, 1536_B);
  EXPECT_EQ(FindInProcess(0x1000)->payer.owner, owner);
  ASSERT_TRUE(OpenProcessLineage(owner).ok());
  EXPECT_EQ(ProcessLineage(owner).source.in_use, 1024_B);
  ASSERT_TRUE(CloseProcessLineage(owner).ok());
  EXPECT_EQ(ProcessResidual("process/alone")->bytes, 1024_B);
  ASSERT_TRUE(TransferInProcess(0x1000, {InternOwner("process/elsewhere"), Role::kOther}).ok());
  EXPECT_EQ(ProcessUsage(owner).in_use, Bytes());
  gpuledger_device devices[2];
  uint64_t count = 0;
  ASSERT_EQ(gpuledger_process_devices(devices, 2, &count), GPULEDGER_OK);
  EXPECT_EQ(count, 2);
  EXPECT_EQ(std::string_view(devices[1].upstream), "somebody's");
  EXPECT_EQ(std::tuple(devices[1].number, devices[1].total, devices[1].free), std::tuple(3, 2048, 1024));
  gpuledger_owner_usage owners[1];
  ASSERT_EQ(gpuledger_process_owners("somebody's", 3, owners, 1, &count), GPULEDGER_OK);
  EXPECT_EQ(std::pair(std::string_view(owners[0].owner), owners[0].usage.in_use), std::pair(std::string_view("process/elsewhere"), uint64_t{1024}));
  int keepers = 0, allocators = 0;
  ForEachKeeper([&](LedgerKeeper&) { ++keepers; });
  ForEachAllocator([&](CachingAllocator& a) {
    EXPECT_EQ(&a, &allocator);
    ++allocators;
  });
  EXPECT_EQ(std::pair(keepers, allocators), std::pair(2, 1));
  const pid_t child = fork();
  if (child == 0) _exit(ProcessUsage().in_use == 1536_B && alone.ledger().CheckInvariants().ok() ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace gpuledger
