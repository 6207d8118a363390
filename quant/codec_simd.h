// quant/codec_simd.h - the codec over whole blocks, in the widest SIMD there is: the bytes of codec_reference.h.
#pragma once

#include <cstdint>

#include "gpuledger/codec.h"

namespace gpuledger::codec {

// `blocks` whole blocks; contracts otherwise as in codec_reference.h.
void QuantizeWholeBlocks(const FourBitFormat& format, Dialect dialect, FloatType from, const void* source,
                         uint64_t blocks, uint8_t* packed, float* absmax);
void DequantizeWholeBlocks(const FourBitFormat& format, const uint8_t* packed, const float* absmax, uint64_t blocks,
                           FloatType to, void* out);

}  // namespace gpuledger::codec
