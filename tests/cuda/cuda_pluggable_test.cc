// The functions that PyTorch's pluggable allocator takes, called as it calls them.
#include "gpuledger/gpuledger_pluggable.h"

#include <sys/wait.h>
#include <unistd.h>

#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/owner.h"
#include "gpuledger/process.h"
#include "machine.h"

namespace gpuledger::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using PoolName = std::pair<unsigned long long, unsigned long long>;
constexpr size_t kMiB = 1 << 20;

class PluggableTest : public CudaTest {
 protected:
  void SetUp() override {
    setenv("GPULEDGER_ON_MISUSE", "warn", 1);
    CudaTest::SetUp();
    if (!IsSkipped()) gpuledger_torch_empty_cache();
  }
  // Nothing of a test stays behind; devices stay open.
  void TearDown() override {
    CudaTest::TearDown();
    ForEachAllocator([](CachingAllocator& allocator) {
      EXPECT_TRUE(allocator.CheckInvariants().ok()) << allocator.CheckInvariants();
    });
    EXPECT_EQ(ProcessUsage().in_use, 0_B);
    gpuledger_torch_set_thrower(nullptr);
    if (machine().has_driver()) gpuledger_torch_memory_fraction(1, 0);
  }
  static void* Allocate(size_t size, CUstream_st* stream = nullptr, int device = 0) {
    return gpuledger_torch_malloc(size, device, stream);
  }
  static void Free(void* address, int device = 0) { gpuledger_torch_free(address, 0, device, nullptr); }
  static std::string Thrown(const std::function<void()>& body) {
    try {
      body();
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "nothing was thrown";
  }
  static std::string Said(const std::function<void()>& body) {
    ::testing::internal::CaptureStderr();
    body();
    return ::testing::internal::GetCapturedStderr();
  }
  // Lives as long as the allocators, as PyTorch's streams do.
  static CUstream_st* NewStream() {
    static std::vector<std::unique_ptr<OwnStream>>& kept = *new std::vector<std::unique_ptr<OwnStream>>;
    return kept.emplace_back(std::make_unique<OwnStream>())->raw();
  }
  Bytes FreeMemory() { return upstream().memory_info().free; }
};

TEST_F(PluggableTest, ChargesTheOwnerOfTheCallingThread) {
  SetSiteSource([]() noexcept { return SiteHere(); });
  void* block = nullptr;
  {
    const OwnerScope scope("model/up", Role::kQuantized);
    block = Allocate(5000);
  }
  SetSiteSource(nullptr);
  const LiveAllocation charge = FindInProcess(reinterpret_cast<uint64_t>(block)).value();
  EXPECT_EQ(OwnerName(charge.payer.owner), "model/up");
  EXPECT_EQ(charge.payer.role, Role::kQuantized);
  EXPECT_EQ(charge.requested, 5000_B);
  EXPECT_THAT(std::string(SiteName(charge.site)), HasSubstr("cuda_pluggable_test.cc"));
  EXPECT_EQ(reinterpret_cast<uint64_t>(block) % 512, 0u);
  Free(block);
}

TEST_F(PluggableTest, ZeroBytesAreNull) {
  EXPECT_EQ(Allocate(0), nullptr);
  EXPECT_EQ(Said([] { Free(nullptr); }), "");
}

TEST_F(PluggableTest, RunningOutThrowsInPyTorchsWordsWithTheReport) {
  const OwnerScope scope("model/big", Role::kOther);
  void* const held = Allocate(100 * kMiB);
  EXPECT_THAT(Thrown([] { Allocate(size_t{1} << 40); }),
              AllOf(StartsWith("CUDA out of memory. Tried to allocate 1.00 TiB. GPU 0, gpuledger: "), HasSubstr("model/big")));
  EXPECT_THAT(Thrown([] { Allocate(size_t{1} << 63); }), StartsWith("gpuledger: cannot allocate"));
  Free(held);
}

TEST_F(PluggableTest, TheThrowerDecidesWhatIsThrown) {
  struct Ours {
    int out_of_memory;
    std::string message;
  };
  gpuledger_torch_set_thrower([](int out_of_memory, const char* message) { throw Ours{out_of_memory, message}; });
  try {
    Allocate(size_t{1} << 40);
    ADD_FAILURE();
  } catch (const Ours& thrown) {
    EXPECT_EQ(thrown.out_of_memory, 1);
    EXPECT_THAT(thrown.message, StartsWith("CUDA out of memory."));
  }
  try {
    Allocate(1, nullptr, 77);
    ADD_FAILURE();
  } catch (const Ours& thrown) {
    EXPECT_EQ(thrown.out_of_memory, 0);
    EXPECT_THAT(thrown.message, HasSubstr("device 77"));
  }
  gpuledger_torch_set_thrower([](int, const char*) {});  // one that does not throw
  EXPECT_THAT(Thrown([] { Allocate(size_t{1} << 40); }), StartsWith("CUDA out of memory."));
}

TEST_F(PluggableTest, ADeviceThatIsNotThereIsASentence) {
  for (const int device : {-1, 100, 128, 1 << 20}) {
    EXPECT_THAT(Thrown([&] { Allocate(1, nullptr, device); }), AllOf(StartsWith("gpuledger: "), HasSubstr("device")));
  }
}

TEST_F(PluggableTest, AForeignAddressIsASentenceAndNoCrash) {
  char* const block = static_cast<char*>(Allocate(3 * kMiB));
  int foreign = 0;
  for (void* const address : {static_cast<void*>(&foreign), static_cast<void*>(block + kMiB), reinterpret_cast<void*>(~uintptr_t{0})}) {
    EXPECT_THAT(Said([&] { Free(address); }), HasSubstr("was not handed out by gpuledger, and is left alone"));
  }
  EXPECT_THAT(Said([&] { Free(block, 99); }), HasSubstr("on device 99 was not handed out"));
  Free(block);
  EXPECT_THAT(Said([&] { Free(block); }), HasSubstr("was freed already"));  // that one is ours
}

TEST_F(PluggableTest, BlocksAreReusedOnTheirStreamAndWaitForOthers) {
  if (!machine().fake()) GTEST_SKIP() << "needs the controls of the fake driver";
  CUstream_st* const side = NewStream();
  void* const first = Allocate(4 * kMiB);
  Free(first);
  EXPECT_EQ(Allocate(4 * kMiB), first);
  machine().HoldEvents(true);
  gpuledger_torch_record_stream(first, side);
  Free(first);
  EXPECT_EQ(ProcessUsage().pending, 4_MiB);
  void* const second = Allocate(4 * kMiB);
  EXPECT_NE(second, first);
  machine().HoldEvents(false);
  Free(second);
  gpuledger_torch_empty_cache();
  EXPECT_EQ(ProcessUsage().pending, 0_B);
  int foreign = 0;
  gpuledger_torch_record_stream(&foreign, side);
  gpuledger_torch_record_stream(nullptr, side);
  gpuledger_torch_record_stream(second, side);  // freed: nobody's
}

TEST_F(PluggableTest, TheCacheIsGivenBack) {
  const Bytes before = FreeMemory();
  Free(Allocate(40 * kMiB));
  EXPECT_EQ(FreeMemory(), before - 40_MiB);
  gpuledger_torch_empty_cache();
  EXPECT_EQ(FreeMemory(), before);
}

TEST_F(PluggableTest, TheBaseOfAnAddressIsItsBlock) {
  char* const block = static_cast<char*>(Allocate(3 * kMiB));
  size_t size = 0;
  EXPECT_EQ(gpuledger_torch_base_allocation(block + kMiB, &size), block);
  EXPECT_EQ(size, 3 * kMiB);
  EXPECT_EQ(gpuledger_torch_base_allocation(block, nullptr), block);
  EXPECT_EQ(gpuledger_torch_base_allocation(&size, &size), &size);
  EXPECT_EQ(size, 0u);
  Free(block);
}

TEST_F(PluggableTest, TheMemoryFractionIsACap) {
  const size_t total = upstream().memory_info().total.count();
  gpuledger_torch_memory_fraction(0.25, 0);
  void* const held = Allocate(total / 4 - 4 * kMiB);
  EXPECT_THAT(Thrown([] { Allocate(8 * kMiB); }), StartsWith("CUDA out of memory. Tried to allocate 8.00 MiB."));
  gpuledger_torch_memory_fraction(1, 0);
  Free(Allocate(8 * kMiB));
  Free(held);
  for (const double wrong : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THAT(Thrown([&] { gpuledger_torch_memory_fraction(wrong, 0); }), HasSubstr("it is from 0 to 1"));
  }
}

TEST_F(PluggableTest, APrivatePoolServesTheStreamsOfItsFilter) {
  CUstream_st* const captured = NewStream();
  Free(Allocate(8 * kMiB, captured));  // cached, and not the pool's
  const PoolName pool{0, 17};
  gpuledger_torch_begin_allocate_to_pool(0, pool, [&](CUstream_st* stream) { return stream == captured; });
  void* const outside = Allocate(8 * kMiB);
  void* const inside = Allocate(8 * kMiB, captured);
  Free(inside);
  EXPECT_EQ(Allocate(8 * kMiB, captured), inside);
  gpuledger_torch_end_allocate_to_pool(0, pool);
  void* const after = Allocate(8 * kMiB, captured);
  EXPECT_NE(after, inside);
  Free(inside);
  void* const apart = Allocate(8 * kMiB, captured);
  EXPECT_NE(apart, inside);  // what is cached in the pool stays there
  for (void* const block : {outside, after, apart}) Free(block);
  gpuledger_torch_empty_cache();
  const Bytes before = FreeMemory();
  gpuledger_torch_release_pool(0, pool);
  gpuledger_torch_empty_cache();
  EXPECT_GE(FreeMemory(), before + 8_MiB);
}

TEST_F(PluggableTest, APoolIsReleasedAfterItsLastUse) {
  const PoolName pool{0, 18};
  const auto fill = [&] {
    gpuledger_torch_begin_allocate_to_pool(0, pool, [](CUstream_st*) { return true; });
    void* const block = Allocate(8 * kMiB);
    Free(block);
    gpuledger_torch_end_allocate_to_pool(0, pool);
    return block;
  };
  void* const first = fill();
  EXPECT_EQ(fill(), first);
  gpuledger_torch_release_pool(0, pool);
  EXPECT_EQ(fill(), first);
  gpuledger_torch_release_pool(0, pool);
  gpuledger_torch_release_pool(0, pool);
  EXPECT_THAT(Said([&] { gpuledger_torch_release_pool(0, pool); }), HasSubstr("there is no private pool (0, 18)"));
}

TEST_F(PluggableTest, MistakesWithPoolsAreSentences) {
  const PoolName pool{3, 1};
  Free(Allocate(1));
  EXPECT_THAT(Said([&] { gpuledger_torch_end_allocate_to_pool(0, pool); }), HasSubstr("private pool (3, 1) is not being filled"));
  EXPECT_THAT(Said([&] { gpuledger_torch_end_allocate_to_pool(44, pool); }), HasSubstr("the device was never used"));
  EXPECT_THAT(Said([&] { gpuledger_torch_release_pool(44, pool); }), HasSubstr("the device was never used"));
  gpuledger_torch_begin_allocate_to_pool(0, pool, [](CUstream_st*) -> bool { throw std::runtime_error("of the filter"); });
  EXPECT_THAT(Thrown([&] { gpuledger_torch_begin_allocate_to_pool(0, pool, {}); }), HasSubstr("is being filled already"));
  EXPECT_EQ(Thrown([] { Allocate(1); }), "of the filter");
  gpuledger_torch_end_allocate_to_pool(0, pool);
  Free(Allocate(1));
  gpuledger_torch_release_pool(0, pool);
}

TEST_F(PluggableTest, ACaptureSurvivesWhatAPrivatePoolDoes) {
  CUstream_st* const captured = NewStream();
  const PoolName pool{0, 19};
  Free(Allocate(1));
  gpuledger_torch_begin_allocate_to_pool(0, pool, [&](CUstream_st* stream) { return stream == captured; });
  ASSERT_EQ(machine().Call("cuStreamBeginCapture_v2", captured, 0), cuda::kSuccess);
  void* const large = Allocate(30 * kMiB, captured);
  void* const small = Allocate(100, captured);
  Free(small);
  void* graph = nullptr;
  EXPECT_EQ(machine().Call("cuStreamEndCapture", captured, &graph), cuda::kSuccess);
  ASSERT_NE(graph, nullptr);
  gpuledger_torch_end_allocate_to_pool(0, pool);
  EXPECT_EQ(machine().Call("cuGraphDestroy", graph), cuda::kSuccess);
  Free(large);
  gpuledger_torch_release_pool(0, pool);
}

TEST_F(PluggableTest, EachCallThatFailsThrowsOrIsMadeGoodAndItGoesOn) {
  if (!machine().fake()) GTEST_SKIP() << "needs the controls of the fake driver";
  CUstream_st* const side = NewStream();
  std::vector<std::string> functions;
#define GPULEDGER_NAME(name, version, parameters) functions.push_back(#name);
  GPULEDGER_CUDA_FUNCTIONS(GPULEDGER_NAME)
#undef GPULEDGER_NAME
  int thrown = 0;
  for (const std::string& function : functions) {
    for (int nth = 1; nth <= 3; ++nth) {
      gpuledger_torch_empty_cache();
      machine().InjectFaults(function + ":" + std::to_string(nth) + "=999");
      std::vector<void*> blocks;
      for (const size_t size : {size_t{1000}, 3 * kMiB, 40 * kMiB}) {
        try {
          blocks.push_back(Allocate(size));
          gpuledger_torch_record_stream(blocks.back(), side);
        } catch (const std::runtime_error& error) {
          EXPECT_THAT(error.what(), HasSubstr("CUDA_ERROR_UNKNOWN (999)")) << function;
          ++thrown;
        }
      }
      for (void* const block : blocks) Free(block);
      gpuledger_torch_empty_cache();
      machine().ClearFaults();
      Free(Allocate(20 * kMiB));
      EXPECT_EQ(ProcessUsage().in_use, 0_B) << function;
    }
  }
  EXPECT_GE(thrown, 4);
}

TEST_F(PluggableTest, ThreadsFreeWhatOthersHaveAllocated) {
  std::vector<std::vector<void*>> blocks(8);
  std::vector<std::thread> threads;
  for (size_t n = 0; n < blocks.size(); ++n) {
    threads.emplace_back([&blocks, n] {
      const OwnerScope scope("thread" + std::to_string(n), Role::kOther);
      for (size_t i = 1; i <= 500; ++i) blocks[n].push_back(Allocate(i * 997 % 100000 + 1));
    });
  }
  for (std::thread& thread : threads) thread.join();
  Bytes sum;
  for (size_t n = 0; n < blocks.size(); ++n) sum += ProcessUsage(InternOwner("thread" + std::to_string(n))).in_use;
  EXPECT_EQ(ProcessUsage().in_use, sum);
  threads.clear();
  for (size_t n = 0; n < blocks.size(); ++n) {
    threads.emplace_back([&blocks, n] {
      for (void* const block : blocks[(n + 1) % blocks.size()]) Free(block);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(PluggableTest, AForkedChildIsRefusedWithASentence) {
  void* const held = Allocate(1000);
  const pid_t child = fork();
  if (child == 0) {
    const std::string said = Thrown([] { Allocate(1000); });
    const bool right = said.find("spawn") != std::string::npos;
    if (!right) std::fprintf(stderr, "in the child: %s\n", said.c_str());
    Free(held);
    _exit(right ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
  Free(held);
}

TEST_F(PluggableTest, AWrongVariableIsToldBeforeAnythingIsAllocated) {
  EXPECT_EQ(gpuledger_torch_prepare_pluggable(), GPULEDGER_OK);
  setenv("GPULEDGER_CAP", "plenty", 1);
  EXPECT_EQ(gpuledger_torch_prepare_pluggable(), GPULEDGER_INVALID_ARGUMENT);
  EXPECT_THAT(gpuledger_last_error(), HasSubstr("GPULEDGER_CAP"));
  unsetenv("GPULEDGER_CAP");
}

}  // namespace
}  // namespace gpuledger::testing
