#include "gpuledger/nf4.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gpuledger {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

struct Quantized {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;

  int Code(size_t i) const { return i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15; }
};

template <class T>
Quantized Quantize(const std::vector<T>& values, FloatType type = FloatType::kFloat32) {
  Quantized result;
  result.packed.resize(Nf4PackedBytes(values.size()).count());
  result.absmax.resize(Nf4Blocks(values.size()));
  QuantizeNf4(type, values.data(), values.size(), result.packed, result.absmax);
  return result;
}

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

float Cut(int i) { return (Nf4Table()[i] + Nf4Table()[i + 1]) / 2; }

std::vector<float> RandomValues(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(Nf4Test, TableValuesEncodeAsThemselves) {
  std::vector<float> values(64, 0.0f);
  std::copy(Nf4Table().begin(), Nf4Table().end(), values.begin());
  const Quantized result = Quantize(values);
  for (int code = 0; code < 16; ++code) EXPECT_EQ(result.Code(code), code);
  EXPECT_THAT(result.absmax, ElementsAre(1.0f));
}

TEST(Nf4Test, AValueOnACutPointGoesDownAndTheNextFloatGoesUp) {
  for (const size_t size : {size_t{64}, size_t{62}}) {  // a full block multiplies, a partial one divides
    for (int i = 0; i < 15; ++i) {
      std::vector<float> values(size, 0.0f);
      values[0] = 1.0f;
      values[1] = Cut(i);
      values[2] = std::nextafter(Cut(i), 2.0f);
      values[3] = std::nextafter(Cut(i), -2.0f);
      const Quantized result = Quantize(values);
      EXPECT_EQ(result.Code(1), i) << "cut " << i << " of " << size;
      EXPECT_EQ(result.Code(2), i + 1) << "cut " << i << " of " << size;
      EXPECT_EQ(result.Code(3), i) << "cut " << i << " of " << size;
    }
  }
}

TEST(Nf4Test, AFullBlockMultipliesByTheReciprocalAndAPartialBlockDivides) {
  // 3 is a divisor whose reciprocal is inexact: 3 * (1 / 3) rounds to 1, but many products differ from quotients.
  const float absmax = 3.0f;
  const float reciprocal = 1.0f / absmax;
  int differing = 0;
  for (int i = 0; i < 15; ++i) {
    float value = Cut(i) * absmax;
    for (int step = 0; step < 4; ++step) value = std::nextafter(value, -4.0f);
    for (int step = 0; step < 9; ++step, value = std::nextafter(value, 4.0f)) {
      std::vector<float> values(64, 0.0f);
      values[0] = absmax;
      values[1] = value;
      EXPECT_EQ(Quantize(values).Code(1), value * reciprocal > Cut(i) ? i + 1 : i);
      values.pop_back();
      EXPECT_EQ(Quantize(values).Code(1), value / absmax > Cut(i) ? i + 1 : i);
      differing += (value * reciprocal > Cut(i)) != (value / absmax > Cut(i));
    }
  }
  EXPECT_GT(differing, 0) << "the inputs do not tell the two apart";
}

TEST(Nf4Test, ABlockOfZerosHasTheCodeOfZero) {
  for (const float zero : {0.0f, -0.0f}) {
    const Quantized full = Quantize(std::vector<float>(64, zero));
    EXPECT_THAT(full.packed, Each(0x77));
    EXPECT_THAT(Bits(full.absmax), ElementsAre(0u));
    const Quantized partial = Quantize(std::vector<float>(63, zero));
    EXPECT_THAT(partial.packed, Each(0x77));
    EXPECT_THAT(partial.absmax, ElementsAre(1e-38f));
  }
}

TEST(Nf4Test, SubnormalsBelowTheSmallestDivisorAreNotStretchedToOne) {
  const Quantized full = Quantize(std::vector<float>(64, 5e-39f));
  EXPECT_THAT(full.packed, Each(0xcc));
  EXPECT_THAT(full.absmax, ElementsAre(5e-39f));
  EXPECT_THAT(Quantize(std::vector<float>(3, 5e-39f)).absmax, ElementsAre(1e-38f));
}

TEST(Nf4Test, AnOddCountIsPaddedWithTheCodeOfZero) {
  EXPECT_THAT(Quantize<float>({-2.0f}).packed, ElementsAre(0x07));
  EXPECT_THAT(Quantize<float>({2.0f, -2.0f, 2.0f}).packed, ElementsAre(0xf0, 0xf7));
  EXPECT_THAT(Quantize<float>({std::nanf("")}).packed, ElementsAre(0xf7));
  std::vector<float> values(65, 1.0f);
  const Quantized result = Quantize(values);
  EXPECT_EQ(result.packed.size(), 33u);
  EXPECT_EQ(result.packed.back(), 0xf7);
}

TEST(Nf4Test, NoElementsAreNothing) {
  const Quantized result = Quantize(std::vector<float>());
  EXPECT_TRUE(result.packed.empty());
  EXPECT_TRUE(result.absmax.empty());
}

TEST(Nf4Test, AnInfinityHasCode15AndTheRestOfItsBlockTheCodeOfZero) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {infinity, -infinity}) {
    std::vector<float> values(70, 0.5f);
    values[4] = value;
    values[66] = value;
    const Quantized result = Quantize(values);
    EXPECT_THAT(result.absmax, ElementsAre(infinity, infinity));
    for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(result.Code(i), i == 4 || i == 66 ? 15 : 7) << i;
  }
}

TEST(Nf4Test, TheFirstNanOfABlockIsItsAbsmax) {
  std::vector<float> values(70, 0.5f);
  values[9] = std::bit_cast<float>(0xffc00123u);
  values[8] = std::numeric_limits<float>::infinity();
  values[50] = std::bit_cast<float>(0x7fc00456u);
  values[64] = std::bit_cast<float>(0x7fc00789u);
  const Quantized result = Quantize(values);
  EXPECT_THAT(Bits(result.absmax), ElementsAre(0x7fc00123u, 0xffffffffu));
  EXPECT_THAT(result.packed, Each(0xff));
}

TEST(Nf4Test, SixteenBitInputGivesTheCodesOfTheSameValuesInThirtyTwoBits) {
  // Every bfloat16, and the float16 subnormals, ordinary values and limits by hand.
  std::vector<uint16_t> narrow;
  std::vector<float> wide;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    narrow.push_back(static_cast<uint16_t>(bits));
    wide.push_back(std::bit_cast<float>(bits << 16));
  }
  EXPECT_EQ(Quantize(narrow, FloatType::kBFloat16).packed, Quantize(wide).packed);
  EXPECT_EQ(Bits(Quantize(narrow, FloatType::kBFloat16).absmax), Bits(Quantize(wide).absmax));

  const auto absmax_of = [](uint16_t bits) {
    return Quantize(std::vector<uint16_t>(64, bits), FloatType::kFloat16).absmax[0];
  };
  EXPECT_EQ(absmax_of(0x0001), 0x1p-24f);
  EXPECT_EQ(absmax_of(0x03ff), 0x3ffp-24f);
  EXPECT_EQ(absmax_of(0x8400), 0x1p-14f);
  EXPECT_EQ(absmax_of(0x3c00), 1.0f);
  EXPECT_EQ(absmax_of(0xfbff), 65504.0f);
  EXPECT_EQ(absmax_of(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_EQ(Bits({absmax_of(0x7c01)}), std::vector<uint32_t>{0x7fc02000});
}

TEST(Nf4Test, PartsOfWholeBlocksGiveTheResultOfTheWhole) {
  const std::vector<float> values = RandomValues(64 * 37 + 29, 1);
  const Quantized whole = Quantize(values);
  for (const size_t blocks : {1, 2, 5, 36}) {
    Quantized parts{std::vector<uint8_t>(whole.packed.size()), std::vector<float>(whole.absmax.size())};
    for (size_t begin = 0; begin < values.size(); begin += 64 * blocks) {
      const size_t count = std::min(values.size() - begin, 64 * blocks);
      QuantizeNf4(FloatType::kFloat32, values.data() + begin, count,
                  std::span(parts.packed).subspan(begin / 2, Nf4PackedBytes(count).count()),
                  std::span(parts.absmax).subspan(begin / 64, Nf4Blocks(count)));
    }
    EXPECT_EQ(parts.packed, whole.packed) << blocks;
    EXPECT_EQ(parts.absmax, whole.absmax) << blocks;
  }
}

TEST(Nf4Test, UnalignedSourcesAreRead) {
  const std::vector<float> values = RandomValues(130, 2);
  std::vector<std::byte> shifted(values.size() * 4 + 1);
  std::copy_n(reinterpret_cast<const std::byte*>(values.data()), values.size() * 4, shifted.begin() + 1);
  Quantized result{std::vector<uint8_t>(65), std::vector<float>(3)};
  QuantizeNf4(FloatType::kFloat32, shifted.data() + 1, values.size(), result.packed, result.absmax);
  EXPECT_EQ(result.packed, Quantize(values).packed);
}

TEST(Nf4Test, DequantizedValuesAreWithinHalfTheWidestStepOfTheTable) {
  const std::vector<float> values = RandomValues(64 * 9 + 3, 3);
  const Quantized result = Quantize(values);
  std::vector<float> back(values.size());
  DequantizeNf4(result.packed, result.absmax, values.size(), back);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(back[i], Nf4Table()[result.Code(i)] * result.absmax[i / 64]);
    EXPECT_LE(std::abs(back[i] - values[i]), 0.152f * result.absmax[i / 64]) << i;
  }
}

TEST(Nf4DeathTest, SpansOfTheWrongSizeAreFatal) {
  std::vector<float> values(65);
  Quantized result{std::vector<uint8_t>(33), std::vector<float>(2)};
  EXPECT_DEATH(QuantizeNf4(FloatType::kFloat32, values.data(), 65, std::span(result.packed).first(32), result.absmax),
               "packed span");
  EXPECT_DEATH(QuantizeNf4(FloatType::kFloat32, values.data(), 65, result.packed, std::span(result.absmax).first(1)),
               "absmax span");
  EXPECT_DEATH(DequantizeNf4(result.packed, result.absmax, 65, std::span(values).first(64)), "output span");
}

}  // namespace
}  // namespace gpuledger
