// The contract with several threads: allocating at once, freeing what another thread has allocated, and an upstream that
// is slow to say that it has taken memory back.
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "gpuledger/forwarding_upstream.h"
#include "resource_cases.h"

namespace gpuledger::testing {
namespace {

constexpr int kThreads = 4;
constexpr int kAllocations = 200;

void OnThreads(const std::function<void(int)>& function) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(function, i);
  for (std::thread& thread : threads) thread.join();
}

struct Live {
  void* pointer;
  size_t bytes;
  uint8_t value;
};

// From one thread to another, in order.
class Queue {
 public:
  void Put(std::optional<Live> block) {
    const std::lock_guard lock(mutex_);
    blocks_.push_back(block);
    changed_.notify_one();
  }
  std::optional<Live> Take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !blocks_.empty(); });
    const std::optional<Live> block = blocks_.front();
    blocks_.pop_front();
    return block;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::optional<Live>> blocks_;  // nothing: the end
};

template <class Case>
class ResourceThreadsTest : public ResourceContractTest<Case> {
 protected:
  Live Allocate(std::mt19937_64& random, cudaStream_t stream) {
    const size_t bytes = 1 + random() % (size_t{1} << (random() % 21));
    const Live block{this->resource().allocate(stream, bytes, 256), bytes, static_cast<uint8_t>(random())};
    Fill(block.pointer, block.bytes, block.value, stream);
    return block;
  }
  void Deallocate(const Live& block, cudaStream_t stream) {
    EXPECT_TRUE(Holds(block.pointer, block.bytes, block.value, stream));
    this->resource().deallocate(stream, block.pointer, block.bytes, 256);
  }
  void MixOn(cudaStream_t stream, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<Live> live;
    for (int step = 0; step < kAllocations; ++step) {
      if (live.empty() || (live.size() < 30 && random() % 100 < 60)) {
        live.push_back(Allocate(random, stream));
      } else {
        std::swap(live[random() % live.size()], live.back());
        Deallocate(live.back(), stream);
        live.pop_back();
      }
    }
    for (const Live& block : live) Deallocate(block, stream);
  }
  // `freeing` frees what the calling thread allocates on one stream; each block when it has been filled.
  void FreeElsewhere(cudaStream_t allocating, cudaStream_t freeing, uint64_t seed) {
    Queue queue;
    std::thread other([&] {
      while (const std::optional<Live> block = queue.Take()) Deallocate(*block, freeing);
    });
    std::mt19937_64 random(seed);
    for (int i = 0; i < kAllocations; ++i) {
      const Live block = Allocate(random, allocating);
      if (allocating != freeing) Synchronize(allocating);
      queue.Put(block);
    }
    queue.Put(std::nullopt);
    other.join();
  }
};
TYPED_TEST_SUITE(ResourceThreadsTest, AllCases);

TYPED_TEST(ResourceThreadsTest, FourThreadsOnStreamsOfTheirOwn) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  OnThreads([&](int thread) { this->MixOn(this->NewStream(), seed + thread); });
}

TYPED_TEST(ResourceThreadsTest, FourThreadsOnOneStream) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  const cudaStream_t stream = this->NewStream();
  OnThreads([&](int thread) { this->MixOn(stream, seed + thread); });
}

TYPED_TEST(ResourceThreadsTest, FourThreadsOnTheDefaultStreams) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  OnThreads([&](int thread) { this->MixOn(thread % 2 == 0 ? cudaStreamLegacy : nullptr, seed + thread); });
  OnThreads([&](int thread) { this->MixOn(cudaStreamPerThread, seed + thread); });
}

TYPED_TEST(ResourceThreadsTest, FourThreadsWithSynchronousCalls) {
  OnThreads([&](int thread) {
    const cudaStream_t stream = this->NewStream();
    for (int i = 0; i < kAllocations; ++i) {
      const size_t bytes = 1000 + 3000 * i;
      void* const pointer = this->resource().allocate_sync(bytes, 256);
      Fill(pointer, bytes, static_cast<uint8_t>(thread), stream);
      EXPECT_TRUE(Holds(pointer, bytes, static_cast<uint8_t>(thread), stream));
      this->resource().deallocate_sync(pointer, bytes, 256);
    }
  });
}

TYPED_TEST(ResourceThreadsTest, AnotherThreadFreesOnTheSameStream) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  const cudaStream_t stream = this->NewStream();
  this->FreeElsewhere(stream, stream, seed);
}

TYPED_TEST(ResourceThreadsTest, AnotherThreadFreesOnAnotherStream) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  OnThreads([&](int thread) { this->FreeElsewhere(this->NewStream(), this->NewStream(), seed + thread); });
}

TYPED_TEST(ResourceThreadsTest, AnotherThreadFreesOnItsPerThreadDefaultStream) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  // Two streams by one handle: the other thread waits for this one's before it frees.
  Queue queue;
  std::thread other([&] {
    while (const std::optional<Live> block = queue.Take()) this->Deallocate(*block, cudaStreamPerThread);
  });
  std::mt19937_64 random(seed);
  for (int i = 0; i < kAllocations; ++i) {
    const Live block = this->Allocate(random, cudaStreamPerThread);
    Synchronize(cudaStreamPerThread);
    queue.Put(block);
  }
  queue.Put(std::nullopt);
  other.join();
}

// An upstream that gives memory up and then takes its time to return: whoever asks meanwhile can be given the same
// addresses, while the thread that freed is still on its way to its books.
class DelayedUpstream : public ForwardingUpstream {
 public:
  explicit DelayedUpstream(std::unique_ptr<Upstream> inner_one) : ForwardingUpstream(*inner_one), owned_(std::move(inner_one)) {}
  absl::Status Unreserve(Range range) override { return Late(inner.Unreserve(range)); }
  absl::Status ReleaseHandle(HandleId handle) override { return Late(inner.ReleaseHandle(handle)); }
  absl::Status Unmap(DevicePtr address, HandleId handle) override { return Late(inner.Unmap(address, handle)); }

 private:
  static absl::Status Late(absl::Status status) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return status;
  }
  std::unique_ptr<Upstream> owned_;
};

// Each of them allocates what takes a good part of the cap, so that memory goes back to the upstream all the time, and asks
// at once whose the address is: the books must name its own owner and size, not those of the block that was there before.
class DelayedUpstreamTest : public RuntimeTest, public ::testing::WithParamInterface<bool> {};

TEST_P(DelayedUpstreamTest, AnAddressThatComesBackEarlyIsTheNewOwners) {
  constexpr int kRounds = 6;
  std::deque<RuntimeStream> streams(kThreads);
  MemoryResource resource(std::make_unique<DelayedUpstream>(CudaUpstream::Open(DeviceId(0), {.mapping = GetParam()}).value()),
                          {.cap = 136_MiB});
  std::atomic<int> reused = 0;
  std::mutex mutex;
  std::vector<void*> seen;
  OnThreads([&](int thread) {
    const std::string name = "tests/aba/" + std::to_string(thread);
    const OwnerScope scope(name, Role::kScratch);
    const cudaStream_t stream = streams[thread].raw();
    for (int round = 0; round < kRounds; ++round) {
      const size_t bytes = (size_t{32} << 20) + size_t{512} * (thread * kRounds + round + 1) - size_t{2 << 20};
      void* pointer = nullptr;
      while (pointer == nullptr) {
        try {
          pointer = resource.allocate(stream, bytes, 256);
        } catch (const OutOfMemoryError&) {  // the others have it all
          std::this_thread::yield();
        }
      }
      const absl::StatusOr<LiveAllocation> found =
          resource.allocator().Find(DevicePtr(DeviceId(0), reinterpret_cast<uint64_t>(pointer)));
      ASSERT_TRUE(found.ok());
      EXPECT_EQ(OwnerName(found->payer.owner), name);
      EXPECT_EQ(found->requested, Bytes(bytes));
      Fill(pointer, bytes, static_cast<uint8_t>(16 * thread + round), stream);
      EXPECT_TRUE(Holds(pointer, bytes, static_cast<uint8_t>(16 * thread + round), stream));
      {
        const std::lock_guard lock(mutex);
        reused += std::find(seen.begin(), seen.end(), pointer) != seen.end();
        seen.push_back(pointer);
      }
      resource.deallocate(stream, pointer, bytes, 256);
      resource.allocator().ReleaseCached();
    }
  });
  EXPECT_GT(reused, 0);  // or nothing was tried
  EXPECT_TRUE(resource.allocator().totals().in_use.is_zero());
  EXPECT_TRUE(resource.allocator().ledger().live().empty());
  EXPECT_EQ(resource.allocator().CheckInvariants(), absl::OkStatus());
}
INSTANTIATE_TEST_SUITE_P(, DelayedUpstreamTest, ::testing::Bool(),
                         [](const auto& test) { return std::string(test.param ? "Mapping" : "WholeRanges"); });

}  // namespace
}  // namespace gpuledger::testing
