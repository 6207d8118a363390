// allocator/torch/cuda/devices.h - the devices of the process under PyTorch, and the way of an allocation and of its end.
//
// Thread-safe. Errors are PyTorch's: c10::OutOfMemoryError (torch.cuda.OutOfMemoryError), and c10::Error for all else.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

#include <c10/core/impl/PyInterpreter.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include "device.h"

namespace gpuledger::pytorch {

class Devices {
 public:
  // The process's, and its end never comes: tensors may be freed after main().
  static Devices& Get();

  // How many devices there are, from PyTorch. None is opened.
  void Init(int count);
  [[nodiscard]] bool initialised() const { return count_.load(std::memory_order_acquire) > 0; }
  // Opens it if nobody has asked for it before; throws if there is no such device, or if it cannot be opened.
  Device& At(c10::DeviceIndex index) {
    if (index >= 0 && static_cast<size_t>(index) < open_.size()) {
      if (Device* const device = open_[static_cast<size_t>(index)].load(std::memory_order_acquire)) [[likely]] return *device;
    }
    return Open(index);
  }
  // Null if it was not opened. Throws if there is no such device.
  [[nodiscard]] Device* IfOpen(c10::DeviceIndex index) const;
  [[nodiscard]] std::vector<Device*> AllOpen() const;
  // The cache of every device was flushed, also of those that are not open: num_sync_all_streams counts it.
  void CountFlushes();
  [[nodiscard]] int64_t early_flushes(c10::DeviceIndex index) const { return early_flushes_[static_cast<size_t>(index)]; }
  void ForgetEarlyFlushes(c10::DeviceIndex index) { early_flushes_[static_cast<size_t>(index)] = 0; }
  // The device with a block in use there; null if there is none.
  [[nodiscard]] Device* OwnerOf(void* block) const;

  // `size` bytes for work on `stream`, on the device; never null. Throws.
  void* Allocate(c10::DeviceIndex index, size_t size, cudaStream_t stream);
  // Ends a block, in the order of its stream. Throws for an address that no block in use begins at.
  void Delete(void* block);

  // History and trackers are of all devices, also of those that are opened later. `configure` is called with each, its lock
  // held; the last one counts.
  void ConfigureHistory(std::function<void(History&)> configure);
  void Attach(const AllocatorTraceTracker& tracker);
  using OutOfMemoryObserver = c10::cuda::CUDACachingAllocator::OutOfMemoryObserver;
  void Attach(OutOfMemoryObserver observer);
  [[nodiscard]] std::vector<OutOfMemoryObserver> observers() const;

 private:
  static constexpr size_t kMost = 64;
  Device& Open(c10::DeviceIndex index);
  // A stream of another device has used a block of this device, if it is one: its visitors' work is waited for.
  static void AwaitVisitors(Device& device, DevicePtr block);
  // A free that history, trackers or Python's trace want to see.
  void DeleteWatched(Device& device, DevicePtr block, const c10::impl::PyInterpreter* trace);

  std::atomic<int> count_ = 0;
  std::array<std::atomic<Device*>, kMost> open_{};
  std::array<std::atomic<int64_t>, kMost> early_flushes_{};  // of devices that were not open
  mutable std::mutex mutex_;
  std::function<void(History&)> configure_history_;  // for devices that are opened later
  std::vector<AllocatorTraceTracker> trackers_;
  std::vector<OutOfMemoryObserver> observers_;
};

}  // namespace gpuledger::pytorch
