// Dialect `cpu` is held against bitsandbytes itself in test_codec_matches_bitsandbytes.py; here, what its contract
// says.

#include "gpuledger/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "codec_tables.h"
#include "codec_test.h"

namespace gpuledger {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

const float kInfinity = std::numeric_limits<float>::infinity();
constexpr FourBitFormat kFp4 = {QuantType::kFp4};

TEST(FourBitFormatTest, IsNamedByWhatDiffersFromTheDefault) {
  EXPECT_EQ(ToString(FourBitFormat{}), "nf4");
  EXPECT_EQ(ToString({QuantType::kFp4, 128}), "fp4, blocks of 128");
  EXPECT_EQ(ToString({QuantType::kNf4, 64, true}), "nf4, double-quantized");
  EXPECT_EQ(ToString({QuantType::kFp4, 4096, true}), "fp4, blocks of 4096, double-quantized");
}

TEST(FourBitFormatTest, OnlyTheNamesOfTypesAreParsed) {
  for (const QuantType type : kQuantTypes) {
    QuantType parsed = type == QuantType::kNf4 ? QuantType::kFp4 : QuantType::kNf4;
    EXPECT_TRUE(ParseQuantType(QuantTypeName(type), &parsed));
    EXPECT_EQ(parsed, type);
  }
  QuantType untouched = QuantType::kFp4;
  for (const char* name : {"", "NF4", "nf", "nf44", "int4"}) EXPECT_FALSE(ParseQuantType(name, &untouched)) << name;
  EXPECT_EQ(untouched, QuantType::kFp4);
}

TEST(FourBitFormatTest, BlockSizesArePowersOfTwoFrom32To4096) {
  int sizes = 0;
  for (uint64_t size = 0; size < 10000; ++size) sizes += IsBlockSize(size);
  EXPECT_EQ(sizes, 8);
  for (const uint32_t size : kBlockSizes) EXPECT_TRUE(IsBlockSize(size));
}

TEST(CodecTest, TableValuesEncodeAsThemselves) {
  for (const QuantType type : kQuantTypes) {
    for (const Dialect dialect : kDialects) {
      std::vector<float> values(64, 0.0f);
      std::copy(CodeTable(type).begin(), CodeTable(type).end(), values.begin());
      const Quantized result = Quantize(values, {type}, dialect);
      for (int code = 0; code < 16; ++code) {
        // FP4 has a second zero, which only negative values become.
        EXPECT_EQ(result.Code(code), type == QuantType::kFp4 && code == 8 ? 0 : code) << QuantTypeName(type);
      }
      EXPECT_THAT(result.absmax, ElementsAre(1.0f));
    }
  }
}

TEST(CodecTest, InDialectCpuAValueOnACutPointGoesDownAndTheNextFloatGoesUp) {
  for (const QuantType type : kQuantTypes) {
    const codec::Encoding& encoding = codec::EncodingOf(type, Dialect::kCpu);
    for (const size_t size : {size_t{64}, size_t{62}}) {  // a full block multiplies, a partial one divides
      for (int i = 0; i < 15; ++i) {
        std::vector<float> values(size, 0.0f);
        values[0] = 1.0f;
        values[1] = encoding.cuts[i];
        values[2] = std::nextafter(encoding.cuts[i], 2.0f);
        values[3] = std::nextafter(encoding.cuts[i], -2.0f);
        const Quantized result = Quantize(values, {type});
        EXPECT_EQ(result.Code(1), encoding.codes[i]) << "cut " << i << " of " << size;
        EXPECT_EQ(result.Code(2), encoding.codes[i + 1]) << "cut " << i << " of " << size;
        EXPECT_EQ(result.Code(3), encoding.codes[i]) << "cut " << i << " of " << size;
      }
    }
  }
}

TEST(CodecTest, InDialectCpuAFullBlockMultipliesByTheReciprocalAndAPartialBlockDivides) {
  // 3 is a divisor whose reciprocal is inexact: 3 * (1 / 3) rounds to 1, but many products differ from quotients.
  const codec::Cuts& cuts = codec::EncodingOf(QuantType::kNf4, Dialect::kCpu).cuts;
  const float absmax = 3.0f;
  const float reciprocal = 1.0f / absmax;
  int differing = 0;
  for (int i = 0; i < 15; ++i) {
    float value = cuts[i] * absmax;
    for (int step = 0; step < 4; ++step) value = std::nextafter(value, -4.0f);
    for (int step = 0; step < 9; ++step, value = std::nextafter(value, 4.0f)) {
      std::vector<float> values(64, 0.0f);
      values[0] = absmax;
      values[1] = value;
      EXPECT_EQ(Quantize(values).Code(1), value * reciprocal > cuts[i] ? i + 1 : i);
      values.pop_back();
      EXPECT_EQ(Quantize(values).Code(1), value / absmax > cuts[i] ? i + 1 : i);
      differing += (value * reciprocal > cuts[i]) != (value / absmax > cuts[i]);
    }
  }
  EXPECT_GT(differing, 0) << "the inputs do not tell the two apart";
}

TEST(CodecTest, InDialectCpuABlockOfZerosHasTheCodeOfZero) {
  for (const float zero : {0.0f, -0.0f}) {
    for (const QuantType type : kQuantTypes) {
      const uint8_t byte = type == QuantType::kNf4 ? 0x77 : 0x00;
      const Quantized full = Quantize(std::vector<float>(64, zero), {type});
      EXPECT_THAT(full.packed, Each(byte));
      EXPECT_THAT(Bits(full.absmax), ElementsAre(0u));
      const Quantized partial = Quantize(std::vector<float>(63, zero), {type});
      EXPECT_THAT(partial.packed, Each(byte));
      EXPECT_THAT(partial.absmax, ElementsAre(1e-38f));
    }
  }
}

TEST(CodecTest, InDialectCpuSubnormalsBelowTheSmallestDivisorAreNotStretchedToOne) {
  const Quantized full = Quantize(std::vector<float>(64, 5e-39f));
  EXPECT_THAT(full.packed, Each(0xcc));
  EXPECT_THAT(full.absmax, ElementsAre(5e-39f));
  EXPECT_THAT(Quantize(std::vector<float>(3, 5e-39f)).absmax, ElementsAre(1e-38f));
}

TEST(CodecTest, AnOddCountIsPaddedWithTheCodeOfZero) {
  for (const Dialect dialect : kDialects) {
    EXPECT_THAT(Quantize<float>({-2.0f}, {}, dialect).packed, ElementsAre(0x07));
    EXPECT_THAT(Quantize<float>({2.0f, -2.0f, 2.0f}, {}, dialect).packed, ElementsAre(0xf0, 0xf7));
    EXPECT_THAT(Quantize<float>({-2.0f}, kFp4, dialect).packed, ElementsAre(0xb0));
    const Quantized result = Quantize(std::vector<float>(65, 1.0f), {}, dialect);
    EXPECT_EQ(result.packed.size(), 33u);
    EXPECT_EQ(result.packed.back(), 0xf7);
  }
  EXPECT_THAT(Quantize<float>({std::nanf("")}).packed, ElementsAre(0xf7));
}

TEST(CodecTest, NoElementsAreNothing) {
  for (const uint32_t block : kBlockSizes) {
    const Quantized result = Quantize(std::vector<float>(), {QuantType::kNf4, block});
    EXPECT_TRUE(result.packed.empty());
    EXPECT_TRUE(result.absmax.empty());
  }
}

TEST(CodecTest, InDialectCpuAnInfinityHasTheLargestCodeAndTheRestOfItsBlockThatOfZero) {
  for (const float value : {kInfinity, -kInfinity}) {
    std::vector<float> values(70, 0.5f);
    values[4] = value;
    values[66] = value;
    const Quantized nf4 = Quantize(values);
    const Quantized fp4 = Quantize(values, kFp4);
    EXPECT_THAT(nf4.absmax, ElementsAre(kInfinity, kInfinity));
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(nf4.Code(i), i == 4 || i == 66 ? 15 : 7) << i;
      EXPECT_EQ(fp4.Code(i), i == 4 || i == 66 ? 3 : 0) << i;
    }
  }
}

TEST(CodecTest, InDialectCpuTheFirstNanOfABlockIsItsAbsmax) {
  std::vector<float> values(70, 0.5f);
  values[9] = std::bit_cast<float>(0xffc00123u);
  values[8] = kInfinity;
  values[50] = std::bit_cast<float>(0x7fc00456u);
  values[64] = std::bit_cast<float>(0x7fc00789u);
  const Quantized result = Quantize(values);
  EXPECT_THAT(Bits(result.absmax), ElementsAre(0x7fc00123u, 0xffffffffu));
  EXPECT_THAT(result.packed, Each(0xff));
  EXPECT_THAT(Quantize(values, kFp4).packed, Each(0x33));
}

TEST(CodecTest, SixteenBitInputGivesTheCodesOfTheSameValuesInThirtyTwoBits) {
  // Every bfloat16, and the float16 subnormals, ordinary values and limits by hand.
  std::vector<uint16_t> narrow;
  std::vector<float> wide;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    narrow.push_back(static_cast<uint16_t>(bits));
    wide.push_back(std::bit_cast<float>(bits << 16));
  }
  EXPECT_EQ(Quantize(narrow, {}, Dialect::kCpu, FloatType::kBFloat16).packed, Quantize(wide).packed);
  EXPECT_EQ(Bits(Quantize(narrow, {}, Dialect::kCpu, FloatType::kBFloat16).absmax), Bits(Quantize(wide).absmax));

  const auto absmax_of = [](uint16_t bits) {
    return Quantize(std::vector<uint16_t>(64, bits), {}, Dialect::kCpu, FloatType::kFloat16).absmax[0];
  };
  EXPECT_EQ(absmax_of(0x0001), 0x1p-24f);
  EXPECT_EQ(absmax_of(0x03ff), 0x3ffp-24f);
  EXPECT_EQ(absmax_of(0x8400), 0x1p-14f);
  EXPECT_EQ(absmax_of(0x3c00), 1.0f);
  EXPECT_EQ(absmax_of(0xfbff), 65504.0f);
  EXPECT_EQ(absmax_of(0x7c00), kInfinity);
  EXPECT_EQ(Bits({absmax_of(0x7c01)}), std::vector<uint32_t>{0x7fc02000});
}

TEST(CodecTest, PartsOfWholeBlocksGiveTheResultOfTheWhole) {
  for (const uint32_t block : {32u, 64u, 256u}) {
    const FourBitFormat format = {QuantType::kFp4, block};
    const std::vector<float> values = RandomValues(block * 37 + 29, 1);
    const Quantized whole = Quantize(values, format);
    for (const size_t blocks : {1, 2, 5, 36}) {
      Quantized parts(values.size(), block);
      for (size_t begin = 0; begin < values.size(); begin += block * blocks) {
        const size_t count = std::min(values.size() - begin, block * blocks);
        Quantize4Bit(format, Dialect::kCpu, FloatType::kFloat32, values.data() + begin, count,
                     std::span(parts.packed).subspan(begin / 2, PackedBytes(count).count()),
                     std::span(parts.absmax).subspan(begin / block, BlockCount(count, block)));
      }
      EXPECT_EQ(parts.packed, whole.packed) << blocks;
      EXPECT_EQ(parts.absmax, whole.absmax) << blocks;
    }
  }
}

TEST(CodecTest, DequantizedValuesAreWithinHalfTheWidestStepOfTheTable) {
  for (const QuantType type : kQuantTypes) {
    const std::vector<float> values = RandomValues(64 * 9 + 3, 3);
    const Quantized result = Quantize(values, {type});
    std::vector<float> back(values.size());
    Dequantize4Bit({type}, result.packed, result.absmax, values.size(), FloatType::kFloat32, back.data());
    const float half_step = type == QuantType::kNf4 ? 0.152f : 0.167f;
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(back[i], CodeTable(type)[result.Code(i)] * result.absmax[i / 64]);
      EXPECT_LE(std::abs(back[i] - values[i]), half_step * result.absmax[i / 64]) << i;
    }
  }
}

TEST(CodecDeathTest, SpansOfTheWrongSizeAreFatal) {
  std::vector<float> values(65);
  Quantized result(65, 64);
  const auto quantize = [&](uint32_t block, size_t packed, size_t absmax) {
    Quantize4Bit({QuantType::kNf4, block}, Dialect::kCpu, FloatType::kFloat32, values.data(), 65,
                 std::span(result.packed).first(packed), std::span(result.absmax).first(absmax));
  };
  EXPECT_DEATH(quantize(64, 32, 2), "packed span");
  EXPECT_DEATH(quantize(64, 33, 1), "absmax span");
  EXPECT_DEATH(quantize(48, 33, 2), "block size");
  EXPECT_DEATH(
      Dequantize4Bit({}, std::span(result.packed).first(32), result.absmax, 65, FloatType::kFloat32, values.data()),
      "packed span");
  EXPECT_DEATH(QuantizeAbsmax(Dialect::kCpu, result.absmax, 0, std::span(result.packed).first(1), values), "codes");
  EXPECT_DEATH(RestoreAbsmax(std::span(result.packed).first(2), values, 0, result.absmax), "nested");
}

}  // namespace
}  // namespace gpuledger
