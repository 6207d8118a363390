// gpuledger/nf4.h - the NF4 codec: 16- or 32-bit floats to 4-bit codes in blocks of 64, byte-identical to bitsandbytes.
//
// A weight is flattened row-major and cut into blocks of kNf4BlockSize elements (blocks cross rows). Each block stores
// its largest magnitude, absmax, as float32; each element becomes the index of the nearest of 16 table values after
// division by absmax. Elements 2i and 2i+1 share a byte, 2i in the high nibble. Dialect `cpu`: that of bitsandbytes
// 0.50.2's CPU backend. Its full blocks multiply by 1/max(absmax, 1e-38), a partial last block divides by
// max(absmax, 1e-38) and stores that; a tie goes to the smaller code; an all-zero block has codes 7. A NaN gives its
// whole block code 15; an infinity has code 15, whatever its sign, and the rest of its block 7.
// Source of table and format: bitsandbytes' documentation and wheel; the test beside the wheel decides.
//
// Pure functions on host memory: thread-safe, no allocation, no device call.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "gpuledger/four_bit.h"
#include "gpuledger/types.h"

namespace gpuledger {

inline constexpr uint64_t kNf4BlockSize = 64;

// The 16 table values, index = code; exactly what bitsandbytes stores as quant_map.
GPULEDGER_EXPORT const std::array<float, 16>& Nf4Table();

// Blocks, packed bytes and absmax bytes of a weight with `elements` elements.
constexpr uint64_t Nf4Blocks(uint64_t elements) { return (elements + kNf4BlockSize - 1) / kNf4BlockSize; }
constexpr Bytes Nf4PackedBytes(uint64_t elements) { return Bytes((elements + 1) / 2); }
constexpr Bytes Nf4AbsmaxBytes(uint64_t elements) { return Bytes(4 * Nf4Blocks(elements)); }

// Quantizes `elements` consecutive elements of `type` at `source`. `packed` has Nf4PackedBytes, `absmax` Nf4Blocks
// entries (fatal otherwise). Parts of a weight may be quantized one by one if each part but the last is a multiple of
// kNf4BlockSize elements: the result is that of the whole. An odd count gets code 7 (zero) in the last low nibble.
GPULEDGER_EXPORT void QuantizeNf4(FloatType type, const void* source, uint64_t elements, std::span<uint8_t> packed,
                                  std::span<float> absmax);

// table[code] * absmax in float32, `elements` values into `out`.
GPULEDGER_EXPORT void DequantizeNf4(std::span<const uint8_t> packed, std::span<const float> absmax, uint64_t elements,
                                    std::span<float> out);

}  // namespace gpuledger
