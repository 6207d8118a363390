// allocator/torch/cuda/direct.h - one cudaMalloc for each tensor: PYTORCH_NO_CUDA_MEMORY_CACHING, and caching switched off.
//
// In no ledger and no figure, as PyTorch has it: what is asked for here is memory of the driver's alone.
#pragma once

#include <cstddef>

#include <c10/core/Device.h>

namespace gpuledger::pytorch {

// Throws c10::OutOfMemoryError or c10::Error. Synchronises the device, as cudaMalloc may.
[[nodiscard]] void* AllocateDirectly(c10::DeviceIndex device, size_t size);
// The deleter of such blocks. Synchronises the device.
void DeleteDirectly(void* block);
// Whether AllocateDirectly gave it out, and nobody has deleted it yet.
[[nodiscard]] bool IsDirect(void* block);

}  // namespace gpuledger::pytorch
