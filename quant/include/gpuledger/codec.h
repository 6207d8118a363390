// gpuledger/codec.h - floats to 4-bit codes and back, byte-identical to bitsandbytes.
//
// bitsandbytes' two backends give different bytes, so there are two dialects (Dialect). Each has a scalar reference
// (codec_reference.h); what runs is the widest SIMD of the machine, chosen at run time, and gives the same bytes.
//
// A block is scaled by its largest magnitude, and each value has the code of the table value that is nearest. The rest:
//
//                        dialect cpu                            dialect cuda
//   scaling              x * (1 / max(absmax, 1e-38)); a        x * (1 / absmax), subnormals being zero before and
//                        partial last block divides, and        after each operation; partial blocks too
//                        stores that maximum as its absmax
//   cut points, ties     midpoints; to the smaller value        literals; NF4 to the smaller value, FP4 towards zero
//   FP4's two zeros      8 for tiny positives, else 0           8 for tiny negatives, else 0
//   block of zeros       code of zero: NF4 7, FP4 0             code 0 (0 * infinity is a NaN)
//   NaN                  in the whole block: NF4 15, FP4 3;     code 0; others as if it were not there
//                        absmax is the first NaN, without its
//                        sign (partial last block: all ones)
//   infinity             NF4 15, FP4 3, whatever its sign;      code 0; the others' code is that of zero
//                        the others' code is that of zero
//   scales' codes        nearest to the middle of one of 65536  nearest; a NaN has code 0
//                        equal steps; a NaN has code 0
//
// Dialect cpu is what the wheel's CPU backend (0.50.2) does, NaNs included; a test runs both. Dialect cuda follows the
// published arithmetic of its kernels; on a GPU the reciprocal is an approximate instruction (codec_reference.h).
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
// scales are float32 whatever format.double_quant says. `packed` has PackedBytes, `absmax` BlockCount entries.
// Parts of a weight may be quantized one by one, by several threads, if each part but the last is a multiple of
// format.block elements: the result is that of the whole. The low nibble behind an odd count is the code of zero (in
// dialect cuda, of a zero in that block: 0 if all of it are zeros).
GPULEDGER_EXPORT void Quantize4Bit(const FourBitFormat& format, Dialect dialect, FloatType from, const void* source,
                                   uint64_t elements, std::span<uint8_t> packed, std::span<float> absmax);

// table[code] * absmax in float32, rounded to nearest even to type `to`, subnormals included; `elements` values to
// `out` (any alignment). bitsandbytes makes subnormal bfloat16 values zero where it uses an AVX512_BF16 instruction.
GPULEDGER_EXPORT void Dequantize4Bit(const FourBitFormat& format, std::span<const uint8_t> packed,
                                     std::span<const float> absmax, uint64_t elements, FloatType to, void* out);

// The mean of a weight's scales, which double quantization subtracts: summed in the order of PyTorch 2.11's CPU sum on
// one thread, which is the same for every vector width it dispatches to (more threads sum large weights in parts). The
// mean of no scales is 0.
GPULEDGER_EXPORT float AbsmaxOffset(std::span<const float> absmax);
// Quantizes absmax - offset. `codes` has as many entries as `absmax`, `nested_absmax` BlockCount(.., kNestedBlock).
GPULEDGER_EXPORT void QuantizeAbsmax(Dialect dialect, std::span<const float> absmax, float offset,
                                     std::span<uint8_t> codes, std::span<float> nested_absmax);
// NestedTable()[code] * nested_absmax, then + offset as an addition of its own.
GPULEDGER_EXPORT void RestoreAbsmax(std::span<const uint8_t> codes, std::span<const float> nested_absmax, float offset,
                                    std::span<float> absmax);

}  // namespace gpuledger
