// All allocators of a process at once.
#include "gpuledger/process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>

#include "gpuledger/fake_upstream.h"
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

}  // namespace
}  // namespace gpuledger
