#include "gpuledger/nf4.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace gpuledger {
namespace {

// Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero.
constexpr std::array<float, 16> kTable = {
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
constexpr uint8_t kZeroCode = 7;

// Midpoints of neighbours, rounded to float: that is the `cpu` dialect. The cut points of `cuda` are other literals.
constexpr std::array<float, 15> kCuts = [] {
  std::array<float, 15> cuts{};
  for (size_t i = 0; i < cuts.size(); ++i) cuts[i] = (kTable[i] + kTable[i + 1]) / 2;
  return cuts;
}();

constexpr float kSmallestDivisor = 1e-38f;
constexpr uint32_t kMagnitudeBits = 0x7fffffff;
constexpr uint32_t kInfinityBits = 0x7f800000;

// The conversions to float are exact. A NaN keeps its payload; one of 16-bit width becomes quiet, as F16C makes it.
float ToFloat(float value) { return value; }

struct Float16 {
  uint16_t bits;
};
float ToFloat(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t shifted = magnitude << 13;
  const uint32_t normal = shifted + ((127u - 15u) << 23);
  // A subnormal, put below the implicit one of 2^-14, is exact after that one is subtracted again.
  const float subnormal = std::bit_cast<float>(shifted + ((127u - 14u) << 23)) - 0x1p-14f;
  const uint32_t special = shifted | kInfinityBits | (magnitude > 0x7c00u ? 0x400000u : 0u);
  uint32_t bits = magnitude < 0x0400u ? std::bit_cast<uint32_t>(subnormal) : normal;
  bits = magnitude >= 0x7c00u ? special : bits;
  return std::bit_cast<float>(bits | (static_cast<uint32_t>(value.bits & 0x8000u) << 16));
}

struct BFloat16 {
  uint16_t bits;
};
float ToFloat(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

// One block, widened. Missing elements of a partial block are zero.
using Block = std::array<float, kNf4BlockSize>;

template <class T>
void Widen(const std::byte* source, uint64_t count, Block& block) {
  std::array<T, kNf4BlockSize> elements{};
  std::memcpy(elements.data(), source, count * sizeof(T));
  for (size_t i = 0; i < block.size(); ++i) block[i] = ToFloat(elements[i]);
}

// The largest magnitude. If there are NaNs it is the first of them, its sign cleared: among such bit patterns a NaN is
// above infinity, so the fast loop over integers finds out whether there is one.
float LargestMagnitude(const Block& block) {
  int32_t largest = 0;
  for (const float value : block) {
    largest = std::max(largest, static_cast<int32_t>(std::bit_cast<uint32_t>(value) & kMagnitudeBits));
  }
  if (static_cast<uint32_t>(largest) > kInfinityBits) [[unlikely]] {
    const auto nan = std::find_if(block.begin(), block.end(), [](float value) { return std::isnan(value); });
    return std::bit_cast<float>(std::bit_cast<uint32_t>(*nan) & kMagnitudeBits);
  }
  return std::bit_cast<float>(static_cast<uint32_t>(largest));
}

// Codes of values that are already divided by absmax, two to a byte. Every cut point is compared with every value,
// which the compiler does several values at a time; NaN is below no cut point and gets 15.
void Encode(const Block& scaled, std::array<uint8_t, kNf4BlockSize / 2>& packed) {
  std::array<uint32_t, kNf4BlockSize> codes{};
  for (const float cut : kCuts) {
    for (size_t i = 0; i < codes.size(); ++i) codes[i] += scaled[i] <= cut ? 0u : 1u;
  }
  for (size_t i = 0; i < packed.size(); ++i) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
  }
}

template <class T>
void Quantize(const std::byte* source, uint64_t elements, std::span<uint8_t> packed, std::span<float> absmax) {
  Block block;
  std::array<uint8_t, kNf4BlockSize / 2> bytes;
  const uint64_t full_blocks = elements / kNf4BlockSize;
  for (uint64_t b = 0; b < full_blocks; ++b) {
    Widen<T>(source + b * sizeof(T) * kNf4BlockSize, kNf4BlockSize, block);
    absmax[b] = LargestMagnitude(block);
    // Written so that a NaN stays one: std::max would depend on the order of its arguments.
    const float reciprocal = 1.0f / (absmax[b] < kSmallestDivisor ? kSmallestDivisor : absmax[b]);
    for (float& value : block) value *= reciprocal;
    Encode(block, bytes);
    std::memcpy(packed.data() + b * bytes.size(), bytes.data(), bytes.size());
  }

  const uint64_t rest = elements % kNf4BlockSize;
  if (rest == 0) return;
  Widen<T>(source + full_blocks * sizeof(T) * kNf4BlockSize, rest, block);
  float largest = LargestMagnitude(block);
  if (largest < kSmallestDivisor) largest = kSmallestDivisor;
  if (std::isnan(largest)) largest = std::bit_cast<float>(~uint32_t{0});  // what PyTorch's vectorised clamp leaves
  absmax[full_blocks] = largest;
  for (float& value : block) value /= largest;
  Encode(block, bytes);
  if (rest % 2 != 0) bytes[rest / 2] = static_cast<uint8_t>((bytes[rest / 2] & 0xf0) | kZeroCode);
  std::memcpy(packed.data() + full_blocks * bytes.size(), bytes.data(), (rest + 1) / 2);
}

void CheckSizes(uint64_t elements, size_t packed, size_t absmax) {
  if (packed != Nf4PackedBytes(elements).count()) Die("NF4: the packed span does not have Nf4PackedBytes");
  if (absmax != Nf4Blocks(elements)) Die("NF4: the absmax span does not have Nf4Blocks entries");
}

}  // namespace

const std::array<float, 16>& Nf4Table() { return kTable; }

void QuantizeNf4(FloatType type, const void* source, uint64_t elements, std::span<uint8_t> packed,
                 std::span<float> absmax) {
  CheckSizes(elements, packed.size(), absmax.size());
  const auto* bytes = static_cast<const std::byte*>(source);
  switch (type) {
    case FloatType::kFloat32: return Quantize<float>(bytes, elements, packed, absmax);
    case FloatType::kFloat16: return Quantize<Float16>(bytes, elements, packed, absmax);
    case FloatType::kBFloat16: return Quantize<BFloat16>(bytes, elements, packed, absmax);
  }
  Die("NF4: no such element type");
}

void DequantizeNf4(std::span<const uint8_t> packed, std::span<const float> absmax, uint64_t elements,
                   std::span<float> out) {
  CheckSizes(elements, packed.size(), absmax.size());
  if (out.size() != elements) Die("NF4: the output span does not have as many values as the weight");
  for (uint64_t i = 0; i < elements; ++i) {
    const uint8_t byte = packed[i / 2];
    const uint8_t code = i % 2 == 0 ? byte >> 4 : byte & 0x0f;
    out[i] = kTable[code] * absmax[i / kNf4BlockSize];
  }
}

}  // namespace gpuledger
