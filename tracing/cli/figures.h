// cli/figures.h - sizes for the eye. The exact figure is ToString(Bytes).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gpuledger/types.h"

namespace gpuledger::cli {

std::string Human(Bytes size);                                                       // "54.88 MiB", "512 B"
std::string Count(uint64_t count);                                                   // "1,911,254"
std::string Shape(const std::vector<uint64_t>& shape);                               // "1536 x 384", "scalar"
std::string Line(std::string_view label, Bytes size, std::string_view remark = "");  // aligned: label, human, exact
std::string Line(std::string_view label, std::string_view text);                     // aligned: label, text

}  // namespace gpuledger::cli
