// Payers on the threads that PyTorch hands work to, with the state that it hands over.
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/ThreadLocalState.h>
#include <gtest/gtest.h>

#include "gpuledger/torch.h"

namespace gpuledger::pytorch {
namespace {

class CarriedPayerTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(InstallCpuAllocator().ok()); }
  void TearDown() override { UninstallCpuAllocator(); }
};

void InThread(const std::function<void()>& body) { std::thread(body).join(); }

// As autograd's threads do: the state of the thread that called backward() is theirs while they work for it.
void InWorker(const std::function<void()>& body) {
  const at::ThreadLocalState state;
  InThread([&] {
    const at::ThreadLocalStateGuard guard(state);
    body();
  });
}

std::string_view PayerName() { return OwnerName(CurrentPayer().owner); }

TEST_F(CarriedPayerTest, AWorkerPaysAsTheThreadItWorksFor) {
  const OwnerScope outer("caller", Role::kScratch);
  InWorker([] {
    EXPECT_EQ(PayerName(), "caller");
    EXPECT_EQ(CurrentPayer().role, Role::kScratch);
    const at::Tensor made = at::empty({128});
    EXPECT_EQ(CpuAllocator()->ledger().usage(InternOwner("caller"), Role::kScratch).in_use, Bytes(512u));
  });
  const OwnerScope inner("inner", Role::kCache);
  InWorker([] { EXPECT_EQ(PayerName(), "caller/inner"); });
}

TEST_F(CarriedPayerTest, AScopeOfTheWorkersOwnNestsInTheCallersAndEndsAlone) {
  const OwnerScope outer("caller", Role::kScratch);
  InWorker([] {
    {
      const OwnerScope own("own", Role::kCache);
      EXPECT_EQ(PayerName(), "caller/own");
      InWorker([] { EXPECT_EQ(PayerName(), "caller"); });  // hands on what it was handed
    }
    EXPECT_EQ(PayerName(), "caller");
  });
  EXPECT_EQ(PayerName(), "caller");
}

TEST_F(CarriedPayerTest, APlainThreadPaysForItself) {
  const OwnerScope outer("caller", Role::kScratch);
  InThread([] { EXPECT_EQ(PayerName(), "unattributed"); });
}

TEST_F(CarriedPayerTest, WhatACallerAdoptedIsCarriedWithItsTransientScope) {
  const OwnerScope transient = OwnerScope::Transient("step", Role::kActivation);
  const Payer caller = CurrentPayer();
  InWorker([caller] { EXPECT_EQ(CurrentPayer().scope, caller.scope); });
}

TEST_F(CarriedPayerTest, WorkThatOutlivesTheCallerPaysAsNobody) {
  std::optional<at::ThreadLocalState> state;
  InThread([&state] {
    const OwnerScope scope("caller", Role::kScratch);
    state.emplace();
  });
  const at::ThreadLocalStateGuard guard(*state);
  EXPECT_EQ(PayerName(), "unattributed");
}

struct OfAProfiler final : c10::DebugInfoBase {};

TEST_F(CarriedPayerTest, WhoeverPutsStateOnTopFindsItOnTop) {
  InThread([] {
    using DebugInfo = c10::ThreadLocalDebugInfo;
    constexpr auto kProfiler = c10::DebugInfoKind::PROFILER_STATE;
    DebugInfo::_push(kProfiler, std::make_shared<OfAProfiler>());
    const OwnerScope scope("profiled", Role::kScratch);  // the first of this thread
    EXPECT_NE(DebugInfo::_pop(kProfiler), nullptr);
    InWorker([] { EXPECT_EQ(PayerName(), "profiled"); });
  });
}

TEST_F(CarriedPayerTest, NothingIsPutUnderWhatIsThereForTheLengthOfACall) {
  InThread([] {
    {
      const c10::DebugInfoGuard guard(c10::DebugInfoKind::TEST_INFO, std::make_shared<OfAProfiler>());
      const OwnerScope scope("early", Role::kScratch);
      InWorker([] { EXPECT_EQ(PayerName(), "unattributed"); });
    }
    const OwnerScope scope("late", Role::kScratch);
    InWorker([] { EXPECT_EQ(PayerName(), "late"); });
  });
}

}  // namespace
}  // namespace gpuledger::pytorch
