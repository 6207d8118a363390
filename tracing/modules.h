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

}  // namespace gpuledger
