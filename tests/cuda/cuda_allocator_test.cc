// The allocator on CUDA: captures, per-thread streams, streams that are destroyed, two devices, forks.
#include <sys/wait.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "gpuledger/allocator.h"
#include "gpuledger/process.h"
#include "machine.h"

namespace gpuledger::testing {
namespace {

using ::testing::HasSubstr;

// A stream that is retired before it is destroyed.
class UsedStream {
 public:
  explicit UsedStream(CachingAllocator& allocator) : allocator_(allocator) {}
  ~UsedStream() { EXPECT_TRUE(allocator_.RetireStream(own_.stream()).ok()); }
  UsedStream(const UsedStream&) = delete;
  UsedStream& operator=(const UsedStream&) = delete;
  [[nodiscard]] CUstream_st* raw() const { return own_.raw(); }
  [[nodiscard]] Stream stream() const { return own_.stream(); }

 private:
  CachingAllocator& allocator_;
  OwnStream own_;
};

class CudaAllocatorTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (upstream_ != nullptr) allocator_.emplace(*upstream_, AllocatorOptions{});
  }
  void TearDown() override {
    if (allocator_) {
      EXPECT_TRUE(allocator_->CheckInvariants().ok()) << allocator_->CheckInvariants();
    }
    allocator_.reset();
    CudaTest::TearDown();
  }
  CachingAllocator& allocator() { return *allocator_; }
  DevicePtr Allocate(Bytes size, Stream stream, PoolId pool = kSharedPool) {
    absl::StatusOr<DevicePtr> block = allocator().AllocateRaw(size, stream, kNoSite, pool);
    EXPECT_TRUE(block.ok()) << block.status();
    return block.ok() ? *block : DevicePtr::Null(DeviceId(0));
  }
  // Captures what `body` does on `stream`, in the mode that forbids most; the capture must survive it.
  template <class Body>
  void Capture(const UsedStream& stream, Body&& body) {
    constexpr auto kGlobal = static_cast<int>(cuda::kCaptureModeGlobal);
    ASSERT_EQ(machine().Call("cuStreamBeginCapture_v2", stream.raw(), kGlobal), cuda::kSuccess);
    body();
    void* graph = nullptr;
    EXPECT_EQ(machine().Call("cuStreamEndCapture", stream.raw(), &graph), cuda::kSuccess);
    ASSERT_NE(graph, nullptr);
    EXPECT_EQ(machine().Call("cuGraphDestroy", graph), cuda::kSuccess);
  }

  std::optional<CachingAllocator> allocator_;
};

TEST_F(CudaAllocatorTest, ACaptureSurvivesEverythingThatAPrivatePoolDoes) {
  const UsedStream own(allocator()), beside(allocator());
  allocator().Free(Allocate(6_MiB, beside.stream()));  // a donor, if it were asked
  const PoolId graph = allocator().CreatePool();
  Capture(own, [&] {
    const DevicePtr first = Allocate(3_MiB, own.stream(), graph), small = Allocate(1_KiB, own.stream(), graph);
    allocator().Free(first);
    EXPECT_EQ(Allocate(3_MiB, own.stream(), graph), first);
    allocator().Free(first);
    allocator().Free(small);
  });
  ASSERT_TRUE(allocator().ReleasePool(graph).ok());
  EXPECT_GE(allocator().ReleaseCached(), 12_MiB);
}

TEST_F(CudaAllocatorTest, ABlockUsedInACaptureStaysPendingUntilTheCaptureEnds) {
  const UsedStream own(allocator()), captured(allocator());
  const DevicePtr block = Allocate(1_MiB, own.stream());
  Capture(captured, [&] {
    ASSERT_TRUE(allocator().RecordStream(block, captured.stream()).ok());
    allocator().Free(block);
    EXPECT_EQ(allocator().CompletePending(), 0u);
    EXPECT_FALSE(allocator().Settle().ok());  // to wait for the device would break the capture
    EXPECT_EQ(allocator().totals().pending, 1_MiB);
  });
  EXPECT_TRUE(allocator().Settle().ok());
  EXPECT_EQ(allocator().totals().pending, 0_B);
}

TEST_F(CudaAllocatorTest, ACaptureSurvivesTheWholeLadderOnAnotherStream) {
  const UsedStream own(allocator()), captured(allocator());
  const PoolId gone = allocator().CreatePool();
  allocator().Free(Allocate(3_MiB, own.stream(), gone));
  ASSERT_TRUE(allocator().ReleasePool(gone).ok());
  allocator().Free(Allocate(1_KiB, captured.stream()));  // the allocator knows the stream
  Capture(captured, [&] {
    allocator().set_cap(allocator().totals().reserved);
    const absl::Status refused = allocator().AllocateRaw(512_MiB, own.stream()).status();
    EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
    allocator().set_cap(Bytes::Max());
  });
}

TEST_F(CudaAllocatorTest, ThePerThreadStreamOfAThreadIsItsOwn) {
  const Stream per_thread = Stream::PerThread(DeviceId(0));
  const DevicePtr mine = Allocate(1_KiB, per_thread);
  allocator().Free(mine);
  std::thread([&] {
    const DevicePtr theirs = Allocate(1_KiB, per_thread);
    EXPECT_NE(theirs, mine);
    allocator().Free(theirs);
  }).join();
  EXPECT_EQ(Allocate(1_KiB, per_thread), mine);
  allocator().Free(mine);
}

TEST_F(CudaAllocatorTest, ADestroyedStreamsBlocksAreFreedAsEver) {
  DevicePtr block = DevicePtr::Null(DeviceId(0));
  {
    const OwnStream own;
    block = Allocate(3_MiB, own.stream());
    ASSERT_TRUE(allocator().RetireStream(own.stream()).ok());
  }
  allocator().Free(block);
  EXPECT_EQ(allocator().ReleaseCached(), 4_MiB);
}

TEST_F(CudaAllocatorTest, EachDeviceHasAnAllocatorOfItsOwn) {
  const std::unique_ptr<CudaUpstream> second = OpenCuda(1);
  if (second == nullptr) GTEST_SKIP() << "one device here";
  CachingAllocator other(*second, {});
  const Buffer mine = *allocator().Allocate(3_MiB, stream()), theirs = *other.Allocate(5_MiB, Stream::Default(DeviceId(1)));
  EXPECT_EQ(allocator().totals().in_use, 3_MiB);
  EXPECT_EQ(other.totals().in_use, 5_MiB);
  EXPECT_TRUE(absl::IsInvalidArgument(other.Allocate(1_KiB, stream()).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(allocator().RecordStream(mine.ptr(), Stream::Default(DeviceId(1)))));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose shadows are terabytes that look like memory
// What earlier calls left on the stack is not there for who looks from above.
[[gnu::noinline]] void Lose(CachingAllocator& allocator, Bytes size, Stream stream, bool* at_a_mapping) {
  const absl::StatusOr<DevicePtr> block = allocator.AllocateRaw(size, stream, SiteHere());
  ASSERT_TRUE(block.ok());
  *at_a_mapping = block->address() % allocator.upstream().granularity().count() == 0;
}
[[gnu::noinline]] void ClearStack() {
  volatile char nothing[1 << 16];
  for (volatile char& c : nothing) c = 0;
}

TEST_F(CudaAllocatorTest, ABlockIsLostThoughTheDriverKnowsWhatIsMappedInItsMiddle) {
  const auto filler = std::make_unique<DevicePtr>(Allocate(1_MiB, stream()));
  bool at_a_mapping = true;
  Lose(allocator(), 7_MiB, stream(), &at_a_mapping);
  ASSERT_FALSE(at_a_mapping);
  ClearStack();
  const absl::StatusOr<std::vector<LiveAllocation>> lost = FindLost();
  ASSERT_TRUE(lost.ok()) << lost.status();
  ASSERT_EQ(lost->size(), 1u);
  EXPECT_EQ(lost->front().requested, 7_MiB);
  allocator().Free(lost->front().address);
  allocator().Free(*filler);
}
#endif

TEST_F(CudaAllocatorTest, AForkedChildsFirstRequestIsRefusedAndHostRequestsWork) {
  const DevicePtr block = Allocate(1_KiB, stream());
  allocator().Free(Allocate(1_KiB, stream()));
  const pid_t child = fork();
  if (child == 0) {
    const absl::Status refused = allocator().AllocateRaw(1_KiB, stream()).status();
    allocator().Free(block);  // the books alone
    _exit(absl::IsFailedPrecondition(refused) && std::string(refused.message()).find("spawn") != std::string::npos ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  allocator().Free(block);
}

}  // namespace
}  // namespace gpuledger::testing
