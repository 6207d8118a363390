// Virtual memory management: physical memory by handle, address ranges, and what is mapped where.
#include <fmt/format.h>
#include <sys/mman.h>

#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "shared_file.h"

namespace fake_cuda {

struct MemoryHandle {
  std::shared_ptr<Physical> physical;
  CUmemAllocationProp properties;
  unsigned references;
  uint64_t value;
};

CUmemAllocationHandleType HandleTypesOf(const MemoryHandle& handle) { return handle.properties.requestedHandleTypes; }

namespace {

bool Aligned(uint64_t value) { return value % kGranule == 0; }

CUresult Check(const CUmemAllocationProp* properties) {
  if (properties == nullptr || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
  if ((properties->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0)
    return CUDA_ERROR_NOT_SUPPORTED;
  if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;  // on the host
  return FindDevice(properties->location.id) == nullptr ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUmemGenericAllocationHandle AddHandle(std::shared_ptr<Physical> physical, const CUmemAllocationProp& properties) {
  Driver& state = driver();
  const uint64_t value = (state.next_id++ << 4) | 0x1000000000000;
  state.memory_handles[value] = std::make_shared<MemoryHandle>(MemoryHandle{std::move(physical), properties, 1, value});
  return value;
}

std::shared_ptr<MemoryHandle> FindHandle(CUmemGenericAllocationHandle value, CUresult& result) {
  const auto found = driver().memory_handles.find(value);
  if (found != driver().memory_handles.end()) return found->second;
  const bool was = (value >> 48) == 1 && ((value & 0xffffffffffff) >> 4) < driver().next_id;
  result = was ? Misuse(CUDA_ERROR_INVALID_VALUE, fmt::format("the handle {:#x} was released before", value))
               : CUDA_ERROR_INVALID_VALUE;
  return nullptr;
}

// The range that [address, address + size) lies in; it may go on into ranges that follow without a gap.
bool Reserved(Address address, uint64_t size) {
  const auto& ranges = driver().ranges;
  for (const Address end = address + size; address < end;) {
    const auto after = ranges.upper_bound(address);
    if (after == ranges.begin()) return false;
    const auto& [start, range] = *std::prev(after);
    if (address >= start + range.size) return false;
    address = start + range.size;
  }
  return true;
}

// Calls `use` on each mapping in [address, address + size) if these are mapped without a gap and begin and end there.
template <typename Use>
bool ForEachMapping(Address address, uint64_t size, Use use) {
  if (size == 0) return false;
  Allocations& allocations = driver().allocations;
  const Address end = address + size;
  for (Address at = address; at < end;) {
    const Allocation* const allocation = allocations.At(at);
    if (allocation == nullptr || allocation->family != Family::kMapped || allocation->end() > end) return false;
    at = allocation->end();
  }
  for (Address at = address; at < end;) {
    Allocation* const allocation = allocations.At(at);
    at = allocation->end();
    use(*allocation);
  }
  return true;
}

int ProtectionOf(CUmemAccess_flags flags) {
  if (flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return PROT_READ | PROT_WRITE;
  return flags == CU_MEM_ACCESS_FLAGS_PROT_READ ? PROT_READ : PROT_NONE;
}

std::string MappingProblem(Address address, uint64_t size) {
  return fmt::format("[{:#x}, {:#x}) is not exactly what one or more cuMemMap calls mapped", address, address + size);
}

}  // namespace

CUresult cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp* properties,
                                       CUmemAllocationGranularity_flags) {
  if (granularity == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = Check(properties); result != CUDA_SUCCESS) return result;
  *granularity = kGranule;
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t size, const CUmemAllocationProp* properties,
                     unsigned long long flags) {
  if (handle == nullptr || size == 0 || !Aligned(size) || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult result = Check(properties); result != CUDA_SUCCESS) return result;
  std::shared_ptr<Physical> physical = FindDevice(properties->location.id)->memory.Take(size);
  if (physical == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = AddHandle(std::move(physical), *properties);
  return CUDA_SUCCESS;
}

// The memory itself lives on until it is mapped nowhere.
CUresult cuMemRelease(CUmemGenericAllocationHandle value) {
  CUresult result = CUDA_SUCCESS;
  const std::shared_ptr<MemoryHandle> handle = FindHandle(value, result);
  if (handle == nullptr) return result;
  if (--handle->references == 0) driver().memory_handles.erase(value);
  return CUDA_SUCCESS;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* value, void* pointer) {
  Driver& state = driver();
  const Allocation* const allocation = state.allocations.Containing(reinterpret_cast<Address>(pointer));
  if (value == nullptr || allocation == nullptr || allocation->family != Family::kMapped)
    return CUDA_ERROR_INVALID_VALUE;
  const std::shared_ptr<MemoryHandle>& handle = state.mappings.at(allocation->address);
  ++handle->references;
  state.memory_handles[handle->value] = handle;  // it may have been released while mapped
  *value = handle->value;
  return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* properties, CUmemGenericAllocationHandle value) {
  CUresult result = CUDA_SUCCESS;
  const std::shared_ptr<MemoryHandle> handle = FindHandle(value, result);
  if (handle == nullptr) return result;
  if (properties == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *properties = handle->properties;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* out, size_t size, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags) {
  if (out == nullptr || size == 0 || !Aligned(size) || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if ((alignment & (alignment - 1)) != 0) return CUDA_ERROR_INVALID_VALUE;
  const Address address = ReserveAddresses(size, std::max<size_t>(alignment, kGranule), hint);
  if (address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  driver().ranges[address] = {size};
  *out = address;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t size) {
  Driver& state = driver();
  const auto found = state.ranges.find(address);
  if (found == state.ranges.end() || found->second.size != size) {
    return Misuse(CUDA_ERROR_INVALID_VALUE,
                  fmt::format("[{:#x}, {:#x}) is not what a cuMemAddressReserve reserved", address, address + size));
  }
  if (state.allocations.Overlaps(address, size)) {
    return Misuse(CUDA_ERROR_INVALID_VALUE,
                  fmt::format("memory is still mapped in the range [{:#x}, {:#x})", address, address + size));
  }
  state.ranges.erase(found);
  FreeAddresses(address, size);
  return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle value,
                  unsigned long long flags) {
  CUresult result = CUDA_SUCCESS;
  const std::shared_ptr<MemoryHandle> handle = FindHandle(value, result);
  if (handle == nullptr) return result;
  Driver& state = driver();
  if (size == 0 || offset != 0 || flags != 0 || !Aligned(size) || !Aligned(address) ||
      size > handle->physical->size()) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!Reserved(address, size)) return CUDA_ERROR_INVALID_VALUE;
  if (state.allocations.Overlaps(address, size)) {
    return Misuse(CUDA_ERROR_INVALID_VALUE,
                  fmt::format("memory is already mapped in [{:#x}, {:#x})", address, address + size));
  }
  // No access before cuMemSetAccess: the pages stay as they are reserved.
  state.allocations.Add({.address = address,
                         .size = size,
                         .family = Family::kMapped,
                         .device = handle->properties.location.id,
                         .context = nullptr,
                         .physical = handle->physical});
  state.mappings[address] = handle;
  return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t size) {
  Driver& state = driver();
  const bool done = ForEachMapping(address, size, [&](Allocation& mapping) {
    const Address at = mapping.address;
    UnmapPages(at, mapping.size);
    state.allocations.Remove(at, "cuMemUnmap");
    state.mappings.erase(at);
  });
  return done ? CUDA_SUCCESS : Misuse(CUDA_ERROR_INVALID_VALUE, MappingProblem(address, size));
}

// The rights are kept by device. Addresses are host addresses, so what any device may do, all of them and the host can.
CUresult cuMemSetAccess(CUdeviceptr address, size_t size, const CUmemAccessDesc* descriptors, size_t count) {
  if (descriptors == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) {
    const CUmemLocation& location = descriptors[i].location;
    if (location.type == CU_MEM_LOCATION_TYPE_DEVICE && FindDevice(location.id) == nullptr)
      return CUDA_ERROR_INVALID_DEVICE;
  }
  const bool done = ForEachMapping(address, size, [&](Allocation& mapping) {
    for (size_t i = 0; i < count; ++i) mapping.access[descriptors[i].location.id] = ProtectionOf(descriptors[i].flags);
    const int protection = mapping.protection();
    if (protection == PROT_NONE) {
      UnmapPages(mapping.address, mapping.size);
    } else {
      mapping.physical->Map(mapping.address, 0, mapping.size, protection);
    }
  });
  return done ? CUDA_SUCCESS : Misuse(CUDA_ERROR_INVALID_VALUE, MappingProblem(address, size));
}

CUresult cuMemGetAccess(unsigned long long* flags, const CUmemLocation* location, CUdeviceptr address) {
  const Allocation* const allocation = driver().allocations.Containing(address);
  if (flags == nullptr || location == nullptr || allocation == nullptr || allocation->family != Family::kMapped) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const auto found = allocation->access.find(location->id);
  const int protection = found == allocation->access.end() ? PROT_NONE : found->second;
  *flags = (protection & PROT_WRITE) != 0  ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
           : (protection & PROT_READ) != 0 ? CU_MEM_ACCESS_FLAGS_PROT_READ
                                           : CU_MEM_ACCESS_FLAGS_PROT_NONE;
  return CUDA_SUCCESS;
}

CUresult cuMemExportToShareableHandle(void* out, CUmemGenericAllocationHandle value, CUmemAllocationHandleType type,
                                      unsigned long long flags) {
  CUresult result = CUDA_SUCCESS;
  const std::shared_ptr<MemoryHandle> handle = FindHandle(value, result);
  if (handle == nullptr) return result;
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  if ((handle->properties.requestedHandleTypes & type) == 0 || handle->physical->imported())
    return CUDA_ERROR_INVALID_VALUE;
  const MappedTicket* const ticket = handle->physical->ticket();
  if (ticket == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const int fd = ExportTicket(FindDevice(handle->physical->device())->memory, ticket->offset());
  if (fd < 0) return CUDA_ERROR_OPERATING_SYSTEM;
  *static_cast<int*>(out) = fd;
  return CUDA_SUCCESS;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* value, void* os_handle,
                                        CUmemAllocationHandleType type) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  ReceivedTicket received = ReceiveTicket(int(reinterpret_cast<intptr_t>(os_handle)));
  if (received.file == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Device* const device = FindDevice(received.device);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  std::shared_ptr<Physical> physical = device->memory.Import(std::move(received.file), received.offset);
  if (physical == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = type;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, device->ordinal};
  *value = AddHandle(std::move(physical), properties);
  return CUDA_SUCCESS;
}

}  // namespace fake_cuda
