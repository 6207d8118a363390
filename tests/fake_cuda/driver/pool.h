// Pools of stream-ordered memory. Work is done at once, so memory that is freed can be used again at once.
#pragma once

#include <map>
#include <memory>

#include "driver.h"

namespace fake_cuda {

struct Pool {
  Pool(Device& on, uint64_t most_bytes);

  Device& device;
  Segments segments;
  const uint64_t most;  // it may reserve
  bool is_default = false;
  bool destroyed = false;      // and still in use
  std::shared_ptr<File> file;  // of the process that exported it
  CUmemPoolProps props = {};
  std::map<CUmemPool_attribute, uint64_t> settings;
  std::map<int, CUmemAccess_flags> access;
  uint64_t used = 0, used_high = 0, reserved_high = 0;
};

void MakeDefaultPool(Device& device);

CUresult AllocateFrom(Pool& pool, Context& context, uint64_t size, Address& address);
// Gives one allocation of a pool back; with the last one a destroyed pool goes.
void FreeToPool(Allocation& allocation, const char* by);

// At once if nothing of it is allocated, else with the last allocation.
void DestroyPool(Pool& pool);

// What a synchronisation does: gives back what the release threshold does not keep.
void TrimPools(Device& device);

CUresult FindPool(CUmemoryPool handle, Pool*& pool);

}  // namespace fake_cuda
