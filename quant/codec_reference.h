// quant/codec_reference.h - the scalar reference of both dialects, which every faster codec must equal byte by byte.
//
// Contracts are those of gpuledger/codec.h. Sizes are the caller's to check.
#pragma once

#include <cstdint>

#include "gpuledger/codec.h"

namespace gpuledger::codec {

void ReferenceQuantize(const FourBitFormat& format, Dialect dialect, FloatType from, const void* source,
                       uint64_t elements, uint8_t* packed, float* absmax);

void ReferenceDequantize(const FourBitFormat& format, const uint8_t* packed, const float* absmax, uint64_t elements,
                         FloatType to, void* out);

// Subnormals become zeros of the same sign, as in dialect `cuda` before and after each operation.
float Flush(float value);
// 1 / absmax as dialect `cuda` has it. On a GPU that is rcp.approx.ftz.f32, which may be one unit in the last place
// away from this correctly rounded quotient; subnormal arguments and results are zero in both.
float CudaReciprocal(float absmax);

}  // namespace gpuledger::codec
