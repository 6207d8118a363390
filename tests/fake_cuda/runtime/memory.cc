// Memory that belongs to no stream: device, pinned, managed and shared memory, pools, and what a pointer points to.
#include "state.h"

using namespace fake_cudart;

namespace {

// cuMemAlloc refuses 0 bytes; the runtime answers with a null pointer.
template <typename Allocate>
cudaError_t AllocateDevice(void** pointer, size_t bytes, Allocate allocate) {
  return WithContext([&](const Driver& driver) {
    if (pointer == nullptr) return cudaErrorInvalidValue;
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    CUdeviceptr address = 0;
    if (const CUresult result = allocate(driver, &address)) return FromDriver(result);
    *pointer = reinterpret_cast<void*>(address);
    return cudaSuccess;
  });
}

cudaError_t AllocateHost(void** pointer, size_t bytes, unsigned flags) {
  return WithContext([&](const Driver& driver) {
    if (pointer == nullptr) return cudaErrorInvalidValue;
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    return FromDriver(driver.MemHostAlloc(pointer, bytes, flags));
  });
}

CUdeviceptr Address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

cudaMemoryType MemoryType(unsigned type, bool managed) {
  if (managed) return cudaMemoryTypeManaged;
  if (type == CU_MEMORYTYPE_DEVICE) return cudaMemoryTypeDevice;
  return type == CU_MEMORYTYPE_HOST ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
}

}  // namespace

FAKE_CUDART_EXPORT cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return AllocateDevice(pointer, bytes,
                        [&](const Driver& driver, CUdeviceptr* address) { return driver.MemAlloc(address, bytes); });
}

FAKE_CUDART_EXPORT cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned flags) {
  return AllocateDevice(pointer, bytes, [&](const Driver& driver, CUdeviceptr* address) {
    return driver.MemAllocManaged(address, bytes, flags);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMallocPitch(void** pointer, size_t* pitch, size_t width, size_t height) {
  if (pitch == nullptr) return Remember(cudaErrorInvalidValue);
  return AllocateDevice(pointer, width * height, [&](const Driver& driver, CUdeviceptr* address) {
    constexpr unsigned kLargestElement = 16;
    return driver.MemAllocPitch(address, pitch, width, height, kLargestElement);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMalloc3D(cudaPitchedPtr* pitched, cudaExtent extent) {
  if (pitched == nullptr) return Remember(cudaErrorInvalidValue);
  pitched->xsize = extent.width;
  pitched->ysize = extent.height;
  return cudaMallocPitch(&pitched->ptr, &pitched->pitch, extent.width, extent.height * extent.depth);
}

FAKE_CUDART_EXPORT cudaError_t cudaMemAdvise(const void* pointer, size_t bytes, cudaMemoryAdvise advice,
                                             cudaMemLocation location) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.MemAdvise(Address(pointer), bytes, static_cast<CUmem_advise>(advice),
                                       reinterpret_cast<const CUmemLocation&>(location)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaFree(void* pointer) {
  return WithContext([&](const Driver& driver) {
    return pointer == nullptr ? cudaSuccess : FromDriver(driver.MemFree(Address(pointer)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.MemGetInfo(free, total)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return AllocateHost(pointer, bytes, 0); }

FAKE_CUDART_EXPORT cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  return AllocateHost(pointer, bytes, flags);
}

FAKE_CUDART_EXPORT cudaError_t cudaFreeHost(void* pointer) {
  return WithContext(
      [&](const Driver& driver) { return pointer == nullptr ? cudaSuccess : FromDriver(driver.MemFreeHost(pointer)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned flags) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.MemHostRegister(pointer, bytes, flags)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaHostUnregister(void* pointer) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.MemHostUnregister(pointer)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  return WithContext([&](const Driver& driver) {
    CUdeviceptr address = 0;
    const CUresult result = driver.MemHostGetDevicePointer(&address, host, flags);
    if (result == CUDA_SUCCESS) *device = reinterpret_cast<void*>(address);
    return FromDriver(result);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaHostGetFlags(unsigned* flags, void* pointer) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.MemHostGetFlags(flags, pointer)); });
}

// Memory that CUDA does not know is no error since CUDA 11: it is "unregistered".
FAKE_CUDART_EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return WithContext([&](const Driver& driver) {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    unsigned type = 0;
    int device = cudaInvalidDeviceId;
    CUdeviceptr address = 0;
    void* host = nullptr;
    unsigned managed = 0;
    CUpointer_attribute names[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                                   CU_POINTER_ATTRIBUTE_DEVICE_POINTER, CU_POINTER_ATTRIBUTE_HOST_POINTER,
                                   CU_POINTER_ATTRIBUTE_IS_MANAGED};
    void* values[] = {&type, &device, &address, &host, &managed};
    if (const CUresult result = driver.PointerGetAttributes(5, names, values, Address(pointer)))
      return FromDriver(result);
    *attributes = {};
    attributes->type = MemoryType(type, managed != 0);
    const bool known = attributes->type != cudaMemoryTypeUnregistered;
    attributes->device = known ? device : cudaInvalidDeviceId;
    attributes->devicePointer = known ? reinterpret_cast<void*>(address) : nullptr;
    attributes->hostPointer = known ? host : const_cast<void*>(pointer);
    return cudaSuccess;
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* pointer) {
  static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(CUipcMemHandle));
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.IpcGetMemHandle(reinterpret_cast<CUipcMemHandle*>(handle), Address(pointer)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaIpcOpenMemHandle(void** pointer, cudaIpcMemHandle_t handle, unsigned flags) {
  return WithContext([&](const Driver& driver) {
    CUdeviceptr address = 0;
    const CUresult result = driver.IpcOpenMemHandle(&address, reinterpret_cast<const CUipcMemHandle&>(handle), flags);
    if (result == CUDA_SUCCESS) *pointer = reinterpret_cast<void*>(address);
    return FromDriver(result);
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaIpcCloseMemHandle(void* pointer) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.IpcCloseMemHandle(Address(pointer))); });
}

FAKE_CUDART_EXPORT cudaChannelFormatDesc cudaCreateChannelDesc(int x, int y, int z, int w, cudaChannelFormatKind kind) {
  return {x, y, z, w, kind};
}
