#include "allocator_2_11.h"

#include <algorithm>

#include <torch/version.h>

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include "checkpoint.h"
#include "direct.h"
#include "requests.h"
#include "sharing.h"
#include "snapshot.h"

static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "this file is for PyTorch 2.11: others have other virtual functions");

namespace gpuledger::pytorch {

using c10::cuda::CUDACachingAllocator::StreamSegmentSize;

namespace {

Devices& All() { return Devices::Get(); }
void Delete(void* block) { All().Delete(block); }

constexpr size_t kTooLarge = size_t{1} << 60;

}  // namespace

Allocator211& Allocator211::Get() {
  static auto& allocator = *[] {
    static_cast<void>(Clock());  // begins
    return new Allocator211;
  }();
  return allocator;
}

// ---- blocks ------------------------------------------------------------------------------------------------------------

bool Allocator211::Direct() const { return !enabled_.load(std::memory_order_relaxed) || CachingSwitchedOff(); }

c10::DataPtr Allocator211::allocate(size_t size) {
  TORCH_CHECK_WITH(OutOfMemoryError, size < kTooLarge, "CUDA out of memory. Tried to allocate more than 1EB memory.");
  c10::DeviceIndex device = 0;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  const c10::Device on(c10::DeviceType::CUDA, device);
  if (Direct()) [[unlikely]] {
    void* const block = size == 0 ? nullptr : AllocateDirectly(device, size);
    return {block, block, &DeleteDirectly, on};
  }
  void* const block = size == 0 ? nullptr : All().Allocate(device, size, c10::cuda::getCurrentCUDAStream(device).stream());
  return {block, block, &Delete, on};
}

void* Allocator211::raw_alloc(size_t size) {
  if (size == 0) return nullptr;
  c10::DeviceIndex device = 0;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  return raw_alloc_with_stream(size, c10::cuda::getCurrentCUDAStream(device).stream());
}

void* Allocator211::raw_alloc_with_stream(size_t size, cudaStream_t stream) {
  if (size == 0) return nullptr;
  c10::DeviceIndex device = 0;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  return Direct() ? AllocateDirectly(device, size) : All().Allocate(device, size, stream);
}

void Allocator211::raw_delete(void* block) {
  if (Direct() && IsDirect(block)) return DeleteDirectly(block);
  All().Delete(block);
}

c10::DeleterFnPtr Allocator211::raw_deleter() const { return Direct() ? &DeleteDirectly : &Delete; }

void Allocator211::copy_data(void* to, const void* from, size_t size) const {
  C10_CUDA_CHECK(cudaMemcpy(to, from, size, cudaMemcpyDeviceToDevice));
}

void* Allocator211::getBaseAllocation(void* block, size_t* size) {
  Device* const device = All().OwnerOf(block);
  TORCH_CHECK(device != nullptr, "invalid device pointer: ", block);
  const std::optional<Range> segment = SegmentAt(*device, reinterpret_cast<uint64_t>(block));
  TORCH_CHECK(segment.has_value(), "invalid device pointer: ", block);
  if (size != nullptr) *size = segment->size.count();
  return reinterpret_cast<void*>(segment->base.address());
}

void Allocator211::recordStream(const c10::DataPtr& block, c10::cuda::CUDAStream stream) {
  // Blocks of others are not ours to keep: memory of other processes, and what was allocated directly.
  if (!block || block.get_deleter() != &Delete) return;
  Device* const device = All().OwnerOf(block.get());
  TORCH_CHECK(device != nullptr, "invalid device pointer: ", block.get());
  const DevicePtr address(device->id(), reinterpret_cast<uint64_t>(block.get()));
  if (stream.device_index() != device->index()) return device->visiting_streams().Note(address.address(), stream);
  const std::shared_ptr<CachingAllocator> owner = device->pools().OwnerOf(address);
  TORCH_CHECK(owner != nullptr, "invalid device pointer: ", block.get());
  const absl::Status noted = owner->RecordStream(address, Stream(device->id(), stream.stream()));
  TORCH_CHECK(noted.ok(), "gpuledger: ", std::string(noted.message()));
}

// ---- the cache -----------------------------------------------------------------------------------------------------------

void Allocator211::init(int device_count) { All().Init(device_count); }
bool Allocator211::initialized() { return All().initialised(); }

void Allocator211::emptyCache(c10::MempoolId_t pool) {
  if (pool == c10::MempoolId_t{0, 0}) All().CountFlushes();
  for (Device* const device : All().AllOpen()) {
    const Call call(device->Gather(RecordContext::ALL), pool);  // whose stack the entries of segments that go have
    if (pool == c10::MempoolId_t{0, 0}) device->core().ReleaseCached();
    device->pools().GiveBack(pool);
    device->ShareLimit();
  }
}

void Allocator211::enable(bool value) { enabled_.store(value, std::memory_order_relaxed); }
bool Allocator211::isEnabled() const { return enabled_.load(std::memory_order_relaxed); }

void Allocator211::cacheInfo(c10::DeviceIndex index, size_t* largest) {
  Device& device = All().At(index);
  if (*largest == 0) *largest = device.upstream().memory_info().free.count();
  for (const SegmentInfo& segment : device.core().segments()) {
    for (const BlockInfo& block : segment.blocks) {
      if (block.state == BlockState::kCached) *largest = std::max<size_t>(*largest, block.size.count());
    }
  }
}

double Allocator211::getMemoryFraction(c10::DeviceIndex index) {
  Device* const device = All().IfOpen(index);
  return device == nullptr ? ConfiguredMemoryFraction() : device->memory_fraction();
}

void Allocator211::setMemoryFraction(double fraction, c10::DeviceIndex index) {
  TORCH_CHECK(0 <= fraction && fraction <= 1, "invalid fraction: ", fraction, ". Please set within [0, 1].");
  All().At(index).SetMemoryFraction(fraction);
}

std::vector<StreamSegmentSize> Allocator211::getExpandableSegmentSizes(c10::DeviceIndex index) {
  std::vector<StreamSegmentSize> sizes;
  Device* const device = All().IfOpen(index);
  if (device == nullptr) return sizes;
  for (const SegmentInfo& segment : device->core().segments()) {
    size_t mapped = 0;
    for (const BlockInfo& block : segment.blocks) mapped += block.state == BlockState::kUnmapped ? 0 : block.size.count();
    if (segment.pool == kSharedPool && mapped > 0) sizes.emplace_back(segment.stream.raw(), segment.small, mapped);
  }
  return sizes;
}

// ---- figures and history ---------------------------------------------------------------------------------------------------

c10::CachingDeviceAllocator::DeviceStats Allocator211::getDeviceStats(c10::DeviceIndex index) {
  Device* const device = All().IfOpen(index);
  if (device == nullptr) {
    c10::CachingDeviceAllocator::DeviceStats nothing_yet;
    nothing_yet.num_sync_all_streams = All().early_flushes(index);
    return nothing_yet;
  }
  device->LearnRanges();
  return device->WithLock([](Statistics& statistics, History&) { return statistics.figures(); });
}

void Allocator211::resetAccumulatedStats(c10::DeviceIndex index) {
  All().ForgetEarlyFlushes(index);
  if (Device* const device = All().IfOpen(index)) device->WithLock([](Statistics& statistics, History&) { statistics.ResetAccumulated(); });
}

void Allocator211::resetPeakStats(c10::DeviceIndex index) {
  Device* const device = All().IfOpen(index);
  if (device == nullptr) return;
  device->LearnRanges();
  device->WithLock([](Statistics& statistics, History&) { statistics.ResetPeak(); });
}

c10::cuda::CUDACachingAllocator::SnapshotInfo Allocator211::snapshot(c10::MempoolId_t pool, bool include_traces) {
  return Snapshot(All(), pool, include_traces);
}

bool Allocator211::isHistoryEnabled() { return AnnotationsEnabled(); }

void Allocator211::recordHistory(bool enabled, CreateContextFn gather, size_t most_entries, RecordContext when, bool clear,
                                 const std::vector<std::string>& skip_actions) {
  // A device is opened with the history that was asked for before: so that is tried on one that is nobody's.
  History(0).Configure(enabled, gather, most_entries, when, clear, skip_actions);
  All().ConfigureHistory([=](History& history) { history.Configure(enabled, gather, most_entries, when, clear, skip_actions); });
  ConfigureAnnotations(enabled, most_entries, clear);
}

void Allocator211::recordAnnotation(const std::vector<std::pair<std::string, std::string>>& annotation) { Annotate(annotation); }
void Allocator211::pushCompileContext(std::string& context) { ThreadLabels::OfThisThread().compiling.push_back(context); }
void Allocator211::popCompileContext() {
  auto& contexts = ThreadLabels::OfThisThread().compiling;
  if (!contexts.empty()) contexts.pop_back();
}
void Allocator211::setUserMetadata(const std::string& metadata) { ThreadLabels::OfThisThread().metadata = metadata; }
std::string Allocator211::getUserMetadata() { return ThreadLabels::OfThisThread().metadata; }

void Allocator211::attachOutOfMemoryObserver(c10::cuda::CUDACachingAllocator::OutOfMemoryObserver observer) { All().Attach(std::move(observer)); }

void Allocator211::attachAllocatorTraceTracker(AllocatorTraceTracker tracker) { All().Attach(tracker); }

// ---- pools -----------------------------------------------------------------------------------------------------------------

void Allocator211::beginAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool, std::function<bool(cudaStream_t)> filter) {
  All().At(device).pools().Begin(pool, std::move(filter));
}
void Allocator211::endAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool) { All().At(device).pools().End(pool); }
void Allocator211::releasePool(c10::DeviceIndex device, c10::MempoolId_t pool) { All().At(device).pools().Release(pool); }
int Allocator211::getPoolUseCount(c10::DeviceIndex device, c10::MempoolId_t pool) { return All().At(device).pools().UseCount(pool); }
void Allocator211::createOrIncrefPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                                      std::shared_ptr<c10::cuda::CUDACachingAllocator::CUDAAllocator> plugged) {
  All().At(device).pools().CreateOrIncrement(pool, std::move(plugged));
}
void Allocator211::setUseOnOOM(c10::DeviceIndex device, c10::MempoolId_t pool, bool use) { All().At(device).pools().set_use_on_oom(pool, use); }
void Allocator211::setNoSplit(c10::DeviceIndex device, c10::MempoolId_t pool) { All().At(device).pools().set_no_split(pool); }
bool Allocator211::checkPoolLiveAllocations(c10::DeviceIndex device, c10::MempoolId_t pool, const std::unordered_set<void*>& expected) {
  return LiveAre(All().At(device), pool, expected);
}
std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> Allocator211::getCheckpointState(c10::DeviceIndex device, c10::MempoolId_t pool) {
  return CheckpointOf(All().At(device), pool);
}
c10::cuda::CUDACachingAllocator::CheckpointDelta Allocator211::setCheckpointPoolState(
    c10::DeviceIndex device, std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> state) {
  return Restore(All().At(device), *state, &Delete);
}

// ---- between devices and processes -------------------------------------------------------------------------------------------

ShareableHandle Allocator211::shareIpcHandle(void* block) { return Share(All(), block); }

std::shared_ptr<void> Allocator211::getIpcDevPtr(std::string handle) { return Open(c10::cuda::current_device(), handle); }

void Allocator211::enablePeerAccess(c10::DeviceIndex device, c10::DeviceIndex accessed) { AllowPeer(All(), device, accessed); }

cudaError_t Allocator211::memcpyAsync(void* to, int to_device, const void* from, int from_device, size_t size, cudaStream_t stream,
                                      bool peer_access) {
  // Mapped memory of two devices that have no access to each other is copied by the driver, which has to be told so.
  if (peer_access || to_device == from_device) return cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, stream);
  return cudaMemcpyPeerAsync(to, to_device, from, from_device, size, stream);
}

}  // namespace gpuledger::pytorch
