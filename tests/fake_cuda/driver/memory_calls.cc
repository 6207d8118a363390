// Plain device memory and managed memory.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>

#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "misuse.h"
#include "pool.h"

namespace fake_cuda {
namespace {

constexpr uint64_t kLargestSmall = uint64_t{1} << 20;  // shares a granule with others
constexpr uint64_t kPitchUnit = 512;

uint64_t RoundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

CUresult Allocate(Context& context, Family family, uint64_t size, unsigned flags, CUdeviceptr* out) {
  Device& device = *context.device;
  Allocation allocation{
      .address = 0, .size = size, .family = family, .device = device.ordinal, .context = &context, .flags = flags};
  if (size <= kLargestSmall) {
    allocation.address = device.small.Take(size);
    if (allocation.address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  } else {
    allocation.physical = device.memory.Take(size);
    if (allocation.physical == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
    allocation.address = ReserveAddresses(allocation.physical->size(), kGranule);
    if (allocation.address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    allocation.physical->Map(allocation.address, 0, allocation.physical->size(), PROT_READ | PROT_WRITE);
  }
  *out = driver().allocations.Add(std::move(allocation)).address;
  return CUDA_SUCCESS;
}

CUresult AllocateHere(Family family, uint64_t size, unsigned flags, CUdeviceptr* out) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (out == nullptr || size == 0) return CUDA_ERROR_INVALID_VALUE;
  return Allocate(*context, family, size, flags, out);
}

}  // namespace

void FreeAllocation(Allocation& allocation, const char* by) {
  Driver& state = driver();
  switch (allocation.family) {
    case Family::kDevice:
    case Family::kManaged:
      if (allocation.physical == nullptr) {
        Segments& small = state.devices[size_t(allocation.device)]->small;
        small.Give(allocation.address, allocation.size);
        small.Trim(0);
      } else {
        FreeAddresses(allocation.address, allocation.physical->size());
      }
      break;
    case Family::kHost:
      FreeAddresses(allocation.address, RoundUp(allocation.size, 4096));
      break;
    case Family::kIpc:
      FreeAddresses(allocation.mapped, allocation.physical->size());
      break;
    case Family::kPool:
      FreeToPool(allocation, by);
      return;
    case Family::kRegistered:
    case Family::kGraph:   // freed by the graph
    case Family::kMapped:  // freed by cuMemUnmap
      break;
  }
  state.allocations.Remove(allocation.address, by);
}

CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
  CUresult result = CUDA_SUCCESS;
  Context* const context = CurrentContext(result);
  if (context == nullptr) return result;
  if (free != nullptr) *free = context->device->memory.free();
  if (total != nullptr) *total = context->device->memory.total();
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr* dptr, size_t size) { return AllocateHere(Family::kDevice, size, 0, dptr); }

CUresult cuMemAllocPitch_v2(CUdeviceptr* dptr, size_t* pitch, size_t width, size_t height, unsigned element) {
  if (pitch == nullptr || width == 0 || height == 0) return CUDA_ERROR_INVALID_VALUE;
  if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
  if (width > SIZE_MAX - kPitchUnit || RoundUp(width, kPitchUnit) > SIZE_MAX / height) return CUDA_ERROR_OUT_OF_MEMORY;
  *pitch = RoundUp(width, kPitchUnit);
  return AllocateHere(Family::kDevice, *pitch * height, 0, dptr);
}

CUresult cuMemAllocManaged(CUdeviceptr* dptr, size_t size, unsigned flags) {
  if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) return CUDA_ERROR_INVALID_VALUE;
  return AllocateHere(Family::kManaged, size, flags, dptr);
}

CUresult cuMemFree_v2(CUdeviceptr address) {
  if (address == 0) return CUDA_SUCCESS;
  Driver& state = driver();
  Allocation* const allocation = state.allocations.At(address);
  if (allocation == nullptr || (allocation->family != Family::kDevice && allocation->family != Family::kManaged &&
                                allocation->family != Family::kPool)) {
    return Misuse(CUDA_ERROR_INVALID_VALUE, state.allocations.Explain(address));
  }
  if (state.held.holding()) WaitForAll(allocation->context);  // as on a GPU, it comes after all work
  FreeAllocation(*allocation, "cuMemFree");
  return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr address) {
  CUresult result = CUDA_SUCCESS;
  if (CurrentContext(result) == nullptr) return result;
  const Allocation* const allocation = driver().allocations.Containing(address);
  if (allocation == nullptr || !allocation->on_device()) return CUDA_ERROR_NOT_FOUND;
  if (base != nullptr) *base = allocation->address;
  if (size != nullptr) *size = allocation->size;
  return CUDA_SUCCESS;
}

// Managed memory lies where both sides see it; where it should lie has no effect.
CUresult cuMemAdvise_v2(CUdeviceptr address, size_t count, CUmem_advise, CUmemLocation) {
  return count != 0 && driver().allocations.Covers(address, count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemAdvise(CUdeviceptr address, size_t count, CUmem_advise advice, CUdevice) {
  return fake_cuda::cuMemAdvise_v2(address, count, advice, {});
}

CUresult cuMemPrefetchAsync_v2(CUdeviceptr address, size_t count, CUmemLocation, unsigned flags, CUstream) {
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  return count != 0 && driver().allocations.Covers(address, count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemPrefetchAsync(CUdeviceptr address, size_t count, CUdevice, CUstream stream) {
  return fake_cuda::cuMemPrefetchAsync_v2(address, count, {}, 0, stream);
}

}  // namespace fake_cuda
