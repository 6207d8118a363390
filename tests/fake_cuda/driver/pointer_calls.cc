// What is known of an address.
#include <sys/mman.h>

#include "driver.h"
#include "driver_functions.h"
#include "entry.h"

namespace fake_cuda {
namespace {

template <typename T, typename V>
CUresult Set(void* data, V value) {
  *static_cast<T*>(data) = T(value);
  return CUDA_SUCCESS;
}

CUmemorytype TypeOf(const Allocation& allocation) {
  return allocation.on_device() ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
}

CUresult Read(void* data, CUpointer_attribute attribute, const Allocation& allocation, CUdeviceptr address) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      return Set<Context*>(data, allocation.context);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return Set<unsigned>(data, TypeOf(allocation));
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      return Set<CUdeviceptr>(data, address);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (allocation.on_device() && allocation.family != Family::kManaged) return CUDA_ERROR_INVALID_VALUE;
      return Set<CUdeviceptr>(data, address);
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
      return Set<unsigned>(data, 0);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      return Set<unsigned long long>(data, allocation.id);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return Set<unsigned>(data, allocation.family == Family::kManaged);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return Set<int>(data, allocation.device);
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      return Set<unsigned>(data, allocation.family == Family::kDevice);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return Set<CUdeviceptr>(data, allocation.address);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return Set<size_t>(data, allocation.size);
    case CU_POINTER_ATTRIBUTE_MAPPED:
      return Set<unsigned>(data, 1);
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES: {
      const auto mapping = driver().mappings.find(allocation.address);
      return Set<unsigned long long>(
          data, mapping != driver().mappings.end() ? HandleTypesOf(*mapping->second) : CU_MEM_HANDLE_TYPE_NONE);
    }
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
      return Set<unsigned>(data, 0);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS: {
      const bool none = allocation.family == Family::kMapped && allocation.protection() == PROT_NONE;
      const bool read = allocation.family == Family::kMapped && allocation.protection() == PROT_READ;
      return Set<unsigned>(data, none   ? CU_POINTER_ATTRIBUTE_ACCESS_FLAG_NONE
                                 : read ? CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READ
                                        : CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE);
    }
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
      return Set<Pool*>(data, allocation.pool);
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
      return Set<size_t>(data, allocation.size);
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
      return Set<CUdeviceptr>(data, allocation.address);
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
      return Set<unsigned long long>(data, allocation.id);
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}

// What cuPointerGetAttributes stores for an address that CUDA does not know.
size_t SizeOf(CUpointer_attribute attribute) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
      return sizeof(unsigned);
    default:
      return sizeof(void*);
  }
}

}  // namespace

CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr address) {
  if (data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Allocation* const allocation = driver().allocations.Containing(address);
  return allocation == nullptr ? CUDA_ERROR_INVALID_VALUE : Read(data, attribute, *allocation, address);
}

CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute* attributes, void** data, CUdeviceptr address) {
  if (attributes == nullptr || data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Allocation* const allocation = driver().allocations.Containing(address);
  for (unsigned i = 0; i < count; ++i) {
    if (allocation != nullptr && Read(data[i], attributes[i], *allocation, address) == CUDA_SUCCESS) continue;
    const bool ordinal = attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;  // -2: unknown
    const size_t size = SizeOf(attributes[i]);
    const int nothing[2] = {ordinal ? -2 : 0, 0};
    __builtin_memcpy(data[i], nothing, size);
  }
  return CUDA_SUCCESS;
}

CUresult cuPointerSetAttribute(const void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  if (value == nullptr || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) return CUDA_ERROR_INVALID_VALUE;
  return driver().allocations.Containing(address) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace fake_cuda
