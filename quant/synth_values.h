// quant/synth_values.h - seeded values at any position of any tensor, in any order, the same on every machine.
//
// Four consecutive elements come from one 64-bit mix of (seed, name, position / 4); each picks one of 8192 quantiles of
// its distribution, in the tensor's own dtype. So the largest of them are 3.85 standard deviations from the mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "gpuledger/safetensors.h"

namespace gpuledger {

// F32, F16 and BF16 have values.
bool HasSynthValues(Dtype dtype);

// The bytes of the tensor from byte `offset`, which need not be the first of an element. Thread-safe, no state.
// Requires: HasSynthValues(dtype).
void FillSynthValues(uint64_t seed, std::string_view name, Dtype dtype, uint64_t offset, std::span<std::byte> out);

}  // namespace gpuledger
