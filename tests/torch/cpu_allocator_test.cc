#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <c10/core/CPUAllocator.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/torch.h"

namespace gpuledger::pytorch {
namespace {

using testing::HasSubstr;

class TorchCpuAllocatorTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(InstallCpuAllocator().ok()); }
  void TearDown() override {
    EXPECT_TRUE(CpuAllocator()->CheckInvariants().ok()) << CpuAllocator()->CheckInvariants();
    UninstallCpuAllocator();
  }
  static Usage UsageOf(std::string_view owner) { return CpuAllocator()->ledger().usage(InternOwner(owner)); }
};

TEST_F(TorchCpuAllocatorTest, ChargesATensorToTheOwnerOfItsThread) {
  at::Tensor tensor;
  {
    const OwnerScope scope("charged", Role::kActivation);
    tensor = at::empty({1000});
  }
  EXPECT_EQ(UsageOf("charged").requested, Bytes(4000u));
  EXPECT_EQ(UsageOf("charged").in_use, Bytes(4096u));
  EXPECT_EQ(CpuAllocator()->ledger().usage(InternOwner("charged"), Role::kActivation).count, 1u);
  tensor.reset();
  EXPECT_EQ(UsageOf("charged").in_use, Bytes());
}

TEST_F(TorchCpuAllocatorTest, AlignsTo64Bytes) {
  std::vector<at::Tensor> tensors;
  for (int64_t size = 1; size < 3000; size += 37) {
    tensors.push_back(at::empty({size}, at::kByte));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensors.back().data_ptr()) % 64, 0u) << size;
  }
}

TEST_F(TorchCpuAllocatorTest, GivesNothingForZeroBytes) {
  const OwnerScope scope("zero", Role::kOther);
  at::Tensor empty = at::empty({0});
  EXPECT_EQ(empty.storage().data(), nullptr);
  EXPECT_EQ(UsageOf("zero").count, 0u);
  empty.resize_({3});
  EXPECT_EQ(UsageOf("zero").requested, Bytes(12u));
  empty.resize_({0});
  empty.reset();
  EXPECT_EQ(UsageOf("zero").count, 0u);
}

TEST_F(TorchCpuAllocatorTest, FollowsAResize) {
  const OwnerScope scope("resized", Role::kOther);
  at::Tensor tensor = at::ones({256});
  tensor.resize_({4096});
  EXPECT_EQ(UsageOf("resized").requested, Bytes(16384u));
  EXPECT_EQ(UsageOf("resized").count, 1u);
  EXPECT_EQ(tensor.data_ptr<float>()[255], 1.0f);
}

TEST_F(TorchCpuAllocatorTest, OffersTheRawInterface) {
  c10::Allocator* const allocator = c10::GetCPUAllocator();
  void* const raw = allocator->raw_allocate(100);
  ASSERT_NE(raw, nullptr);
  allocator->raw_deallocate(raw);
  allocator->raw_deallocate(allocator->raw_allocate(0));
  const c10::DataPtr data = allocator->allocate(16);
  EXPECT_TRUE(allocator->is_simple_data_ptr(data));
  const c10::DataPtr copy = allocator->clone(data.get(), 16);
  EXPECT_NE(copy.get(), data.get());
}

TEST_F(TorchCpuAllocatorTest, InstallsOnceAndUninstalls) {
  c10::Allocator* const ours = c10::GetCPUAllocator();
  ASSERT_TRUE(InstallCpuAllocator().ok());
  EXPECT_EQ(c10::GetCPUAllocator(), ours);
  at::Tensor kept = at::ones({10});
  UninstallCpuAllocator();
  EXPECT_FALSE(CpuAllocatorInstalled());
  EXPECT_NE(c10::GetCPUAllocator(), ours);
  EXPECT_EQ(kept.sum().item<float>(), 10.0f);
  kept.reset();
  ASSERT_TRUE(InstallCpuAllocator().ok());
  EXPECT_EQ(c10::GetCPUAllocator(), ours);
}

TEST_F(TorchCpuAllocatorTest, ThrowsOutOfMemoryWithTheReport) {
  const OwnerScope scope("hungry", Role::kActivation);
  const at::Tensor held = at::empty({1 << 20}, at::kByte);
  CpuAllocator()->set_cap(CpuAllocator()->totals().reserved);
  try {
    const at::Tensor tensor = at::empty({int64_t{1} << 30}, at::kByte);
    ADD_FAILURE() << "allocated over the cap";
  } catch (const c10::OutOfMemoryError& error) {
    EXPECT_THAT(error.what(), HasSubstr("hungry"));
  }
  CpuAllocator()->set_cap(Bytes::Max());
  EXPECT_NO_THROW(at::empty({1 << 20}, at::kByte));
}

TEST_F(TorchCpuAllocatorTest, WorksInAForkedChildWhileOtherThreadsAllocate) {
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&stop] {
      for (int64_t n = 1; !stop; n = n % 5000 + 1) {
        const at::Tensor tensor = at::empty({n});
        WatchSource(tensor, kUnattributed);
      }
    });
  }
  const at::Tensor shared = at::ones({100000});
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const OwnerScope scope("child", Role::kOther);
      at::Tensor mine = at::empty({5000});
      shared.data_ptr<float>()[0] = 7;  // copy-on-write: the parent must not see it
      const bool charged = UsageOf("child").requested == Bytes(20000u);
      mine.reset();
      _exit(charged && CpuAllocator()->CheckInvariants().ok() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(shared.data_ptr<float>()[0], 1.0f);
}

TEST_F(TorchCpuAllocatorTest, ATensorMayBeFreedByAnotherThread) {
  const uint64_t before = UsageOf("wanderer").count;
  at::Tensor tensor;
  std::thread([&tensor] {
    const OwnerScope scope("wanderer", Role::kOther);
    tensor = at::empty({100});
  }).join();
  EXPECT_EQ(UsageOf("wanderer").count, before + 1);
  std::thread([moved = std::move(tensor)]() mutable { moved.reset(); }).join();
  EXPECT_EQ(UsageOf("wanderer").count, before);
}

}  // namespace
}  // namespace gpuledger::pytorch
