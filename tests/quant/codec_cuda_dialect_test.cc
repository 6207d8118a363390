// Dialect `cuda`, against the published facts of bitsandbytes' CUDA backend: its literals are written out here again.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "codec_reference.h"
#include "codec_test.h"

namespace gpuledger {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr FourBitFormat kNf4 = {};
constexpr FourBitFormat kFp4 = {QuantType::kFp4};

// The code of `value` in a full block whose absmax is 1.
int CodeOf(const FourBitFormat& format, float value) {
  std::vector<float> values(format.block, 0.0f);
  values[0] = 1.0f;
  values[1] = value;
  return Quantize(values, format, Dialect::kCuda).Code(1);
}

TEST(CudaDialectTest, Nf4TiesGoDownAtEachOfItsCutPoints) {
  // Decimal to float in one rounding: by way of double four of them would be the neighbouring float.
  const float cuts[] = {-0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
                        -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
                        0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
                        0.5016634166240692f,   0.6427869200706482f,   0.8614784181118011f};
  for (int code = 0; code < 15; ++code) {
    const float cut = cuts[code];
    EXPECT_EQ(CodeOf(kNf4, cut), code);
    EXPECT_EQ(CodeOf(kNf4, std::nextafter(cut, -2.0f)), code);
    EXPECT_EQ(CodeOf(kNf4, std::nextafter(cut, 2.0f)), code + 1);
  }
}

TEST(CudaDialectTest, Fp4TiesGoTowardsZeroOnBothSides) {
  const float cuts[] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f};
  const int codes[] = {0b000, 0b001, 0b110, 0b111, 0b100, 0b101, 0b010, 0b011};
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(CodeOf(kFp4, cuts[i]), codes[i]);
    EXPECT_EQ(CodeOf(kFp4, std::nextafter(cuts[i], 2.0f)), codes[i + 1]);
    EXPECT_EQ(CodeOf(kFp4, -cuts[i]), codes[i] | 8);
    EXPECT_EQ(CodeOf(kFp4, -std::nextafter(cuts[i], 2.0f)), codes[i + 1] | 8);
  }
}

TEST(CudaDialectTest, TheSignOfFp4IsThatOfWhatIsLessThanZero) {
  EXPECT_EQ(CodeOf(kFp4, 0.0f), 0);
  EXPECT_EQ(CodeOf(kFp4, -0.0f), 0);
  EXPECT_EQ(CodeOf(kFp4, 1e-6f), 0);
  EXPECT_EQ(CodeOf(kFp4, -1e-6f), 8);
  EXPECT_EQ(CodeOf(kFp4, -0x1p-126f), 8);
  EXPECT_EQ(CodeOf(kFp4, -0x1.fffffcp-127f), 0) << "subnormals are zero";
}

TEST(CudaDialectTest, ABlockOfZerosIsBytesOfZero) {
  for (const FourBitFormat& format : {kNf4, kFp4}) {
    for (const size_t count : {64, 63, 7}) {
      for (const float zero : {0.0f, -0.0f, 1e-40f, -1e-45f}) {
        const Quantized result = Quantize(std::vector<float>(count, zero), format, Dialect::kCuda);
        EXPECT_THAT(result.packed, Each(0)) << count;
        EXPECT_THAT(Bits(result.absmax), ElementsAre(0u)) << count;
      }
    }
  }
}

TEST(CudaDialectTest, APartialBlockMultipliesByTheReciprocalToo) {
  const float reciprocal = 1.0f / 3.0f;
  int differing = 0;
  for (const float cut : {0.8614784181118011f, 0.6427869200706482f, 0.5016634166240692f, 0.3893125355243683f,
                          0.2920137718319893f, 0.2035212516784668f, 0.1202552504837513f}) {
    float value = cut * 3.0f;
    for (int step = 0; step < 4; ++step) value = std::nextafter(value, 0.0f);
    for (int step = 0; step < 9; ++step, value = std::nextafter(value, 4.0f)) {
      for (const size_t count : {64, 62}) {
        std::vector<float> values(count, 0.0f);
        values[0] = 3.0f;
        values[1] = value;
        EXPECT_EQ(Quantize(values, kNf4, Dialect::kCuda).Code(1), CodeOf(kNf4, value * reciprocal)) << cut;
      }
      differing += (value * reciprocal > cut) != (value / 3.0f > cut);
    }
  }
  EXPECT_GT(differing, 0) << "the inputs do not tell product and quotient apart";
}

TEST(CudaDialectTest, ANanIsAboveNothingAndDoesNotCountForTheMaximum) {
  std::vector<float> values(64, 0.5f);
  values[3] = std::nanf("");
  values[4] = -std::nanf("");
  const Quantized nf4 = Quantize(values, kNf4, Dialect::kCuda);
  const Quantized fp4 = Quantize(values, kFp4, Dialect::kCuda);
  EXPECT_THAT(nf4.absmax, ElementsAre(0.5f));
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(nf4.Code(i), i == 3 || i == 4 ? 0 : 15) << i;
    EXPECT_EQ(fp4.Code(i), i == 3 || i == 4 ? 0 : 3) << i;
  }
}

TEST(CudaDialectTest, AnInfinityLeavesTheCodeOfZeroToTheRest) {
  std::vector<float> values(64, 0.5f);
  values[9] = -std::numeric_limits<float>::infinity();  // infinity * 0 is a NaN
  const Quantized result = Quantize(values, kNf4, Dialect::kCuda);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(result.Code(i), i == 9 ? 0 : 7) << i;
}

TEST(CudaDialectTest, TheReciprocalIsZeroWhereItWouldBeSubnormal) {
  EXPECT_EQ(codec::CudaReciprocal(0x1p126f), 0x1p-126f);
  EXPECT_EQ(codec::CudaReciprocal(0x1.000002p126f), 0.0f);
  EXPECT_EQ(codec::CudaReciprocal(0x1p-126f), 0x1p126f);
  EXPECT_EQ(codec::CudaReciprocal(0x1p-127f), std::numeric_limits<float>::infinity());
  EXPECT_EQ(codec::CudaReciprocal(0.0f), std::numeric_limits<float>::infinity());
  EXPECT_THAT(Quantize(std::vector<float>(64, 3e38f), kNf4, Dialect::kCuda).packed, Each(0x77));
}

TEST(CudaDialectTest, ScalesHaveTheNearestCodeAndATieStays) {
  const std::array<float, 256>& table = NestedTable();
  std::vector<float> scales(table.begin(), table.end());
  std::vector<uint8_t> codes(256);
  std::vector<float> nested(1);
  QuantizeAbsmax(Dialect::kCuda, scales, 0.0f, codes, nested);
  EXPECT_THAT(nested, ElementsAre(1.0f));
  for (int i = 0; i < 256; ++i) EXPECT_EQ(codes[i], i);
  // Between two codes: everything nearer to one of them has that code.
  for (int i = 0; i < 255; ++i) {
    const float middle = (table[i] + table[i + 1]) * 0.5f;
    scales.assign({1.0f, std::nextafter(middle, -2.0f), std::nextafter(middle, 2.0f), middle});
    codes.resize(4);
    QuantizeAbsmax(Dialect::kCuda, scales, 0.0f, codes, nested);
    EXPECT_THAT(codes, ElementsAre(255, i, i + 1, ::testing::AnyOf(i, i + 1))) << i;
  }
}

TEST(CudaDialectTest, ScalesThatAreAllTheirMeanHaveCodeZero) {
  std::vector<float> scales(300, 0.25f);
  std::vector<uint8_t> codes(300);
  std::vector<float> nested(2);
  QuantizeAbsmax(Dialect::kCuda, scales, 0.25f, codes, nested);
  EXPECT_THAT(codes, Each(0));
  EXPECT_THAT(nested, Each(0.0f));
  RestoreAbsmax(codes, nested, 0.25f, scales);
  EXPECT_THAT(scales, Each(0.25f));
}

}  // namespace
}  // namespace gpuledger
