// What the codec's tests share: a weight quantized, and inputs.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "gpuledger/codec.h"

namespace gpuledger {

inline constexpr uint32_t kBlockSizes[] = {32, 64, 128, 256, 512, 1024, 2048, 4096};
inline constexpr FloatType kFloatTypes[] = {FloatType::kFloat32, FloatType::kFloat16, FloatType::kBFloat16};
inline constexpr QuantType kQuantTypes[] = {QuantType::kNf4, QuantType::kFp4};
inline constexpr Dialect kDialects[] = {Dialect::kCpu, Dialect::kCuda};

struct Quantized {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;

  Quantized(uint64_t elements, uint64_t block)
      : packed(PackedBytes(elements).count()), absmax(BlockCount(elements, block)) {}
  int Code(size_t i) const { return i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15; }
};

template <class T>
Quantized Quantize(const std::vector<T>& values, const FourBitFormat& format = {}, Dialect dialect = Dialect::kCpu,
                   FloatType from = FloatType::kFloat32) {
  Quantized result(values.size(), format.block);
  Quantize4Bit(format, dialect, from, values.data(), values.size(), result.packed, result.absmax);
  return result;
}

inline std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

inline std::vector<float> RandomValues(size_t count, uint32_t seed, float deviation = 0.05f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// GPULEDGER_TEST_SEED, or a new one; tests put it into their messages.
inline uint32_t TestSeed() {
  const char* given = std::getenv("GPULEDGER_TEST_SEED");
  return given != nullptr ? static_cast<uint32_t>(std::strtoul(given, nullptr, 10)) : std::random_device{}();
}

}  // namespace gpuledger
