#include "direct.h"

#include <mutex>
#include <unordered_set>

#include <c10/core/Allocator.h>
#include <c10/core/impl/GPUTrace.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

namespace gpuledger::pytorch {
namespace {

struct Blocks {
  std::mutex mutex;
  std::unordered_set<void*> live;
  static Blocks& All() {
    static auto& all = *new Blocks;
    return all;
  }
};

}  // namespace

void* AllocateDirectly(c10::DeviceIndex device, size_t size) {
  const c10::cuda::CUDAGuard guard(device);
  void* block = nullptr;
  const cudaError_t error = cudaMalloc(&block, size);
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // it is answered here
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", c10::CachingAllocator::format_size(size), " on GPU ",
                     static_cast<int>(device), " with cudaMalloc, without a cache.");
  }
  C10_CUDA_CHECK(error);
  Blocks& all = Blocks::All();
  const std::lock_guard lock(all.mutex);
  all.live.insert(block);
  return block;
}

void DeleteDirectly(void* block) {
  if (block == nullptr) return;
  {
    Blocks& all = Blocks::All();
    const std::lock_guard lock(all.mutex);
    all.live.erase(block);
  }
  C10_CUDA_CHECK(cudaFree(block));
}

bool IsDirect(void* block) {
  Blocks& all = Blocks::All();
  const std::lock_guard lock(all.mutex);
  return all.live.contains(block);
}

}  // namespace gpuledger::pytorch
