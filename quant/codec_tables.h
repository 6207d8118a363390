// quant/codec_tables.h - tables and cut points of the 4-bit codes, for the scalar reference and the SIMD codec alike.
//
// Values in ascending order have a *rank*, 0 to 15. A scaled value's rank is the number of cut points below it; a code
// is found from its rank (in NF4 they are the same). Each dialect is a set of cut points: where bitsandbytes compares
// in another direction for negative values, the cut point here is the neighbouring float.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "gpuledger/codec.h"

namespace gpuledger::codec {

inline constexpr std::array<float, 16> kNf4Table = {
    // Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero.
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// Sign, two bits of exponent, one of fraction; in twelfths of the largest. The zero of code 8 has no sign.
inline constexpr std::array<float, 16> kFp4Table = [] {
  constexpr std::array<float, 8> kMagnitudes = {0.0f, 0.0625f, 8.0f, 12.0f, 4.0f, 6.0f, 2.0f, 3.0f};
  std::array<float, 16> table{};
  for (size_t i = 0; i < kMagnitudes.size(); ++i) {
    table[i] = kMagnitudes[i] / 12.0f;
    table[8 + i] = i == 0 ? 0.0f : -table[i];
  }
  return table;
}();

constexpr const std::array<float, 16>& TableOf(QuantType type) {
  return type == QuantType::kNf4 ? kNf4Table : kFp4Table;
}

inline constexpr std::array<uint8_t, 16> kNf4Codes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
// Rank 7 is code 0 and rank 8 code 8: in dialect `cpu` the cut between the two zeros is 0, and a tie goes down.
inline constexpr std::array<uint8_t, 16> kFp4CpuCodes = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
// In dialect `cuda` bit 3 is the sign of what is below zero.
inline constexpr std::array<uint8_t, 16> kFp4CudaCodes = {11, 10, 13, 12, 15, 14, 9, 8, 0, 1, 6, 7, 4, 5, 2, 3};

using Cuts = std::array<float, 15>;

// Dialect `cpu`: midpoints of neighbours, rounded to float.
constexpr Cuts Midpoints(const std::array<float, 16>& table, const std::array<uint8_t, 16>& codes) {
  Cuts cuts{};
  for (size_t i = 0; i < cuts.size(); ++i) cuts[i] = (table[codes[i]] + table[codes[i + 1]]) / 2;
  return cuts;
}

// Dialect `cuda`: literals of its own.
inline constexpr Cuts kNf4CudaCuts = {
    -0.8480964004993439f,  -0.6106329262256622f,   -0.4599952697753906f, -0.33967943489551544f, -0.23460740596055984f,
    -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f, 0.1202552504837513f,   0.2035212516784668f,
    0.2920137718319893f,   0.3893125355243683f,    0.5016634166240692f,  0.6427869200706482f,   0.8614784181118011f,
};
inline constexpr std::array<float, 7> kFp4CudaMagnitudeCuts = {
    0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f,
};
// Magnitudes are compared there, so that a tie goes towards zero on both sides: below zero, x > cut is |x| <= -cut if
// the cut is the float below the literal. The zeros are parted by "less than zero", where nothing subnormal is left.
inline constexpr Cuts kFp4CudaCuts = [] {
  Cuts cuts{};
  for (size_t i = 0; i < kFp4CudaMagnitudeCuts.size(); ++i) {
    const float cut = kFp4CudaMagnitudeCuts[i];
    cuts[8 + i] = cut;
    cuts[6 - i] = -std::bit_cast<float>(std::bit_cast<uint32_t>(cut) + 1);
  }
  cuts[7] = -0x1p-126f;
  return cuts;
}();

struct Encoding {
  Cuts cuts;
  std::array<uint8_t, 16> codes;  // by rank
};
inline constexpr Encoding kNf4Cpu = {Midpoints(kNf4Table, kNf4Codes), kNf4Codes};
inline constexpr Encoding kNf4Cuda = {kNf4CudaCuts, kNf4Codes};
inline constexpr Encoding kFp4Cpu = {Midpoints(kFp4Table, kFp4CpuCodes), kFp4CpuCodes};
inline constexpr Encoding kFp4Cuda = {kFp4CudaCuts, kFp4CudaCodes};

constexpr const Encoding& EncodingOf(QuantType type, Dialect dialect) {
  if (dialect == Dialect::kCpu) return type == QuantType::kNf4 ? kNf4Cpu : kFp4Cpu;
  return type == QuantType::kNf4 ? kNf4Cuda : kFp4Cuda;
}

// Dialect `cpu` divides by no less than this.
inline constexpr float kSmallestDivisor = 1e-38f;

inline constexpr uint32_t kMagnitudeBits = 0x7fffffff;
inline constexpr uint32_t kInfinityBits = 0x7f800000;
inline constexpr uint32_t kSmallestNormalBits = 0x00800000;

}  // namespace gpuledger::codec
