#include "devices.h"

#include <pthread.h>

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/GPUTrace.h>
#include <c10/util/Exception.h>

#include "out_of_memory.h"
#include "requests.h"

namespace gpuledger::pytorch {

Devices& Devices::Get() {
  static auto& devices = *[] {
    auto* const made = new Devices;
    pthread_atfork(nullptr, nullptr, [] {
      for (Device* const device : Get().AllOpen()) device->ForgetFigures();
    });
    return made;
  }();
  return devices;
}

void Devices::Init(int count) {
  TORCH_CHECK(count <= static_cast<int>(kMost), "gpuledger: there are ", count, " devices; it is made for up to ", kMost);
  int known = count_.load();
  while (known < count && !count_.compare_exchange_weak(known, count)) {
  }
}

Device* Devices::IfOpen(c10::DeviceIndex index) const {
  const int count = count_.load(std::memory_order_acquire);
  TORCH_CHECK(index >= 0 && index < count, "Invalid device argument ", static_cast<int>(index), ": there are ", count,
              " CUDA devices", count == 0 ? " (CUDA is not initialised: torch.cuda.init() does that)" : "");
  return open_[static_cast<size_t>(index)].load(std::memory_order_acquire);
}

Device& Devices::Open(c10::DeviceIndex index) {
  if (Device* const device = IfOpen(index)) return *device;
  const std::lock_guard lock(mutex_);
  std::atomic<Device*>& place = open_[static_cast<size_t>(index)];
  if (Device* const device = place.load(std::memory_order_acquire)) return *device;
  absl::StatusOr<std::unique_ptr<Device>> opened = Device::Open(index);
  TORCH_CHECK(opened.ok(), "gpuledger: ", std::string(opened.status().message()));
  (*opened)->WithLock([&](Statistics& statistics, History& history) {
    statistics.set_max_split_size(MaxSplitSize());
    statistics.CountSynchronisations(early_flushes_[static_cast<size_t>(index)].exchange(0));
    if (configure_history_) configure_history_(history);
    for (const AllocatorTraceTracker& tracker : trackers_) history.Attach(tracker);
  });
  if (const double fraction = ConfiguredMemoryFraction(); fraction < 1) (*opened)->SetMemoryFraction(fraction);
  place.store(opened->get(), std::memory_order_release);
  return *opened->release();
}

std::vector<Device*> Devices::AllOpen() const {
  std::vector<Device*> all;
  const int count = count_.load(std::memory_order_acquire);
  for (int i = 0; i < count; ++i) {
    if (Device* const device = open_[static_cast<size_t>(i)].load(std::memory_order_acquire)) all.push_back(device);
  }
  return all;
}

void Devices::CountFlushes() {
  const int count = count_.load(std::memory_order_acquire);
  for (int i = 0; i < count; ++i) {
    if (Device* const device = open_[static_cast<size_t>(i)].load(std::memory_order_acquire)) {
      device->WithLock([](Statistics& statistics, History&) { statistics.CountSynchronisations(1); });
    } else {
      early_flushes_[static_cast<size_t>(i)] += 1;
    }
  }
}

Device* Devices::OwnerOf(void* block) const {
  const int count = count_.load(std::memory_order_acquire);
  for (int i = 0; i < count; ++i) {
    Device* const device = open_[static_cast<size_t>(i)].load(std::memory_order_acquire);
    if (device != nullptr && device->pools().OwnerOf(DevicePtr(device->id(), reinterpret_cast<uint64_t>(block))) != nullptr) return device;
  }
  return nullptr;
}

void* Devices::Allocate(c10::DeviceIndex index, size_t size, cudaStream_t stream) {
  Device& device = At(index);
  const PrivatePools::Choice pool = device.pools().Choose(stream);
  std::optional<Call> call;
  if (device.history_active()) [[unlikely]] call.emplace(device.Gather(RecordContext::STATE), pool.id);
  const SiteId site = CurrentSite();
  const Stream on(device.id(), stream);
  const Bytes room = device.pools().Unsplit(pool, on, RoomFor(size, pool.whole));
  pool.allocator->TryCompletePending();  // as PyTorch's own does at each request: what other streams are done with is free at once
  absl::StatusOr<DevicePtr> block = pool.allocator->AllocateRaw(Bytes(size), on, site, pool.pool, room);
  if (absl::IsResourceExhausted(block.status())) [[unlikely]] {
    for (const PrivatePools::Choice& reserve : device.pools().Reserves()) {
      block = reserve.allocator->AllocateRaw(Bytes(size), on, site, reserve.pool, room);
      if (block.ok()) break;
    }
  }
  device.LearnRanges();
  if (!block.ok()) [[unlikely]] {
    if (!call.has_value()) call.emplace(nullptr, pool.id);
    ThrowRefusal(device, size, stream, *call, block.status());
  }
  void* const memory = reinterpret_cast<void*>(block->address());
  if (call.has_value() && call->thrown() != nullptr) [[unlikely]] {
    Delete(memory);
    std::rethrow_exception(call->thrown());
  }
  if (const c10::impl::PyInterpreter* const trace = c10::impl::GPUTrace::get_trace(); trace != nullptr) [[unlikely]] {
    (*trace)->trace_gpu_memory_allocation(c10::kCUDA, block->address());
  }
  return memory;
}

void Devices::AwaitVisitors(Device& device, DevicePtr block) {
  const std::shared_ptr<CachingAllocator> owner = device.pools().OwnerOf(block);
  if (owner == nullptr) return;
  try {
    const cudaStream_t stand_in = device.visiting_streams().StandIn(block.address(), device.index());
    if (stand_in == nullptr) return;
    const absl::Status noted = owner->RecordStream(block, Stream(device.id(), stand_in));
    TORCH_CHECK(noted.ok(), std::string(noted.message()));
  } catch (const c10::Error& error) {  // a block's end is told to nobody who could act on it
    TORCH_WARN("gpuledger: the stream of another device that used a block is not waited for: ", error.what_without_backtrace());
  }
}

void Devices::DeleteWatched(Device& device, DevicePtr block, const c10::impl::PyInterpreter* trace) {
  if (trace != nullptr) (*trace)->trace_gpu_memory_deallocation(c10::kCUDA, block.address());
  const Call call(device.Gather(RecordContext::ALL), {0, 0});
  const std::shared_ptr<CachingAllocator> owner = device.pools().OwnerOf(block);
  TORCH_CHECK(owner != nullptr && owner->TryFree(block), "gpuledger: invalid device pointer: no block in use begins there; it was freed already");
  if (call.thrown() != nullptr) TORCH_WARN("gpuledger: a trace tracker threw while a block was freed; the block is free");
}

void Devices::Delete(void* memory) {
  if (memory == nullptr) return;
  const int count = count_.load(std::memory_order_acquire);
  for (int i = 0; i < count; ++i) {
    Device* const device = open_[static_cast<size_t>(i)].load(std::memory_order_acquire);
    if (device == nullptr) continue;
    const DevicePtr block(device->id(), reinterpret_cast<uint64_t>(memory));
    if (device->visiting_streams().any()) [[unlikely]] AwaitVisitors(*device, block);
    const c10::impl::PyInterpreter* const trace = c10::impl::GPUTrace::get_trace();
    if (trace == nullptr && !device->history_active()) [[likely]] {
      if (device->pools().TryFree(block)) return;
    } else if (device->pools().OwnerOf(block) != nullptr) {
      return DeleteWatched(*device, block, trace);
    }
  }
  TORCH_CHECK(false, "gpuledger: invalid device pointer ", memory, ": no block in use begins there; it was freed already, or another allocator gave it out");
}

void Devices::ConfigureHistory(std::function<void(History&)> configure) {
  const std::lock_guard lock(mutex_);
  for (Device* const device : AllOpen()) device->WithLock([&](Statistics&, History& history) { configure(history); });
  configure_history_ = std::move(configure);
}

void Devices::Attach(const AllocatorTraceTracker& tracker) {
  const std::lock_guard lock(mutex_);
  for (Device* const device : AllOpen()) device->WithLock([&](Statistics&, History& history) { history.Attach(tracker); });
  trackers_.push_back(tracker);
}

void Devices::Attach(OutOfMemoryObserver observer) {
  const std::lock_guard lock(mutex_);
  observers_.push_back(std::move(observer));
}

std::vector<Devices::OutOfMemoryObserver> Devices::observers() const {
  const std::lock_guard lock(mutex_);
  return observers_;
}

}  // namespace gpuledger::pytorch
