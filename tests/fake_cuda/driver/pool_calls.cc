// Stream-ordered memory and its pools.
#include <fmt/format.h>
#include <sys/mman.h>

#include <cstring>

#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "pool.h"
#include "shared_file.h"
#include "stream.h"

namespace fake_cuda {
namespace {

template <typename Use>
CUresult WithPool(CUmemoryPool handle, Use use) {
  Pool* pool = nullptr;
  const CUresult result = FindPool(handle, pool);
  return result != CUDA_SUCCESS ? result : use(*pool);
}

// While the stream is captured the memory belongs to the graph; else it comes out of the pool.
CUresult Allocate(CUdeviceptr* out, size_t size, Stream& stream, Pool& pool) {
  if (stream.capture == nullptr) {
    Address address = 0;
    const CUresult result = AllocateFrom(pool, *stream.context, size, address);
    if (result == CUDA_SUCCESS) *out = address;
    return result;
  }
  std::shared_ptr<GraphMemory> memory = GraphMemory::Take(*stream.context, size);
  if (memory == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  const Address address = memory->address();
  const CUresult result =
      Submit(stream, {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC, .kept = std::move(memory), .address = address});
  if (result == CUDA_SUCCESS) *out = address;
  return result;
}

// What imported allocations of a pool are found by; fits into CUmemPoolPtrExportData.
struct PointerData {
  uint64_t ticket;
  uint64_t offset;
  uint64_t size;
};
static_assert(sizeof(PointerData) <= sizeof(CUmemPoolPtrExportData));

}  // namespace

CUresult cuMemAllocAsync(CUdeviceptr* dptr, size_t size, CUstream handle) {
  Stream* stream = nullptr;
  if (const CUresult result = FindStream(handle, stream); result != CUDA_SUCCESS) return result;
  if (dptr == nullptr || size == 0) return CUDA_ERROR_INVALID_VALUE;
  return Allocate(dptr, size, *stream, *stream->context->device->pool);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr* dptr, size_t size, CUmemoryPool pool_handle, CUstream handle) {
  Stream* stream = nullptr;
  if (const CUresult result = FindStream(handle, stream); result != CUDA_SUCCESS) return result;
  if (dptr == nullptr || size == 0) return CUDA_ERROR_INVALID_VALUE;
  return WithPool(pool_handle, [&](Pool& pool) {
    return pool.file != nullptr ? CUDA_ERROR_NOT_PERMITTED : Allocate(dptr, size, *stream, pool);
  });
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  Stream* stream = nullptr;
  if (const CUresult result = FindStream(handle, stream); result != CUDA_SUCCESS) return result;
  if (address == 0) return CUDA_SUCCESS;
  Driver& state = driver();
  Allocation* const allocation = state.allocations.At(address);
  if (allocation != nullptr && allocation->family == Family::kGraph) {
    return Submit(*stream, {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .address = address});  // it goes with its graph
  }
  if (allocation == nullptr || (allocation->family != Family::kPool && allocation->family != Family::kDevice)) {
    return Misuse(CUDA_ERROR_INVALID_VALUE, state.allocations.Explain(address));
  }
  if (stream->capture != nullptr) {
    return CaptureMisuse(CUDA_ERROR_INVALID_VALUE,
                         fmt::format("{:#x} was not allocated in this graph, and a graph cannot free it", address));
  }
  FreeAllocation(*allocation, "cuMemFreeAsync");
  return CUDA_SUCCESS;
}

CUresult cuMemPoolCreate(CUmemoryPool* out, const CUmemPoolProps* props) {
  if (out == nullptr || props == nullptr || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
    return CUDA_ERROR_INVALID_VALUE;
  if (props->location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
  if ((props->handleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0) return CUDA_ERROR_NOT_SUPPORTED;
  Device* const device = FindDevice(props->location.id);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  auto pool = std::make_unique<Pool>(*device, props->maxSize);
  pool->props = *props;
  *out = reinterpret_cast<CUmemoryPool>(driver().pools.Add(std::move(pool)));
  return CUDA_SUCCESS;
}

// What is allocated stays valid; the pool goes with the last of it.
CUresult cuMemPoolDestroy(CUmemoryPool handle) {
  return WithPool(handle, [&](Pool& pool) {
    if (pool.is_default) return CUDA_ERROR_INVALID_VALUE;
    return DestroyPool(pool), CUDA_SUCCESS;
  });
}

CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep) {
  return WithPool(handle, [&](Pool& pool) { return pool.segments.Trim(keep), CUDA_SUCCESS; });
}

CUresult cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void* value) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithPool(handle, [&](Pool& pool) {
    auto& wide = *static_cast<cuuint64_t*>(value);
    switch (attribute) {
      case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
      case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
      case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        *static_cast<int*>(value) = int(pool.settings[attribute]);
        return CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        return wide = pool.settings[attribute], CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        return wide = pool.segments.reserved(), CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        return wide = pool.reserved_high, CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        return wide = pool.used, CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        return wide = pool.used_high, CUDA_SUCCESS;
      default:
        return CUDA_ERROR_INVALID_VALUE;
    }
  });
}

CUresult cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void* value) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithPool(handle, [&](Pool& pool) {
    const auto wide = [&] { return *static_cast<cuuint64_t*>(value); };
    switch (attribute) {
      case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
      case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
      case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        pool.settings[attribute] = uint64_t(*static_cast<int*>(value));
        return CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        return pool.settings[attribute] = wide(), CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        return wide() != 0 ? CUDA_ERROR_INVALID_VALUE : (pool.reserved_high = pool.segments.reserved(), CUDA_SUCCESS);
      case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        return wide() != 0 ? CUDA_ERROR_INVALID_VALUE : (pool.used_high = pool.used, CUDA_SUCCESS);
      default:
        return CUDA_ERROR_INVALID_VALUE;
    }
  });
}

CUresult cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc* map, size_t count) {
  if (map == nullptr && count != 0) return CUDA_ERROR_INVALID_VALUE;
  return WithPool(handle, [&](Pool& pool) {
    for (size_t i = 0; i < count; ++i) {
      if (FindDevice(map[i].location.id) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
      // The device of the pool always has access.
      const bool own = map[i].location.id == pool.device.ordinal;
      if (own && map[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return CUDA_ERROR_INVALID_VALUE;
      pool.access[map[i].location.id] = map[i].flags;
    }
    return CUDA_SUCCESS;
  });
}

CUresult cuMemPoolGetAccess(CUmemAccess_flags* flags, CUmemoryPool handle, CUmemLocation* location) {
  if (flags == nullptr || location == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithPool(handle, [&](Pool& pool) {
    if (FindDevice(location->id) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
    const auto found = pool.access.find(location->id);
    const bool own = location->id == pool.device.ordinal;
    *flags = own                          ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
             : found != pool.access.end() ? found->second
                                          : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    return CUDA_SUCCESS;
  });
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* out, CUdevice dev) {
  const Device* const device = FindDevice(dev);
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  *out = reinterpret_cast<CUmemoryPool>(device->default_pool);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetMemPool(CUmemoryPool* out, CUdevice dev) {
  const Device* const device = FindDevice(dev);
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  *out = reinterpret_cast<CUmemoryPool>(device->pool);
  return CUDA_SUCCESS;
}

CUresult cuDeviceSetMemPool(CUdevice dev, CUmemoryPool handle) {
  Device* const device = FindDevice(dev);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  return WithPool(handle, [&](Pool& pool) {
    if (&pool.device != device) return CUDA_ERROR_INVALID_DEVICE;
    return device->pool = &pool, CUDA_SUCCESS;
  });
}

CUresult cuMemGetDefaultMemPool(CUmemoryPool* out, CUmemLocation* location, CUmemAllocationType type) {
  if (location == nullptr || type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
  if (location->type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
  return fake_cuda::cuDeviceGetDefaultMemPool(out, location->id);
}

CUresult cuMemGetMemPool(CUmemoryPool* out, CUmemLocation* location, CUmemAllocationType type) {
  if (location == nullptr || type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
  if (location->type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
  return fake_cuda::cuDeviceGetMemPool(out, location->id);
}

CUresult cuMemSetMemPool(CUmemLocation* location, CUmemAllocationType type, CUmemoryPool pool) {
  if (location == nullptr || type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
  if (location->type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
  return fake_cuda::cuDeviceSetMemPool(location->id, pool);
}

CUresult cuMemPoolExportToShareableHandle(void* out, CUmemoryPool handle, CUmemAllocationHandleType type,
                                          unsigned long long flags) {
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  return WithPool(handle, [&](Pool& pool) {
    if ((pool.props.handleTypes & type) == 0 || pool.file != nullptr) return CUDA_ERROR_INVALID_VALUE;
    const int fd = ExportTicket(pool.device.memory, pool.device.memory.NewTicket()->offset());
    if (fd < 0) return CUDA_ERROR_OPERATING_SYSTEM;
    *static_cast<int*>(out) = fd;
    return CUDA_SUCCESS;
  });
}

CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool* out, void* os_handle, CUmemAllocationHandleType type,
                                            unsigned long long flags) {
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  ReceivedTicket received = ReceiveTicket(int(reinterpret_cast<intptr_t>(os_handle)));
  if (received.file == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Device* const device = FindDevice(received.device);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  auto pool = std::make_unique<Pool>(*device, 0);
  pool->file = std::move(received.file);
  *out = reinterpret_cast<CUmemoryPool>(driver().pools.Add(std::move(pool)));
  return CUDA_SUCCESS;
}

CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData* out, CUdeviceptr address) {
  const Allocation* const allocation = driver().allocations.At(address);
  if (out == nullptr || allocation == nullptr || allocation->family != Family::kPool) return CUDA_ERROR_INVALID_VALUE;
  Pool& pool = *allocation->pool;
  if ((pool.props.handleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == 0) return CUDA_ERROR_INVALID_VALUE;
  const Segments::Segment& segment = pool.segments.Find(address);
  const MappedTicket* const ticket = segment.physical->ticket();
  if (ticket == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const PointerData data = {ticket->offset(), address - segment.address, allocation->size};
  std::memset(out, 0, sizeof(*out));
  std::memcpy(out, &data, sizeof(data));
  return CUDA_SUCCESS;
}

CUresult cuMemPoolImportPointer(CUdeviceptr* out, CUmemoryPool handle, CUmemPoolPtrExportData* exported) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (out == nullptr || exported == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return WithPool(handle, [&](Pool& pool) {
    PointerData data;
    std::memcpy(&data, exported, sizeof(data));
    if (pool.file == nullptr) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<Physical> physical = pool.device.memory.Import(pool.file, data.ticket);
    if (physical == nullptr || data.size == 0 || data.size > physical->size() ||
        data.offset > physical->size() - data.size) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    const Address base = ReserveAddresses(physical->size(), kGranule);
    if (base == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    physical->Map(base, 0, physical->size(), PROT_READ | PROT_WRITE);
    *out = base + data.offset;
    pool.used += data.size;
    driver().allocations.Add({.address = *out,
                              .size = data.size,
                              .family = Family::kPool,
                              .device = pool.device.ordinal,
                              .context = context,
                              .physical = std::move(physical),
                              .mapped = base,
                              .pool = &pool});
    return CUDA_SUCCESS;
  });
}

}  // namespace fake_cuda
