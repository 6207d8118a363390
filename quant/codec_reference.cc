#include "codec_reference.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>

#include "codec_floats.h"
#include "codec_tables.h"

namespace gpuledger::codec {
namespace {

// One block, widened to float.
struct Block {
  float values[kLargestBlock];
  uint64_t count;

  [[nodiscard]] std::span<float> all() { return {values, count}; }
  [[nodiscard]] std::span<const float> all() const { return {values, count}; }
};

template <class T>
void Widen(const std::byte* source, uint64_t count, Block* block) {
  T narrow[kLargestBlock];
  std::memcpy(narrow, source, count * sizeof(T));
  for (uint64_t i = 0; i < count; ++i) block->values[i] = ToFloat(narrow[i]);
  block->count = count;
}

float Magnitude(float value) { return std::bit_cast<float>(std::bit_cast<uint32_t>(value) & kMagnitudeBits); }

// Dialect `cpu`: scales the block in place and returns what is stored as absmax. The first NaN, its sign cleared, is
// the largest magnitude; comparisons are written so that it stays.
float ScaleCpu(bool partial, Block* block) {
  float largest = 0;
  for (const float value : block->all()) {
    if (std::isnan(value)) {
      largest = Magnitude(value);
      break;
    }
    largest = std::max(largest, Magnitude(value));
  }
  const float divisor = largest < kSmallestDivisor ? kSmallestDivisor : largest;
  if (!partial) {
    const float reciprocal = 1.0f / divisor;
    for (float& value : block->all()) value *= reciprocal;
    return largest;
  }
  for (float& value : block->all()) value /= divisor;
  return std::isnan(divisor) ? std::bit_cast<float>(~uint32_t{0}) : divisor;  // what PyTorch's vectorised clamp leaves
}

// Dialect `cuda`: the same, in arithmetic that knows no subnormals. NaNs do not count for the maximum.
float ScaleCuda(Block* block) {
  float largest = 0;
  for (const float value : block->all()) largest = std::fmax(largest, Flush(Magnitude(value)));
  const float reciprocal = CudaReciprocal(largest);
  for (float& value : block->all()) value = Flush(Flush(value) * reciprocal);
  return largest;
}

// `nan` is the code of a NaN.
uint8_t Encode(const Encoding& encoding, uint8_t nan, float scaled) {
  if (std::isnan(scaled)) return nan;
  size_t rank = 0;
  for (const float cut : encoding.cuts) rank += scaled > cut ? 1 : 0;
  return encoding.codes[rank];
}

// In dialect `cpu` a NaN is below no cut point; in `cuda` it is above none, and not below zero either.
uint8_t NanCode(const Encoding& encoding, Dialect dialect) { return dialect == Dialect::kCpu ? encoding.codes[15] : 0; }

template <class T>
void Quantize(const FourBitFormat& format, Dialect dialect, const std::byte* source, uint64_t elements, uint8_t* packed,
              float* absmax) {
  const Encoding& encoding = EncodingOf(format.type, dialect);
  const uint8_t nan = NanCode(encoding, dialect);
  Block block;
  for (uint64_t begin = 0; begin < elements; begin += format.block) {
    const uint64_t count = std::min<uint64_t>(format.block, elements - begin);
    Widen<T>(source + begin * sizeof(T), count, &block);
    // What is scaled along with a partial block for the low nibble behind an odd count: a zero, which dialect `cuda`
    // scales as it does the block, and `cpu` does not scale.
    const bool odd = count % 2 != 0;
    if (odd && dialect == Dialect::kCuda) block.values[block.count++] = 0.0f;
    absmax[begin / format.block] =
        dialect == Dialect::kCpu ? ScaleCpu(count < format.block, &block) : ScaleCuda(&block);
    if (odd && dialect == Dialect::kCpu) block.values[block.count++] = 0.0f;
    for (uint64_t i = 0; i < block.count; i += 2) {
      const uint8_t high = Encode(encoding, nan, block.values[i]);
      packed[(begin + i) / 2] = static_cast<uint8_t>(high << 4 | Encode(encoding, nan, block.values[i + 1]));
    }
  }
}

}  // namespace

float Flush(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits & kMagnitudeBits) < kSmallestNormalBits ? std::bit_cast<float>(bits & ~kMagnitudeBits) : value;
}

float CudaReciprocal(float absmax) { return Flush(1.0f / Flush(absmax)); }

void ReferenceQuantize(const FourBitFormat& format, Dialect dialect, FloatType from, const void* source,
                       uint64_t elements, uint8_t* packed, float* absmax) {
  const auto* bytes = static_cast<const std::byte*>(source);
  WithFloatType(from, [&]<class T>(T*) { Quantize<T>(format, dialect, bytes, elements, packed, absmax); });
}

void ReferenceDequantize(const FourBitFormat& format, const uint8_t* packed, const float* absmax, uint64_t elements,
                         FloatType to, void* out) {
  const std::array<float, 16>& table = TableOf(format.type);
  auto* bytes = static_cast<std::byte*>(out);
  WithFloatType(to, [&]<class T>(T*) {
    for (uint64_t i = 0; i < elements; ++i) {
      const uint8_t code = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 0x0f;
      T value;
      FromFloat(table[code] * absmax[i / format.block], &value);
      std::memcpy(bytes + i * sizeof(T), &value, sizeof(T));
    }
  });
}

}  // namespace gpuledger::codec
