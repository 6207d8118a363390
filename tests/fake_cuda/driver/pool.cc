#include "pool.h"

#include <fmt/format.h>

#include <algorithm>

#include "misuse.h"

namespace fake_cuda {
namespace {

constexpr uint64_t kPoolSegment = uint64_t{32} << 20;

void Destroy(Pool& pool) {
  pool.segments.Trim(0);  // the handle itself is remembered for a while
  pool.file = nullptr;
  driver().pools.Remove(&pool);
}

}  // namespace

Pool::Pool(Device& on, uint64_t most_bytes)
    : device(on), segments(on.memory, kPoolSegment), most(most_bytes != 0 ? most_bytes : UINT64_MAX) {
  settings = {{CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES, 1},
              {CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, 1},
              {CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, 1},
              {CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, 0}};
}

void MakeDefaultPool(Device& device) {
  auto pool = std::make_unique<Pool>(device, 0);
  pool->is_default = true;
  pool->props.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  pool->props.location = {CU_MEM_LOCATION_TYPE_DEVICE, device.ordinal};
  device.default_pool = device.pool = driver().pools.Add(std::move(pool));
}

CUresult AllocateFrom(Pool& pool, Context& context, uint64_t size, Address& address) {
  address = pool.segments.Take(size, pool.most);
  if (address == 0) {
    // Other pools may keep memory that nobody uses.
    for (const auto& [handle, other] : driver().pools.live()) {
      if (&other->device == &pool.device) other->segments.Trim(0);
    }
    address = pool.segments.Take(size, pool.most);
  }
  if (address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  driver().allocations.Add({.address = address,
                            .size = size,
                            .family = Family::kPool,
                            .device = pool.device.ordinal,
                            .context = &context,
                            .pool = &pool});
  pool.used += size;
  pool.used_high = std::max(pool.used_high, pool.used);
  pool.reserved_high = std::max(pool.reserved_high, pool.segments.reserved());
  return CUDA_SUCCESS;
}

void FreeToPool(Allocation& allocation, const char* by) {
  Pool& pool = *allocation.pool;
  if (allocation.physical != nullptr) {  // imported from another process
    FreeAddresses(allocation.mapped, allocation.physical->size());
  } else {
    pool.segments.Give(allocation.address, allocation.size);
  }
  pool.used -= allocation.size;
  driver().allocations.Remove(allocation.address, by);
  if (pool.destroyed && pool.used == 0) Destroy(pool);
}

void DestroyPool(Pool& pool) {
  for (const auto& device : driver().devices) {
    if (device->pool == &pool) device->pool = device->default_pool;
  }
  pool.destroyed = true;
  if (pool.used == 0) Destroy(pool);
}

void TrimPools(Device& device) {
  for (const auto& [handle, pool] : driver().pools.live()) {
    if (&pool->device == &device) pool->segments.Trim(pool->settings[CU_MEMPOOL_ATTR_RELEASE_THRESHOLD]);
  }
}

CUresult FindPool(CUmemoryPool handle, Pool*& pool) {
  pool = driver().pools.Find(handle);
  if (pool != nullptr && !pool->destroyed) return CUDA_SUCCESS;
  if (pool != nullptr || driver().pools.Died(handle)) {
    return Misuse(CUDA_ERROR_INVALID_VALUE, "the pool was destroyed before");
  }
  return CUDA_ERROR_INVALID_VALUE;
}

}  // namespace fake_cuda
