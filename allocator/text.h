// allocator/text.h - how figures are written, in one place.
#pragma once

#include <cstdint>
#include <string>

#include "gpuledger/types.h"

namespace gpuledger {

// "1,572,864"
inline std::string WithThousands(uint64_t n) {
  std::string digits = std::to_string(n);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) digits.insert(static_cast<size_t>(at), 1, ',');
  return digits;
}

// "1.50 MiB (1,572,864 B)", or "512 B" below 1 KiB: rounded for the eye, exact for the record.
std::string Human(Bytes size);

}  // namespace gpuledger
