// Pinned and registered host memory.
#include <fmt/format.h>
#include <sys/mman.h>

#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"

namespace fake_cuda {
namespace {

constexpr unsigned kHostAllocFlags =
    CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
constexpr unsigned kRegisterFlags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP |
                                    CU_MEMHOSTREGISTER_IOMEMORY | CU_MEMHOSTREGISTER_READ_ONLY;

Allocation* HostMemory(const void* pointer) {
  Allocation* const allocation = driver().allocations.Containing(reinterpret_cast<Address>(pointer));
  return allocation != nullptr && !allocation->on_device() ? allocation : nullptr;
}

CUresult Allocate(void** out, size_t size, unsigned flags) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (out == nullptr || size == 0 || (flags & ~kHostAllocFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  if (size > SIZE_MAX - 4096) return CUDA_ERROR_OUT_OF_MEMORY;
  void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  driver().allocations.Add({.address = reinterpret_cast<Address>(at),
                            .size = size,
                            .family = Family::kHost,
                            .device = context->device->ordinal,
                            .context = context,
                            .flags = flags});
  *out = at;
  return CUDA_SUCCESS;
}

CUresult Free(const void* pointer, Family family, const char* by, CUresult error) {
  Driver& state = driver();
  const Address address = reinterpret_cast<Address>(pointer);
  Allocation* const allocation = state.allocations.At(address);
  if (allocation == nullptr || allocation->family != family) return Misuse(error, state.allocations.Explain(address));
  FreeAllocation(*allocation, by);
  return CUDA_SUCCESS;
}

}  // namespace

// Memory on the host is seen by all devices, whatever the flags.
CUresult cuMemHostAlloc(void** pp, size_t size, unsigned flags) { return Allocate(pp, size, flags); }
CUresult cuMemAllocHost_v2(void** pp, size_t size) { return Allocate(pp, size, 0); }

CUresult cuMemFreeHost(void* p) {
  if (p == nullptr) return CUDA_SUCCESS;
  return Free(p, Family::kHost, "cuMemFreeHost", CUDA_ERROR_INVALID_VALUE);
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device_pointer, void* p, unsigned flags) {
  if (device_pointer == nullptr || flags != 0 || HostMemory(p) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *device_pointer = reinterpret_cast<CUdeviceptr>(p);
  return CUDA_SUCCESS;
}

CUresult cuMemHostGetFlags(unsigned* flags, void* p) {
  const Allocation* const allocation = HostMemory(p);
  if (flags == nullptr || allocation == nullptr || allocation->family != Family::kHost) return CUDA_ERROR_INVALID_VALUE;
  *flags = allocation->flags;
  return CUDA_SUCCESS;
}

CUresult cuMemHostRegister_v2(void* p, size_t size, unsigned flags) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (p == nullptr || size == 0 || (flags & ~kRegisterFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  Allocations& allocations = driver().allocations;
  const Address address = reinterpret_cast<Address>(p);
  if (size > UINT64_MAX - address) return CUDA_ERROR_INVALID_VALUE;
  if (allocations.Overlaps(address, size)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  allocations.Add({.address = address,
                   .size = size,
                   .family = Family::kRegistered,
                   .device = context->device->ordinal,
                   .context = context,
                   .flags = flags});
  return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void* p, size_t size, unsigned flags) {
  return fake_cuda::cuMemHostRegister_v2(p, size, flags);
}

CUresult cuMemHostUnregister(void* p) {
  return Free(p, Family::kRegistered, "cuMemHostUnregister", CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

}  // namespace fake_cuda
