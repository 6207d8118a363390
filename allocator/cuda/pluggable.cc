// The functions behind PyTorch's CUDAPluggableAllocator (gpuledger/gpuledger_pluggable.h).
#include "gpuledger/gpuledger_pluggable.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>

#include <fmt/format.h>

#include "allocator_impl.h"
#include "graph_pools.h"
#include "gpuledger/c_status.h"
#include "gpuledger/cuda_upstream.h"
#include "sync.h"

namespace gpuledger::cuda {
namespace {

std::atomic<gpuledger_torch_thrower> thrower{nullptr};

[[noreturn, gnu::cold]] void Throw(bool out_of_memory, const std::string& message) {
  if (const gpuledger_torch_thrower its = thrower.load(std::memory_order_acquire)) its(out_of_memory ? 1 : 0, message.c_str());
  throw std::runtime_error(message);
}

std::string_view Message(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

[[noreturn, gnu::cold]] void Throw(const absl::Status& status) { Throw(false, fmt::format("gpuledger: {}", Message(status))); }

void Warn(std::string_view call, std::string_view what) { fmt::print(stderr, "gpuledger: warning: {}: {}\n", call, what); }

// "1.50 MiB", as PyTorch has it.
std::string Rounded(size_t size) {
  if (size < 1024) return fmt::format("{} bytes", size);
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double figure = static_cast<double>(size) / 1024;
  size_t unit = 0;
  for (; figure >= 1024; figure /= 1024) ++unit;
  return fmt::format("{:.2f} {}", figure, kUnits[unit]);
}

[[noreturn, gnu::cold]] void FailToAllocate(size_t size, int device, const absl::Status& status) {
  if (status.code() != absl::StatusCode::kResourceExhausted) Throw(status);
  Throw(true, fmt::format("CUDA out of memory. Tried to allocate {}. GPU {}, gpuledger: {}", Rounded(size), device, Message(status)));
}

// A device in use. Never destroyed: tensors are freed after main().
struct PluggableDevice {
  PluggableDevice(std::unique_ptr<CudaUpstream> its_upstream, const AllocatorOptions& its_options)
      : options(its_options), upstream(std::move(its_upstream)), allocator(*upstream, options), pools(allocator) {}

  [[nodiscard]] DevicePtr At(const void* address) const { return {upstream->device(), reinterpret_cast<uint64_t>(address)}; }
  // Whether a block was ever handed out there: what is not so is not a mistake of the block's holder.
  [[nodiscard]] bool HandedOut(const void* address) const {
    return allocator.impl().blocks.Find(reinterpret_cast<uint64_t>(address)) != nullptr;
  }

  const AllocatorOptions options;
  const std::unique_ptr<CudaUpstream> upstream;
  CachingAllocator allocator;
  GraphPools pools;
};

constexpr int kMostDevices = 128;  // PyTorch numbers them in 8 bits
std::array<std::atomic<PluggableDevice*>, kMostDevices> devices{};

PluggableDevice* Opened(int device) {
  return device < 0 || device >= kMostDevices ? nullptr : devices[static_cast<size_t>(device)].load(std::memory_order_acquire);
}

template <class Visit>
void ForEachOpened(Visit visit) {
  for (const auto& device : devices) {
    if (PluggableDevice* const opened = device.load(std::memory_order_acquire)) visit(*opened);
  }
}

absl::StatusOr<PluggableDevice*> Open(int device) {
  static Mutex& mutex = *new Mutex;
  if (device < 0 || device >= kMostDevices) {
    return absl::InvalidArgumentError(fmt::format("there is no device {}: PyTorch has up to {}", device, kMostDevices));
  }
  const absl::StatusOr<AllocatorOptions> options = AllocatorOptions::FromEnvironment();
  if (!options.ok()) return options.status();
  MutexLock lock(mutex);
  if (PluggableDevice* const opened = Opened(device)) return opened;
  absl::StatusOr<std::unique_ptr<CudaUpstream>> upstream = CudaUpstream::Open(DeviceId(device));
  if (!upstream.ok()) return upstream.status();
  auto* const made = new PluggableDevice(*std::move(upstream), *options);
  devices[static_cast<size_t>(device)].store(made, std::memory_order_release);
  return made;
}

PluggableDevice& Use(int device) {
  if (PluggableDevice* const opened = Opened(device)) [[likely]] return *opened;
  const absl::StatusOr<PluggableDevice*> opened = Open(device);
  if (!opened.ok()) Throw(opened.status());
  return **opened;
}

}  // namespace
}  // namespace gpuledger::cuda

using gpuledger::Bytes;
using gpuledger::DevicePtr;
using gpuledger::Stream;
using namespace gpuledger::cuda;  // NOLINT: the functions below are the C face of what is above

gpuledger_status gpuledger_torch_prepare_pluggable(void) noexcept {
  return gpuledger::Guard([] {
    static_cast<void>(gpuledger::CurrentSite());
    return gpuledger::AllocatorOptions::FromEnvironment().status();
  });
}

void gpuledger_torch_set_thrower(gpuledger_torch_thrower its) noexcept { thrower.store(its, std::memory_order_release); }

void* gpuledger_torch_malloc(size_t size, int device, CUstream_st* stream) {
  const gpuledger::SiteId site = gpuledger::CurrentSite();
  PluggableDevice& d = Use(device);
  const absl::StatusOr<DevicePtr> block =
      d.allocator.AllocateRaw(Bytes(size), Stream(d.upstream->device(), stream), site, d.pools.For(stream));
  if (!block.ok()) FailToAllocate(size, device, block.status());
  return reinterpret_cast<void*>(block->address());
}

void gpuledger_torch_free(void* address, size_t, int device, CUstream_st*) {
  if (address == nullptr) return;
  PluggableDevice* const d = Opened(device);
  if (d == nullptr || !d->HandedOut(address)) [[unlikely]] {
    return Warn("gpuledger_torch_free", fmt::format("{} on device {} was not handed out by gpuledger, and is left alone: was it "
                                                    "allocated before gpuledger was installed?",
                                                    address, device));
  }
  d->allocator.Free(d->At(address));
}

void gpuledger_torch_init(int) {}

void gpuledger_torch_empty_cache(void) {
  ForEachOpened([](PluggableDevice& d) { d.allocator.ReleaseCached(); });
}

void gpuledger_torch_memory_fraction(double fraction, int device) {
  if (!(fraction >= 0 && fraction <= 1)) {
    Throw(absl::InvalidArgumentError(fmt::format("{} is no fraction of a device's memory: it is from 0 to 1", fraction)));
  }
  PluggableDevice& d = Use(device);
  const Bytes total = d.upstream->memory_info().total;
  // 1 is all of it, whatever a floating-point product says.
  const Bytes part = fraction == 1 ? total : Bytes(static_cast<uint64_t>(fraction * static_cast<double>(total.count())));
  d.allocator.set_cap(std::min(d.options.cap, part));
}

void* gpuledger_torch_base_allocation(void* address, size_t* size) {
  void* base = address;
  size_t bytes = 0;
  ForEachOpened([&](PluggableDevice& d) {
    const absl::StatusOr<gpuledger::LiveAllocation> block = d.allocator.Find(d.At(address));
    if (!block.ok()) return;
    base = reinterpret_cast<void*>(block->address.address());
    bytes = block->charged.count();
  });
  if (size != nullptr) *size = bytes;
  return base;
}

void gpuledger_torch_record_stream(void* address, CUstream_st* stream) {
  if (address == nullptr) return;
  ForEachOpened([&](PluggableDevice& d) {
    if (!d.HandedOut(address)) return;
    const absl::Status status = d.allocator.RecordStream(d.At(address), Stream(d.upstream->device(), stream));
    if (!status.ok() && !absl::IsNotFound(status)) Throw(status);
  });
}

void gpuledger_torch_begin_allocate_to_pool(int device, GraphPools::Id pool, GraphPools::Uses uses) {
  const absl::Status status = Use(device).pools.Begin(pool, std::move(uses));
  if (!status.ok()) Throw(status);
}

// Both are called by destructors of PyTorch's.
void gpuledger_torch_end_allocate_to_pool(int device, GraphPools::Id pool) {
  PluggableDevice* const d = Opened(device);
  const absl::Status status = d == nullptr ? absl::NotFoundError("the device was never used") : d->pools.End(pool);
  if (!status.ok()) Warn("gpuledger_torch_end_allocate_to_pool", Message(status));
}

void gpuledger_torch_release_pool(int device, GraphPools::Id pool) {
  PluggableDevice* const d = Opened(device);
  const absl::Status status = d == nullptr ? absl::NotFoundError("the device was never used") : d->pools.Release(pool);
  if (!status.ok()) Warn("gpuledger_torch_release_pool", Message(status));
}
