// Stream-ordered memory pools, and the memory that graphs keep. Their structures and numbers are the driver's.
#include "state.h"

using namespace fake_cudart;

static_assert(sizeof(cudaMemPoolProps) == sizeof(CUmemPoolProps));
static_assert(sizeof(cudaMemAccessDesc) == sizeof(CUmemAccessDesc));
static_assert(sizeof(cudaMemLocation) == sizeof(CUmemLocation));

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  return WithDriver([&](const Driver& driver) { return FromDriver(driver.DeviceGetDefaultMemPool(pool, device)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int device) {
  return WithDriver([&](const Driver& driver) { return FromDriver(driver.DeviceGetMemPool(pool, device)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceSetMemPool(int device, cudaMemPool_t pool) {
  return WithDriver([&](const Driver& driver) { return FromDriver(driver.DeviceSetMemPool(device, pool)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* props) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.MemPoolCreate(pool, reinterpret_cast<const CUmemPoolProps*>(props)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.MemPoolDestroy(pool)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t bytes_to_keep) {
  return WithContext([&](const Driver& driver) { return FromDriver(driver.MemPoolTrimTo(pool, bytes_to_keep)); });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.MemPoolSetAttribute(pool, static_cast<CUmemPool_attribute>(attribute), value));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.MemPoolGetAttribute(pool, static_cast<CUmemPool_attribute>(attribute), value));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolSetAccess(cudaMemPool_t pool, const cudaMemAccessDesc* access, size_t count) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.MemPoolSetAccess(pool, reinterpret_cast<const CUmemAccessDesc*>(access), count));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolGetAccess(cudaMemAccessFlags* flags, cudaMemPool_t pool,
                                                    cudaMemLocation* location) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.MemPoolGetAccess(reinterpret_cast<CUmemAccess_flags*>(flags), pool,
                                              reinterpret_cast<CUmemLocation*>(location)));
  });
}

static_assert(sizeof(cudaMemPoolPtrExportData) == sizeof(CUmemPoolPtrExportData));

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolExportToShareableHandle(void* handle, cudaMemPool_t pool,
                                                                  cudaMemAllocationHandleType type, unsigned flags) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(
        driver.MemPoolExportToShareableHandle(handle, pool, static_cast<CUmemAllocationHandleType>(type), flags));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolImportFromShareableHandle(cudaMemPool_t* pool, void* handle,
                                                                    cudaMemAllocationHandleType type, unsigned flags) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(
        driver.MemPoolImportFromShareableHandle(pool, handle, static_cast<CUmemAllocationHandleType>(type), flags));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolExportPointer(cudaMemPoolPtrExportData* data, void* pointer) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.MemPoolExportPointer(reinterpret_cast<CUmemPoolPtrExportData*>(data),
                                                  reinterpret_cast<CUdeviceptr>(pointer)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemPoolImportPointer(void** pointer, cudaMemPool_t pool,
                                                        cudaMemPoolPtrExportData* data) {
  return WithContext([&](const Driver& driver) {
    return FromDriver(driver.MemPoolImportPointer(reinterpret_cast<CUdeviceptr*>(pointer), pool,
                                                  reinterpret_cast<CUmemPoolPtrExportData*>(data)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemGetDefaultMemPool(cudaMemPool_t* pool, cudaMemLocation* location,
                                                        cudaMemAllocationType type) {
  return WithDriver([&](const Driver& driver) {
    return FromDriver(driver.MemGetDefaultMemPool(pool, reinterpret_cast<CUmemLocation*>(location),
                                                  static_cast<CUmemAllocationType>(type)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemGetMemPool(cudaMemPool_t* pool, cudaMemLocation* location,
                                                 cudaMemAllocationType type) {
  return WithDriver([&](const Driver& driver) {
    return FromDriver(
        driver.MemGetMemPool(pool, reinterpret_cast<CUmemLocation*>(location), static_cast<CUmemAllocationType>(type)));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaMemSetMemPool(cudaMemLocation* location, cudaMemAllocationType type,
                                                 cudaMemPool_t pool) {
  return WithDriver([&](const Driver& driver) {
    return FromDriver(
        driver.MemSetMemPool(reinterpret_cast<CUmemLocation*>(location), static_cast<CUmemAllocationType>(type), pool));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGetGraphMemAttribute(int device, cudaGraphMemAttributeType attribute,
                                                              void* value) {
  return WithDriver([&](const Driver& driver) {
    return FromDriver(driver.DeviceGetGraphMemAttribute(device, static_cast<CUgraphMem_attribute>(attribute), value));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceSetGraphMemAttribute(int device, cudaGraphMemAttributeType attribute,
                                                              void* value) {
  return WithDriver([&](const Driver& driver) {
    return FromDriver(driver.DeviceSetGraphMemAttribute(device, static_cast<CUgraphMem_attribute>(attribute), value));
  });
}

FAKE_CUDART_EXPORT cudaError_t cudaDeviceGraphMemTrim(int device) {
  return WithDriver([&](const Driver& driver) { return FromDriver(driver.DeviceGraphMemTrim(device)); });
}
