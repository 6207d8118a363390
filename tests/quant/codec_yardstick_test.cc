// The errors of the codec are those that bitsandbytes' own tests expect of theirs: neither larger nor smaller.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "codec_floats.h"
#include "codec_test.h"

namespace gpuledger {
namespace {

constexpr uint64_t kElements = 1024 * 1024;

struct Errors {
  double absolute;  // means over all elements
  double relative;
};

template <class T>
std::vector<T> Narrow(const std::vector<float>& values) {
  std::vector<T> narrow(values.size());
  for (size_t i = 0; i < values.size(); ++i) codec::FromFloat(values[i], &narrow[i]);
  return narrow;
}

template <class T>
Errors ErrorsOf(const FourBitFormat& format, Dialect dialect, FloatType type, const std::vector<float>& normal) {
  const std::vector<T> values = Narrow<T>(normal);
  Quantized weight = Quantize(values, format, dialect, type);
  if (format.double_quant) {
    const float offset = AbsmaxOffset(weight.absmax);
    std::vector<uint8_t> codes(weight.absmax.size());
    std::vector<float> nested(BlockCount(codes.size(), kNestedBlock));
    QuantizeAbsmax(dialect, weight.absmax, offset, codes, nested);
    RestoreAbsmax(codes, nested, offset, weight.absmax);
  }
  std::vector<T> back(values.size());
  Dequantize4Bit(format, weight.packed, weight.absmax, values.size(), type, back.data());
  Errors sum{0, 0};
  for (size_t i = 0; i < values.size(); ++i) {
    const float error = std::abs(codec::ToFloat(values[i]) - codec::ToFloat(back[i]));
    sum.absolute += error;
    sum.relative += error / (std::abs(codec::ToFloat(values[i])) + 1e-8f);
  }
  const auto count = static_cast<double>(values.size());
  return {sum.absolute / count, sum.relative / count};
}

Errors ErrorsOf(const FourBitFormat& format, Dialect dialect, FloatType type, const std::vector<float>& normal) {
  return codec::WithFloatType(type, [&]<class T>(T*) { return ErrorsOf<T>(format, dialect, type, normal); });
}

// Means over standard normal weights of 1024 x 1024, as bitsandbytes' tests have them (tests/test_functional.py there);
// by block size, 32 to 4096.
struct Yardstick {
  QuantType type;
  double absolute[8];
  double relative[8];
  double absolute_deviation;  // standard deviations of one run's mean, in blocks of 64
  double relative_deviation;
};
constexpr Yardstick kYardsticks[] = {
    {QuantType::kNf4,
     {.067746, .072798, .076831, .080337, .083547, .086610, .089592, .092547},
     {.189726, .203339, .215237, .226105, .236079, .245370, .254163, .262473},
     7.4e-5,
     3.4e-4},
    {QuantType::kFp4,
     {.088925, .096543, .102969, .108684, .114115, .119333, .124556, .129536},
     {.242443, .260125, .275817, .289831, .302881, .315000, .326607, .337169},
     1.11e-4,
     3.79e-4},
};

TEST(CodecYardstickTest, ErrorsOfNormalWeightsAreWithinSevenDeviationsOfThePublishedMeans) {
  const uint32_t seed = TestSeed();
  SCOPED_TRACE(fmt::format("GPULEDGER_TEST_SEED={}", seed));
  const std::vector<float> normal = RandomValues(kElements, seed, 1.0f);
  for (const Yardstick& yardstick : kYardsticks) {
    for (int i = 0; i < 8; ++i) {
      // What varies from run to run is the mean of the blocks' absmax, and half as many blocks vary sqrt(2) as much
      // (less in truth, since a larger block's absmax itself varies less).
      const double wider = std::sqrt(std::max(1.0, kBlockSizes[i] / 64.0));
      for (const FloatType type : kFloatTypes) {
        for (const Dialect dialect : kDialects) {
          const Errors errors = ErrorsOf({yardstick.type, kBlockSizes[i]}, dialect, type, normal);
          const std::string name =
              fmt::format("{}, element type {}", ToString({yardstick.type, kBlockSizes[i]}), static_cast<int>(type));
          EXPECT_NEAR(errors.absolute, yardstick.absolute[i], 7 * wider * yardstick.absolute_deviation) << name;
          EXPECT_NEAR(errors.relative, yardstick.relative[i], 7 * wider * yardstick.relative_deviation) << name;
        }
      }
    }
  }
}

TEST(CodecYardstickTest, DoubleQuantizedErrorsStayUnderThePublishedBounds) {
  const uint32_t seed = TestSeed();
  SCOPED_TRACE(fmt::format("GPULEDGER_TEST_SEED={}", seed));
  const std::vector<float> normal = RandomValues(kElements, seed, 1.0f);
  for (const QuantType type : kQuantTypes) {
    for (const Dialect dialect : kDialects) {
      const Errors plain = ErrorsOf({type}, dialect, FloatType::kBFloat16, normal);
      const Errors twice = ErrorsOf({type, 64, true}, dialect, FloatType::kBFloat16, normal);
      EXPECT_LT(twice.absolute, 0.11) << QuantTypeName(type);
      EXPECT_LT(twice.relative, 0.28) << QuantTypeName(type);
      EXPECT_GT(twice.absolute, plain.absolute * 0.99) << QuantTypeName(type);
    }
  }
}

TEST(CodecYardstickTest, ShapesThatNoBlockSizeDividesComeBackFinite) {
  for (const uint32_t block : kBlockSizes) {
    const std::vector<float> normal = RandomValues(7 * (block - 1), block, 1.0f);
    for (const QuantType type : kQuantTypes) {
      for (const FloatType from : kFloatTypes) {
        for (const Dialect dialect : kDialects) {
          const Errors errors = ErrorsOf({type, block}, dialect, from, normal);
          EXPECT_TRUE(std::isfinite(errors.absolute)) << block;
          EXPECT_GT(errors.absolute, 0.0) << block;
          EXPECT_LT(errors.absolute, 0.2) << block;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gpuledger
