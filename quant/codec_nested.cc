// Double quantization: the scales of a weight as 8-bit codes, relative to their mean.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <span>

#include "codec_reference.h"
#include "gpuledger/codec.h"

namespace gpuledger {
namespace {

constexpr size_t kZeroCode = 127;  // of 256: 127 values below zero, 128 above

// The signed dynamic map: in decade i - 6 the midpoints of 2^i equal parts of [0.1, 1], both signs, then 0 and 1. As
// PyTorch computes it in float32 where it has fused multiply-add (any x86-64 with AVX2): linspace rounds once per
// value, from the nearer end. A double holds these products and sums exactly, so rounding to float is that one
// rounding.
constexpr std::array<float, 256> kNestedTable = [] {
  std::array<float, 256> table{};
  size_t next = kZeroCode + 1;
  constexpr std::array<float, 7> kPowers = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  for (size_t decade = 0; decade < kPowers.size(); ++decade) {
    const size_t parts = size_t{1} << decade;
    const float step = (1.0f - 0.1f) / static_cast<float>(parts);
    const auto boundary = [&](size_t i) {
      if (i < (parts + 1) / 2) return static_cast<float>(double{0.1f} + double{step} * static_cast<double>(i));
      return static_cast<float>(1.0 - double{step} * static_cast<double>(parts - i));
    };
    for (size_t i = 0; i < parts; ++i, ++next) {
      table[next] = kPowers[decade] * ((boundary(i) + boundary(i + 1)) / 2);
      table[2 * kZeroCode - next] = -table[next];
    }
  }
  table[255] = 1.0f;
  return table;
}();

// The sum of `values` in the order of PyTorch's float32 sum of a contiguous tensor on one thread. `kLanes` values are
// read at a time, as `kRows` such rows one after another, so there are kLanes * kRows sums side by side. Each is a
// cascade: after `step` additions a level is added to the next one and starts anew. In the end levels are added upward,
// rows downward, and with what is left of a row first, the lanes one by one.
constexpr size_t kRows = 4;
constexpr size_t kLevels = 4;

template <size_t kLanes>
std::array<float, kLanes> SumRows(std::span<const float> values) {
  constexpr size_t kWidth = kLanes * kRows;
  const size_t rounds = values.size() / kWidth;
  const size_t power = std::max<size_t>(4, static_cast<size_t>(std::bit_width(rounds == 0 ? 0 : rounds - 1)) / kLevels);
  const size_t step = size_t{1} << power;

  std::array<std::array<float, kWidth>, kLevels> levels{};
  const auto carry = [&](size_t level) {
    for (size_t i = 0; i < kWidth; ++i) levels[level][i] += levels[level - 1][i];
    levels[level - 1].fill(0);
  };
  for (size_t round = 0; round < rounds;) {
    const bool whole = rounds - round >= step;
    const size_t end = whole ? round + step : rounds;
    for (; round < end; ++round) {
      for (size_t i = 0; i < kWidth; ++i) levels[0][i] += values[round * kWidth + i];
    }
    if (!whole) break;
    for (size_t level = 1; level < kLevels; ++level) {
      carry(level);
      if ((round & ((step - 1) << (level * power))) != 0) break;
    }
  }
  for (size_t level = 1; level < kLevels; ++level) {
    for (size_t i = 0; i < kWidth; ++i) levels[0][i] += levels[level][i];
  }

  std::array<float, kLanes> sum;
  std::copy_n(levels[0].begin(), kLanes, sum.begin());
  for (size_t begin = rounds * kWidth; begin + kLanes <= values.size(); begin += kLanes) {
    for (size_t i = 0; i < kLanes; ++i) sum[i] += values[begin + i];
  }
  for (size_t row = 1; row < kRows; ++row) {
    for (size_t i = 0; i < kLanes; ++i) sum[i] += levels[0][row * kLanes + i];
  }
  return sum;
}

// Vectors of 8 floats: PyTorch compiles this sum for AVX2 and uses that on CPUs with AVX-512, too. Fewer are summed as
// vectors of one.
constexpr size_t kVector = 8;

float Sum(std::span<const float> values) {
  if (values.size() < kVector) return SumRows<1>(values)[0];
  float sum = 0;
  for (const float value : values.subspan(values.size() / kVector * kVector)) sum += value;
  for (const float value : SumRows<kVector>(values)) sum += value;
  return sum;
}

// The value in the middle between code `lower` and the next.
float Midpoint(size_t lower) { return (kNestedTable[lower] + kNestedTable[lower + 1]) * 0.5f; }

// Dialect `cpu` knows 65536 equal steps from -1 to 1; a value has the code that is nearest to the middle of its step,
// so that not every code is used, and zero does not have the code of zero.
using StepCodes = std::array<uint8_t, 65536>;
const StepCodes& CpuCodes() {
  static const StepCodes codes = [] {
    StepCodes nearest;
    uint8_t code = 0;
    for (size_t i = 0; i < nearest.size(); ++i) {
      const double middle = -1.0 + 2.0 * static_cast<double>(i) / 65535.0;
      while (code < 255 && middle > double{Midpoint(code)}) ++code;
      nearest[i] = code;
    }
    return nearest;
  }();
  return codes;
}

uint8_t CpuCode(const StepCodes& codes, float scaled) {
  if (std::isnan(scaled)) return 0;
  const float step = (std::clamp(scaled, -1.0f, 1.0f) + 1.0f) * 32767.5f + 0.5f;
  return codes[static_cast<size_t>(step)];
}

// Dialect `cuda`: a binary search of seven steps ends beside the value or on it; then the nearer of that code and its
// neighbour, where a tie stays. NaN is never above.
uint8_t CudaCode(float scaled) {
  size_t code = 127;
  for (size_t step = 64; step > 0; step /= 2) code = scaled > kNestedTable[code] ? code + step : code - step;
  if (scaled > kNestedTable[code]) return static_cast<uint8_t>(scaled > Midpoint(code) ? code + 1 : code);
  return static_cast<uint8_t>(code > 0 && scaled < Midpoint(code - 1) ? code - 1 : code);
}

void CheckSizes(size_t codes, size_t absmax, size_t nested_absmax) {
  if (codes != absmax) Die("double quantization: there are not as many codes as scales");
  if (nested_absmax != BlockCount(absmax, kNestedBlock))
    Die("double quantization: the span of nested scales does not fit");
}

}  // namespace

const std::array<float, 256>& NestedTable() { return kNestedTable; }

float AbsmaxOffset(std::span<const float> absmax) {
  return absmax.empty() ? 0.0f : Sum(absmax) / static_cast<float>(absmax.size());
}

void QuantizeAbsmax(Dialect dialect, std::span<const float> absmax, float offset, std::span<uint8_t> codes,
                    std::span<float> nested_absmax) {
  CheckSizes(codes.size(), absmax.size(), nested_absmax.size());
  const StepCodes& step_codes = CpuCodes();
  for (size_t begin = 0; begin < absmax.size(); begin += kNestedBlock) {
    const std::span<const float> block = absmax.subspan(begin, std::min<size_t>(kNestedBlock, absmax.size() - begin));
    const bool flush = dialect == Dialect::kCuda;
    const auto relative = [&](float scale) { return flush ? codec::Flush(scale - offset) : scale - offset; };
    float largest = 0;
    for (const float scale : block) largest = std::fmax(largest, std::fabs(relative(scale)));  // NaNs do not count
    nested_absmax[begin / kNestedBlock] = largest;
    const float reciprocal = flush ? codec::CudaReciprocal(largest) : 1.0f / largest;
    for (size_t i = 0; i < block.size(); ++i) {
      const float scaled = relative(block[i]) * reciprocal;
      codes[begin + i] = flush ? CudaCode(codec::Flush(scaled)) : CpuCode(step_codes, scaled);
    }
  }
}

void RestoreAbsmax(std::span<const uint8_t> codes, std::span<const float> nested_absmax, float offset,
                   std::span<float> absmax) {
  CheckSizes(codes.size(), absmax.size(), nested_absmax.size());
  for (size_t i = 0; i < codes.size(); ++i) {
    absmax[i] = kNestedTable[codes[i]] * nested_absmax[i / kNestedBlock] + offset;
  }
}

}  // namespace gpuledger
