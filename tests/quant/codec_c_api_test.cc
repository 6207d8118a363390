#include <gtest/gtest.h>

#include "codec_test.h"
#include "gpuledger/gpuledger_quant.h"

namespace gpuledger {
namespace {

TEST(QuantCApiTest, GivesTheSameBytesAsTheCppInterface) {
  const std::vector<float> values = RandomValues(1001, 4);
  for (const QuantType type : kQuantTypes) {
    for (const Dialect dialect : kDialects) {
      const Quantized expected = Quantize(values, {type, 32}, dialect);
      Quantized result(values.size(), 32);
      ASSERT_EQ(gpuledger_quantize_4bit(static_cast<int>(type), 32, static_cast<int>(dialect), GPULEDGER_F32,
                                        values.data(), values.size(), result.packed.data(), result.absmax.data()),
                GPULEDGER_QUANT_OK);
      EXPECT_EQ(result.packed, expected.packed);
      EXPECT_EQ(result.absmax, expected.absmax);

      std::vector<uint16_t> back(values.size());
      std::vector<uint16_t> expected_back(values.size());
      Dequantize4Bit({type, 32}, expected.packed, expected.absmax, values.size(), FloatType::kBFloat16,
                     expected_back.data());
      ASSERT_EQ(gpuledger_dequantize_4bit(static_cast<int>(type), 32, result.packed.data(), result.absmax.data(),
                                          values.size(), GPULEDGER_BF16, back.data()),
                GPULEDGER_QUANT_OK);
      EXPECT_EQ(back, expected_back);
    }
  }
}

TEST(QuantCApiTest, ScalesMakeTheRoundTrip) {
  const Quantized weight = Quantize(RandomValues(64 * 700, 5));
  const uint64_t n = weight.absmax.size();
  float offset = 0;
  std::vector<uint8_t> codes(n);
  std::vector<float> nested(3), restored(n);
  ASSERT_EQ(gpuledger_absmax_offset(weight.absmax.data(), n, &offset), GPULEDGER_QUANT_OK);
  EXPECT_EQ(offset, AbsmaxOffset(weight.absmax));
  ASSERT_EQ(
      gpuledger_quantize_absmax(GPULEDGER_DIALECT_CPU, weight.absmax.data(), n, offset, codes.data(), nested.data()),
      GPULEDGER_QUANT_OK);
  ASSERT_EQ(gpuledger_restore_absmax(codes.data(), nested.data(), n, offset, restored.data()), GPULEDGER_QUANT_OK);
  for (size_t i = 0; i < n; ++i) EXPECT_NEAR(restored[i], weight.absmax[i], 0.01f * nested[i / 256]);
}

TEST(QuantCApiTest, BadArgumentsHaveAStatusEach) {
  float value = 0;
  uint8_t byte = 0;
  const auto quantize = [&](int type, uint32_t block, int dialect, int dtype, const void* source, uint64_t n) {
    return gpuledger_quantize_4bit(type, block, dialect, dtype, source, n, &byte, &value);
  };
  EXPECT_EQ(quantize(0, 64, 0, 9, &value, 1), GPULEDGER_QUANT_UNKNOWN_DTYPE);
  EXPECT_EQ(quantize(2, 64, 0, 0, &value, 1), GPULEDGER_QUANT_UNKNOWN_TYPE);
  EXPECT_EQ(quantize(0, 48, 0, 0, &value, 1), GPULEDGER_QUANT_BLOCK_SIZE);
  EXPECT_EQ(quantize(0, 8192, 0, 0, &value, 1), GPULEDGER_QUANT_BLOCK_SIZE);
  EXPECT_EQ(quantize(0, 64, -1, 0, &value, 1), GPULEDGER_QUANT_UNKNOWN_DIALECT);
  EXPECT_EQ(quantize(0, 64, 0, GPULEDGER_F16, nullptr, 1), GPULEDGER_QUANT_NULL_POINTER);
  EXPECT_EQ(quantize(0, 64, 0, GPULEDGER_BF16, &value, ~uint64_t{0}), GPULEDGER_QUANT_TOO_LARGE);
  EXPECT_EQ(gpuledger_dequantize_4bit(0, 64, &byte, nullptr, 1, 0, &value), GPULEDGER_QUANT_NULL_POINTER);
  EXPECT_EQ(gpuledger_absmax_offset(&value, 1, nullptr), GPULEDGER_QUANT_NULL_POINTER);
  EXPECT_EQ(gpuledger_absmax_offset(nullptr, 1, &value), GPULEDGER_QUANT_NULL_POINTER);
  EXPECT_EQ(gpuledger_quantize_absmax(7, &value, 1, 0, &byte, &value), GPULEDGER_QUANT_UNKNOWN_DIALECT);
  EXPECT_EQ(gpuledger_restore_absmax(&byte, &value, 1, 0, nullptr), GPULEDGER_QUANT_NULL_POINTER);
  EXPECT_EQ(gpuledger_code_table(5, &value), GPULEDGER_QUANT_UNKNOWN_TYPE);
  EXPECT_EQ(gpuledger_nested_table(nullptr), GPULEDGER_QUANT_NULL_POINTER);
  EXPECT_EQ(gpuledger_quantize_4bit(0, 64, 0, 0, nullptr, 0, nullptr, nullptr), GPULEDGER_QUANT_OK);
}

}  // namespace
}  // namespace gpuledger
