// quant/codec_floats.h - floats of 16 bits to 32 and back, as F16C and PyTorch convert them, in portable arithmetic.
#pragma once

#include <bit>
#include <cstdint>

#include "gpuledger/four_bit.h"

namespace gpuledger::codec {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Exact. A NaN keeps sign and payload; one of 16-bit width becomes quiet, as F16C makes it.
inline float ToFloat(float value) { return value; }
inline float ToFloat(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float ToFloat(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t shifted = magnitude << 13;
  const uint32_t normal = shifted + ((127u - 15u) << 23);
  // A subnormal, put below the implicit one of 2^-14, is exact after that one is subtracted again.
  const float subnormal = std::bit_cast<float>(shifted + ((127u - 14u) << 23)) - 0x1p-14f;
  const uint32_t special = shifted | 0x7f800000u | (magnitude > 0x7c00u ? 0x400000u : 0u);
  uint32_t bits = magnitude < 0x0400u ? std::bit_cast<uint32_t>(subnormal) : normal;
  bits = magnitude >= 0x7c00u ? special : bits;
  return std::bit_cast<float>(bits | (static_cast<uint32_t>(value.bits & 0x8000u) << 16));
}

// Rounded to nearest, ties to even; too large becomes infinity. A NaN becomes a quiet NaN of the same sign.
inline void FromFloat(float value, float* out) { *out = value; }
inline void FromFloat(float value, BFloat16* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void FromFloat(float value, Float16* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x1ffu);
  } else if (magnitude >= 0x477ff000u) {  // halfway between the largest float16 and the next power of two
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the last bits
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - ((127u - 15u) << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

// Calls `work` with a null pointer to the C++ type of `type`.
template <class Work>
decltype(auto) WithFloatType(FloatType type, Work work) {
  switch (type) {
    case FloatType::kFloat32:
      return work(static_cast<float*>(nullptr));
    case FloatType::kFloat16:
      return work(static_cast<Float16*>(nullptr));
    case FloatType::kBFloat16:
      return work(static_cast<BFloat16*>(nullptr));
  }
  Die("4-bit codec: no such element type");
}

}  // namespace gpuledger::codec
