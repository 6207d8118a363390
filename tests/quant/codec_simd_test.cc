// Every instruction set of this machine gives the bytes of the scalar reference.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "codec_floats.h"
#include "codec_reference.h"
#include "codec_tables.h"
#include "codec_test.h"

namespace gpuledger {
namespace {

std::vector<int64_t> Targets() { return hwy::SupportedAndGeneratedTargets(); }

void UseTarget(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

class CodecSimdTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { UseTarget(GetParam()); }
  void TearDown() override { UseTarget(0); }
  const uint32_t seed_ = TestSeed();
};

std::string TargetName(const ::testing::TestParamInfo<int64_t>& target) { return hwy::TargetName(target.param); }
INSTANTIATE_TEST_SUITE_P(EveryTarget, CodecSimdTest, ::testing::ValuesIn(Targets()), TargetName);

std::vector<std::byte> Narrow(const std::vector<float>& values, FloatType type) {
  std::vector<std::byte> bytes(values.size() * FloatSize(type).count());
  codec::WithFloatType(type, [&]<class T>(T*) {
    for (size_t i = 0; i < values.size(); ++i) {
      T narrow;
      codec::FromFloat(values[i], &narrow);
      std::memcpy(bytes.data() + i * sizeof(T), &narrow, sizeof(T));
    }
  });
  return bytes;
}

void ExpectReferenceBytes(const FourBitFormat& format, Dialect dialect, FloatType from,
                          const std::vector<std::byte>& source) {
  const uint64_t elements = source.size() / FloatSize(from).count();
  Quantized ours(elements, format.block);
  Quantized reference(elements, format.block);
  Quantize4Bit(format, dialect, from, source.data(), elements, ours.packed, ours.absmax);
  codec::ReferenceQuantize(format, dialect, from, source.data(), elements, reference.packed.data(),
                           reference.absmax.data());
  const std::string name = fmt::format("{}, dialect {}, element type {}, {} elements", ToString(format),
                                       static_cast<int>(dialect), static_cast<int>(from), elements);
  ASSERT_EQ(Bits(ours.absmax), Bits(reference.absmax)) << name;
  const auto [at, expected] = std::mismatch(ours.packed.begin(), ours.packed.end(), reference.packed.begin());
  ASSERT_TRUE(at == ours.packed.end()) << name << ": byte " << at - ours.packed.begin() << " is " << int{*at}
                                       << ", not " << int{*expected};
}

void ExpectReferenceBytesInEveryFormat(const std::vector<std::byte>& source, FloatType from) {
  for (const uint32_t block : kBlockSizes) {
    for (const QuantType type : kQuantTypes) {
      for (const Dialect dialect : kDialects) ExpectReferenceBytes({type, block}, dialect, from, source);
    }
  }
}

TEST_P(CodecSimdTest, QuantizesRandomValuesLikeTheReference) {
  SCOPED_TRACE(fmt::format("GPULEDGER_TEST_SEED={}", seed_));
  for (const FloatType from : kFloatTypes) {
    for (const float deviation : {0.02f, 1.0f, 1e-6f}) {
      ExpectReferenceBytesInEveryFormat(Narrow(RandomValues(3 * 4096 + 77, seed_, deviation), from), from);
    }
  }
}

TEST_P(CodecSimdTest, QuantizesRandomBitPatternsLikeTheReference) {
  SCOPED_TRACE(fmt::format("GPULEDGER_TEST_SEED={}", seed_));
  std::mt19937 random(seed_);
  for (const FloatType from : kFloatTypes) {
    std::vector<std::byte> source(2 * 4096 * FloatSize(from).count());
    for (int round = 0; round < 3; ++round) {
      for (std::byte& byte : source) byte = static_cast<std::byte>(random());
      ExpectReferenceBytesInEveryFormat(source, from);
    }
  }
}

TEST_P(CodecSimdTest, QuantizesEvery16BitPatternLikeTheReference) {
  const std::vector<float> values = RandomValues(65536 * 64, seed_);
  for (const FloatType from : {FloatType::kFloat16, FloatType::kBFloat16}) {
    std::vector<std::byte> source = Narrow(values, from);
    for (uint32_t bits = 0; bits < 65536; ++bits) std::memcpy(source.data() + (bits * 64 + bits % 64) * 2, &bits, 2);
    for (const QuantType type : kQuantTypes) {
      for (const Dialect dialect : kDialects) ExpectReferenceBytes({type, 64}, dialect, from, source);
    }
  }
}

// Blocks of `absmax` and of values around cut point * absmax, of both signs.
std::vector<float> AroundCutPoints(const codec::Encoding& encoding, float absmax, size_t block) {
  std::vector<float> near;
  for (const float cut : encoding.cuts) {
    for (const float sign : {1.0f, -1.0f}) {
      float value = sign * cut * absmax;
      for (int step = 0; step < 4; ++step) value = std::nextafter(value, -2 * absmax);
      for (int step = 0; step < 9; ++step, value = std::nextafter(value, 2 * absmax)) {
        if (near.size() % block == 0) near.push_back(absmax);
        near.push_back(std::abs(value) <= absmax ? value : 0.0f);
      }
    }
  }
  while (near.size() % block != 0) near.push_back(0.0f);
  return near;
}

TEST_P(CodecSimdTest, QuantizesCutPointsAndTheirNeighboursLikeTheReference) {
  SCOPED_TRACE(fmt::format("GPULEDGER_TEST_SEED={}", seed_));
  std::mt19937 random(seed_);
  std::vector<float> scales = {1,        3,        0.7f,      65504,    0x1p-100f, 0x1p-101f,
                               0x1p100f, 0x1p101f, 0x1p-126f, 0x1p126f, 0x1p127f};
  for (int i = 0; i < 40; ++i) scales.push_back(std::uniform_real_distribution<float>(0.001f, 10)(random));
  for (const float absmax : scales) {
    for (const QuantType type : kQuantTypes) {
      for (const Dialect dialect : kDialects) {
        for (const uint32_t block : {32u, 64u, 1024u}) {
          const std::vector<float> values = AroundCutPoints(codec::EncodingOf(type, dialect), absmax, block);
          for (const FloatType from : kFloatTypes) {
            ExpectReferenceBytes({type, block}, dialect, from, Narrow(values, from));
          }
        }
      }
    }
  }
}

TEST_P(CodecSimdTest, QuantizesSpecialBlocksLikeTheReference) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float values[] = {0.0f,     -0.0f,    1e-45f,    -1e-45f,       1e-40f,          1e-38f, -1e-38f,
                          1.2e-38f, -2e-38f,  6e-8f,     -6e-8f,        65504,           -65520, 3e38f,
                          3.4e38f,  infinity, -infinity, std::nanf(""), -std::nanf("7"), 1.0f,   -1.0f};
  for (const float first : values) {
    for (const float rest : values) {
      std::vector<float> block(4096, rest);
      for (size_t i = 5; i < block.size(); i += 64) block[i] = first;
      for (const FloatType from : kFloatTypes) {
        for (const uint32_t size : {32u, 64u, 4096u}) {
          for (const QuantType type : kQuantTypes) {
            for (const Dialect dialect : kDialects)
              ExpectReferenceBytes({type, size}, dialect, from, Narrow(block, from));
          }
        }
      }
    }
  }
}

TEST_P(CodecSimdTest, ReadsAndWritesUnalignedMemory) {
  const std::vector<float> values = RandomValues(64 * 5 + 3, seed_);
  for (const FloatType type : kFloatTypes) {
    const size_t width = FloatSize(type).count();
    const std::vector<std::byte> source = Narrow(values, type);
    std::vector<std::byte> shifted(source.size() + 1);
    std::copy(source.begin(), source.end(), shifted.begin() + 1);
    Quantized expected(values.size(), 64);
    Quantized ours(values.size(), 64);
    Quantize4Bit({}, Dialect::kCpu, type, source.data(), values.size(), expected.packed, expected.absmax);
    Quantize4Bit({}, Dialect::kCpu, type, shifted.data() + 1, values.size(), ours.packed, ours.absmax);
    EXPECT_EQ(ours.packed, expected.packed);

    std::vector<std::byte> out(values.size() * width);
    Dequantize4Bit({}, ours.packed, ours.absmax, values.size(), type, out.data());
    Dequantize4Bit({}, ours.packed, ours.absmax, values.size(), type, shifted.data() + 1);
    EXPECT_EQ(std::memcmp(out.data(), shifted.data() + 1, out.size()), 0);
  }
}

TEST_P(CodecSimdTest, DequantizesLikeTheReference) {
  SCOPED_TRACE(fmt::format("GPULEDGER_TEST_SEED={}", seed_));
  std::mt19937 random(seed_);
  const uint64_t elements = 40 * 4096 + 33;
  std::vector<uint8_t> packed(PackedBytes(elements).count());
  for (uint8_t& byte : packed) byte = static_cast<uint8_t>(random());
  for (const uint32_t block : kBlockSizes) {
    std::vector<float> absmax(BlockCount(elements, block));
    for (size_t i = 0; i < absmax.size(); ++i) {  // ordinary scales, and any bit pattern
      absmax[i] = i % 2 == 0 ? std::uniform_real_distribution<float>(0, 1)(random)
                             : std::bit_cast<float>(static_cast<uint32_t>(random()));
    }
    for (const QuantType type : kQuantTypes) {
      for (const FloatType to : kFloatTypes) {
        std::vector<std::byte> ours(elements * FloatSize(to).count());
        std::vector<std::byte> reference(ours.size());
        Dequantize4Bit({type, block}, packed, absmax, elements, to, ours.data());
        codec::ReferenceDequantize({type, block}, packed.data(), absmax.data(), elements, to, reference.data());
        ASSERT_TRUE(ours == reference) << ToString({type, block}) << " to " << static_cast<int>(to);
      }
    }
  }
}

TEST_P(CodecSimdTest, DequantizesScalesAtWhich16BitTypesRoundLikeTheReference) {
  std::vector<float> absmax;
  for (const float scale :
       {6e-8f, 3e-8f, 6.1e-5f, 5.9e-5f, 65504.0f, 65519.0f, 65520.0f, 1e5f, 3.39e38f, 3.4028e38f, 1e-40f, 0x1p-126f}) {
    float next = scale;
    for (int i = 0; i < 100; ++i) absmax.push_back(next = std::nextafter(next, std::numeric_limits<float>::infinity()));
  }
  const uint64_t elements = absmax.size() * 32;
  std::vector<uint8_t> packed(elements / 2);
  for (size_t i = 0; i < packed.size(); ++i) packed[i] = static_cast<uint8_t>(i * 17 + i / 16);
  for (const QuantType type : kQuantTypes) {
    for (const FloatType to : kFloatTypes) {
      std::vector<std::byte> ours(elements * FloatSize(to).count());
      std::vector<std::byte> reference(ours.size());
      Dequantize4Bit({type, 32}, packed, absmax, elements, to, ours.data());
      codec::ReferenceDequantize({type, 32}, packed.data(), absmax.data(), elements, to, reference.data());
      ASSERT_TRUE(ours == reference) << ToString({type, 32}) << " to " << static_cast<int>(to);
    }
  }
}

}  // namespace
}  // namespace gpuledger
