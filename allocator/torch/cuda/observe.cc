#include "observe.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <fmt/format.h>

#include "gpuledger/owner.h"
#include "observed_device.h"

namespace gpuledger::pytorch {
namespace {

using c10::CachingDeviceAllocator::TraceEntry;
namespace native = c10::cuda::CUDACachingAllocator;

// By index. Set once, before the first event, and never destroyed: memory is freed after main() too.
std::atomic<const std::vector<std::unique_ptr<ObservedDevice>>*> devices = nullptr;

ObservedDevice& DeviceOf(const TraceEntry& e) { return *(*devices.load(std::memory_order_acquire))[static_cast<size_t>(e.device_)]; }
CUstream_st* StreamOf(const TraceEntry& e) { return static_cast<CUstream_st*>(e.stream_); }

// What this thread was told to have been allocated, until the size of its block is told too.
struct Allocation {
  bool awaits_size = false;
  int device = 0;
  uint64_t address = 0, requested = 0;
  CUstream_st* stream = nullptr;
  Payer payer;
  SiteId site = kNoSite;
};
thread_local Allocation allocation;
// An allocation that only makes the allocator look after pending blocks is nobody's.
thread_local bool looking_after = false;
// While this thread takes the list of what is alive, how many devices have given theirs: they do so one after the other, by index,
// but the event of it always names device 0. Negative otherwise: anybody may take a snapshot at any time.
thread_local int snapshots = -1;

void Charge(uint64_t size) {
  allocation.awaits_size = false;
  const DeviceId device(allocation.device);
  (*devices.load(std::memory_order_acquire))[static_cast<size_t>(allocation.device)]->Allocated(
      {allocation.payer, Bytes(allocation.requested), Bytes(size), Stream(device, allocation.stream), DevicePtr(device, allocation.address),
       allocation.site});
}

class SizeReport final : public c10::MemoryReportingInfoBase {
 public:
  void Await() { c10::ThreadLocalDebugInfo::_push(kKind, std::shared_ptr<c10::DebugInfoBase>(std::shared_ptr<void>(), this)); }
  void Forget() { c10::ThreadLocalDebugInfo::_pop(kKind); }

  void reportMemoryUsage(void* block, int64_t size, size_t allocated, size_t reserved, c10::Device device) override {
    Forget();
    if (allocation.awaits_size) Charge(static_cast<uint64_t>(size));
    c10::reportMemoryUsageToProfiler(block, size, allocated, reserved, device);
  }
  void reportOutOfMemory(int64_t size, size_t allocated, size_t reserved, c10::Device device) override {
    Forget();
    c10::reportOutOfMemoryToProfiler(size, allocated, reserved, device);
  }
  [[nodiscard]] bool memoryProfilingEnabled() const override { return true; }

 private:
  static constexpr c10::DebugInfoKind kKind = c10::DebugInfoKind::PROFILER_STATE;
};

SizeReport& Sizes() {
  static auto* const report = new SizeReport;
  return *report;
}

void OnEvent(const TraceEntry& e) noexcept {
  if (allocation.awaits_size) {  // no size was told: what was asked for is charged
    Sizes().Forget();
    Charge(SizeClass::For(Bytes(allocation.requested)).charged().count());
  }
  switch (e.action_) {
    case TraceEntry::ALLOC:
      if (looking_after) return;
      allocation = {true, e.device_, e.addr_, e.size_, StreamOf(e), CurrentPayer(), CurrentSite()};
      Sizes().Await();
      return;
    case TraceEntry::FREE_REQUESTED: return DeviceOf(e).FreeRequested(e.addr_);
    case TraceEntry::FREE_COMPLETED: return DeviceOf(e).FreeCompleted(e.addr_);
    case TraceEntry::SEGMENT_ALLOC:
    case TraceEntry::SEGMENT_MAP: return DeviceOf(e).Mapped(e.addr_, Bytes(e.size_), StreamOf(e));
    case TraceEntry::SEGMENT_FREE:
    case TraceEntry::SEGMENT_UNMAP: return DeviceOf(e).Unmapped(e.addr_, Bytes(e.size_), StreamOf(e));
    case TraceEntry::SNAPSHOT:
      if (snapshots >= 0) (*devices.load())[static_cast<size_t>(snapshots++)]->SnapshotTaken();
      return;
    case TraceEntry::OOM: return DeviceOf(e).OutOfMemory(Bytes(e.size_), StreamOf(e));
  }
}

// Waits for the device. The allocator looks whether pending blocks are complete when it next allocates: so it does, at once.
absl::Status WaitFor(c10::DeviceIndex device) {
  // Undone at the end, also by an exception.
  struct OnDevice {
    explicit OnDevice(c10::DeviceIndex device) : before(c10::cuda::ExchangeDevice(device)) { looking_after = true; }
    ~OnDevice() {
      looking_after = false;
      c10::cuda::ExchangeDevice(before);
    }
    const c10::DeviceIndex before;
  };
  try {
    const OnDevice scope(device);
    c10::cuda::device_synchronize();
    native::raw_delete(native::raw_alloc(1));
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return absl::InternalError(fmt::format("device {} could not be waited for: {}", device, error.what()));
  }
}

// Nothing where the driver does not answer, as in a forked child.
MemoryInfo MemoryOf(c10::DeviceIndex device) {
  size_t free = 0, total = 0;
  try {
    const c10::DeviceGuard on(c10::Device(c10::DeviceType::CUDA, device));
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) free = total = 0;
  } catch (const c10::Error&) {
  }
  return {Bytes(free), Bytes(total)};
}

void TakeOver(const std::vector<std::unique_ptr<ObservedDevice>>& observed) {
  std::vector<std::vector<ObservedDevice::Found>> found(observed.size());
  std::vector<uint64_t> reserved(observed.size());
  snapshots = 0;
  const native::SnapshotInfo everything = native::snapshot({0, 0}, /*include_traces=*/false);
  snapshots = -1;
  for (const native::SegmentInfo& segment : everything.segments) {
    const auto device = static_cast<size_t>(segment.device);
    reserved[device] += segment.total_size;
    uint64_t address = segment.address;
    for (const native::BlockInfo& block : segment.blocks) {
      if (block.active) {
        found[device].push_back({address, Bytes(block.requested_size), Bytes(block.size), static_cast<CUstream_st*>(segment.stream), !block.allocated});
      }
      address += block.size;
    }
  }
  for (size_t device = 0; device < observed.size(); ++device) observed[device]->EndTakeover(found[device], Bytes(reserved[device]));
}

}  // namespace

absl::Status ObserveCuda() {
  static_cast<void>(CurrentSite());  // with the GIL: what takes call stacks gets to know the interpreter here
  static auto* const mutex = new std::mutex;
  const std::lock_guard lock(*mutex);
  if (ObservingCuda()) return absl::OkStatus();
  const std::string name = native::get()->name();
  if (name != "native") {
    return absl::FailedPreconditionError(
        fmt::format("observe watches PyTorch's native allocator, but CUDA memory comes from another one ({}): take another way in, or leave that one out", name));
  }
  if (!native::get()->initialized()) {
    return absl::FailedPreconditionError("observe attaches to devices that are in use already: call torch.cuda.init() first");
  }
  auto observed = std::make_unique<std::vector<std::unique_ptr<ObservedDevice>>>();
  for (c10::DeviceIndex device = 0; device < c10::cuda::device_count(); ++device) {
    observed->push_back(std::make_unique<ObservedDevice>(DeviceId(device), [device] { return WaitFor(device); }, [device] { return MemoryOf(device); }));
    observed->back()->BeginTakeover();
  }
  devices.store(observed.get(), std::memory_order_release);
  native::attachAllocatorTraceTracker(OnEvent);
  TakeOver(*observed.release());
  return absl::OkStatus();
}

bool ObservingCuda() { return devices.load(std::memory_order_acquire) != nullptr; }

}  // namespace gpuledger::pytorch
