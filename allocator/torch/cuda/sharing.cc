#include "sharing.h"

#include <map>
#include <mutex>

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/util/Exception.h>

#include "gpuledger/cuda_ipc.h"

namespace gpuledger::pytorch {

ShareableHandle Share(Devices& devices, void* address) {
  for (Device* const device : devices.AllOpen()) {
    const DevicePtr at(device->id(), reinterpret_cast<uint64_t>(address));
    const absl::StatusOr<LiveAllocation> block = device->core().Find(at);
    if (!block.ok()) continue;
    const absl::StatusOr<ExportedMemory> exported = device->upstream().Export(block->address, block->charged);
    TORCH_CHECK(exported.ok(), "gpuledger: the tensor cannot be shared with another process: ", std::string(exported.status().message()));
    return {static_cast<ptrdiff_t>((exported->offset + (at - block->address)).count()), exported->handles};
  }
  TORCH_CHECK(false, "invalid device pointer: ", address, ": no block in use of gpuledger's allocator holds it, so it cannot be shared");
}

std::shared_ptr<void> Open(c10::DeviceIndex device, const std::string& handle) {
  struct Opened {
    std::mutex mutex;
    std::map<std::pair<c10::DeviceIndex, std::string>, std::weak_ptr<void>> memory;
  };
  static auto& opened = *new Opened;
  const std::lock_guard lock(opened.mutex);
  std::weak_ptr<void>& known = opened.memory[{device, handle}];
  if (std::shared_ptr<void> memory = known.lock()) return memory;
  absl::StatusOr<ImportedMemory> imported = ImportedMemory::Import(DeviceId(device), handle);
  if (!imported.ok()) opened.memory.erase({device, handle});
  TORCH_CHECK(imported.ok(), "gpuledger: memory of another process cannot be opened: ", std::string(imported.status().message()));
  std::erase_if(opened.memory, [&](const auto& entry) { return entry.second.expired() && &entry.second != &known; });
  auto held = std::make_shared<ImportedMemory>(*std::move(imported));
  std::shared_ptr<void> memory(held, reinterpret_cast<void*>(held->base().address()));
  known = memory;
  return memory;
}

void AllowPeer(Devices& devices, c10::DeviceIndex device, c10::DeviceIndex accessed) {
  const absl::Status allowed = devices.At(accessed).upstream().AllowPeer(DeviceId(device));
  TORCH_CHECK(allowed.ok(), "gpuledger: ", std::string(allowed.message()));
  // What is not ours: memory of cudaMalloc, such as NCCL's.
  const c10::cuda::CUDAGuard guard(device);
  const cudaError_t error = cudaDeviceEnablePeerAccess(accessed, 0);
  if (error == cudaErrorPeerAccessAlreadyEnabled) {
    static_cast<void>(cudaGetLastError());  // that is what was wanted
    return;
  }
  C10_CUDA_CHECK(error);
}

}  // namespace gpuledger::pytorch
