// tracing/modules.h - which file a code address is of.
#pragma once

#include <cstdint>

#include "gpuledger/sites.h"

namespace gpuledger {

struct CodePlace {
  uint32_t module = 0;  // 0: in none
  uint64_t offset = 0;  // address minus load address
};
// Looks at what is loaded again if the address is in nothing known. May lock.
CodePlace PlaceOf(uintptr_t address);
// Whether a module went away since this was last asked; then what is loaded was looked at again.
bool SomethingWasUnloaded();

// Around fork: the list is whole in the child, and no thread is within the loader for it.
void LockModulesForFork() noexcept;
void UnlockModulesAfterFork() noexcept;

}  // namespace gpuledger
