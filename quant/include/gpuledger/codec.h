// gpuledger/codec.h - floats to 4-bit codes and back, byte-identical to bitsandbytes.
//
// bitsandbytes' two backends give different bytes, so there are two dialects (Dialect). Each has a scalar reference
// (codec_reference.h); what runs is the widest SIMD of the machine, chosen at run time, and gives the same bytes.
//
// Pure functions on host memory: thread-safe, no allocation, no device call. A span of the wrong size is fatal.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "gpuledger/four_bit.h"

namespace gpuledger {

// The arithmetic of bitsandbytes' CPU backend, or of its CUDA backend.
enum class Dialect : uint8_t { kCpu, kCuda };

// The 16 table values, index = code: what bitsandbytes stores as quant_map.
GPULEDGER_EXPORT const std::array<float, 16>& CodeTable(QuantType type);
// The 256 values of the codes of double-quantized scales: what bitsandbytes stores as nested_quant_map.
GPULEDGER_EXPORT const std::array<float, 256>& NestedTable();

// Quantizes `elements` consecutive elements of type `from` at `source` (any alignment) in blocks of format.block; the
// scales are float32 whatever format.double_quant says. `packed` has PackedBytes(elements), `absmax` BlockCount entries.
// Parts of a weight may be quantized one by one, by several threads, if each part but the last is a multiple of
// format.block elements: the result is that of the whole. The low nibble behind an odd count is the code of zero.
GPULEDGER_EXPORT void Quantize4Bit(const FourBitFormat& format, Dialect dialect, FloatType from, const void* source,
                                   uint64_t elements, std::span<uint8_t> packed, std::span<float> absmax);

// table[code] * absmax in float32, rounded to nearest even to type `to`; `elements` values to `out` (any alignment).
GPULEDGER_EXPORT void Dequantize4Bit(const FourBitFormat& format, std::span<const uint8_t> packed,
                                     std::span<const float> absmax, uint64_t elements, FloatType to, void* out);

// The mean of a weight's scales, which double quantization subtracts: summed in the order of one thread of PyTorch.
GPULEDGER_EXPORT float AbsmaxOffset(std::span<const float> absmax);
// Quantizes absmax - offset. `codes` has as many entries as `absmax`, `nested_absmax` BlockCount(.., kNestedBlock).
GPULEDGER_EXPORT void QuantizeAbsmax(Dialect dialect, std::span<const float> absmax, float offset,
                                     std::span<uint8_t> codes, std::span<float> nested_absmax);
// NestedTable()[code] * nested_absmax, then + offset as an addition of its own.
GPULEDGER_EXPORT void RestoreAbsmax(std::span<const uint8_t> codes, std::span<const float> nested_absmax, float offset,
                                    std::span<float> absmax);

}  // namespace gpuledger
