// allocator/torch/cuda/sharing.h - memory between processes and devices: torch.multiprocessing, peer access.
#pragma once

#include <memory>
#include <string>

#include "devices.h"

namespace gpuledger::pytorch {

using c10::cuda::CUDACachingAllocator::ShareableHandle;

// What another process maps the block by (gpuledger/cuda_ipc.h). The block stays in use until it has. Throws for an address
// in no block in use, and where a device cannot share.
[[nodiscard]] ShareableHandle Share(Devices& devices, void* address);
// The memory that a process of gpuledger's has shared, mapped for the device; one mapping for all who ask for the same. Its
// end waits for the device. Throws with what was wrong.
[[nodiscard]] std::shared_ptr<void> Open(c10::DeviceIndex device, const std::string& handle);
// `device` may read and write what is, and will be, on `accessed`.
void AllowPeer(Devices& devices, c10::DeviceIndex device, c10::DeviceIndex accessed);

}  // namespace gpuledger::pytorch
