#include "verify.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "codec_floats.h"
#include "gpuledger/codec.h"

namespace gpuledger {
namespace {

constexpr uint64_t kPiece = kLargestBlock;  // elements compared at a time: whole blocks of every size

// By log2(block) - 5: 32, 64, ... 4096.
constexpr std::array<double, 8> kNf4Errors = {.067746, .072798, .076831, .080337, .083547, .086610, .089592, .092547};
constexpr std::array<double, 8> kFp4Errors = {.088925, .096543, .102969, .108684, .114115, .119333, .124556, .129536};

// A weight whose values are not normally distributed is somewhat above; one with outliers far above.
constexpr double kOutlierFactor = 1.5;

template <class T>
T Load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

// Scales [first, first + out.size()) of a weight, all in one nested block.
void Scales(const FourBitLayout& layout, const std::byte* block, uint64_t first, std::span<float> out) {
  if (!layout.format.double_quant) {
    std::memcpy(out.data(), block + (layout.absmax_at + Bytes(4 * first)).count(), out.size_bytes());
    return;
  }
  const auto* const codes = reinterpret_cast<const uint8_t*>(block) + layout.absmax_at.count() + first;
  const auto nested = Load<float>(block + (layout.nested_absmax_at + Bytes(4 * (first / kNestedBlock))).count());
  const auto offset = Load<float>(block + layout.offset_at.count());
  RestoreAbsmax({codes, out.size()}, {&nested, 1}, offset, out);
}

template <class T>
ErrorSums Compare(const FourBitLayout& layout, const std::byte* block, const std::byte* source, uint64_t first,
                  uint64_t count) {
  ErrorSums sums;
  std::array<float, kPiece> values;
  std::array<float, kPiece / kSmallestBlock> scales;
  for (uint64_t done = 0; done < count;) {
    const uint64_t at = first + done;
    const uint64_t scale = at / layout.format.block;
    // Up to the end of the nested block, so that one scale of scales serves.
    const uint64_t until_nested_end = (kNestedBlock - scale % kNestedBlock) * layout.format.block;
    const uint64_t size = std::min({kPiece, count - done, until_nested_end});
    const std::span<float> piece_scales(scales.data(), BlockCount(size, layout.format.block));
    Scales(layout, block, scale, piece_scales);
    Dequantize4Bit(layout.format, {reinterpret_cast<const uint8_t*>(block) + at / 2, PackedBytes(size).count()},
                   piece_scales, size, FloatType::kFloat32, values.data());
    for (uint64_t i = 0; i < size; ++i) {
      const double expected = codec::ToFloat(Load<T>(source + sizeof(T) * (done + i)));
      if (!std::isfinite(expected)) {
        sums.not_finite += 1;
        continue;
      }
      const double error = std::abs(values[i] - expected);
      if (!std::isfinite(error)) {
        sums.destroyed += 1;
        continue;
      }
      sums.error += error;
      sums.max_error = std::max(sums.max_error, error);
      sums.square += expected * expected;
      sums.elements += 1;
    }
    done += size;
  }
  return sums;
}

}  // namespace

void ErrorSums::Add(const ErrorSums& other) {
  error += other.error;
  max_error = std::max(max_error, other.max_error);
  square += other.square;
  elements += other.elements;
  not_finite += other.not_finite;
  destroyed += other.destroyed;
}

ErrorSums CompareWithBlock(const FourBitLayout& layout, const std::byte* block, FloatType type, const std::byte* source,
                           uint64_t first, uint64_t count) {
  return codec::WithFloatType(type, [&]<class T>(T*) { return Compare<T>(layout, block, source, first, count); });
}

double ExpectedRelativeError(const FourBitFormat& format) {
  const auto& errors = format.type == QuantType::kNf4 ? kNf4Errors : kFp4Errors;
  return errors[static_cast<size_t>(std::countr_zero(format.block)) - 5];
}

WeightError MakeWeightError(const std::string& name, const FourBitFormat& format, const ErrorSums& sums) {
  WeightError error{.name = name, .max = sums.max_error, .expected = ExpectedRelativeError(format),
                    .not_finite = sums.not_finite, .destroyed = sums.destroyed};
  if (sums.elements > 0) {
    error.mean = sums.error / static_cast<double>(sums.elements);
    error.rms = std::sqrt(sums.square / static_cast<double>(sums.elements));
  }
  error.outlier = sums.not_finite > 0 || sums.destroyed > 0 || error.relative() > kOutlierFactor * error.expected;
  return error;
}

}  // namespace gpuledger
