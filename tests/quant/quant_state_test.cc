// Weights that a checkpoint already stores in 4 bit: the JSON of their quant_state, and what must lie beside it.
#include "quant_state.h"

#include <cstring>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpuledger/codec.h"
#include "test_files.h"

namespace gpuledger {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::string_view kState = ".quant_state.bitsandbytes__nf4";

TEST(QuantStateTest, WhatIsWrittenIsRead) {
  for (const FourBitFormat format :
       {FourBitFormat{}, FourBitFormat{QuantType::kFp4, 4096, false}, FourBitFormat{QuantType::kNf4, 32, true}}) {
    for (const float offset : {0.0f, 1.0f, -1e-30f, 0.1f, 123456.78f, 3e38f, 1e-45f, 1e16f, 1e15f}) {
      const QuantState state{format, FloatType::kBFloat16, {3, 0, ~uint64_t{0}}, format.double_quant ? offset : 0};
      const std::string text = QuantStateText(state);
      const absl::StatusOr<QuantState> read = ParseQuantState("file", 100, "w", text);
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(read->format, format);
      EXPECT_EQ(read->source_type, FloatType::kBFloat16);
      EXPECT_EQ(read->shape, state.shape);
      EXPECT_EQ(read->offset, state.offset) << text;
    }
  }
}

TEST(QuantStateTest, WritesNumbersAsPythonDoes) {
  const auto offset = [](float value) {
    const std::string text = QuantStateText({{QuantType::kNf4, 64, true}, FloatType::kFloat32, {}, value});
    const std::string_view key = "\"nested_offset\": ";
    const size_t at = text.find(key) + key.size();
    return text.substr(at, text.size() - 1 - at);
  };
  EXPECT_EQ(offset(0.0f), "0.0");
  EXPECT_EQ(offset(2.0f), "2.0");
  EXPECT_EQ(offset(0.1f), "0.10000000149011612");
  EXPECT_EQ(offset(1e-5f), "9.999999747378752e-06");
  EXPECT_EQ(offset(std::ldexp(1.0f, -20)), "9.5367431640625e-07");
  EXPECT_EQ(offset(std::ldexp(1.0f, 60)), "1.152921504606847e+18");
  EXPECT_EQ(offset(1e15f), "999999986991104.0");
}

TEST(QuantStateTest, DamageIsRefusedWithFileTensorAndByte) {
  const std::string plain = R"("quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [2])";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not valid JSON"},
      {"[]", "the state is an array, not an object (in tensor \"w\", byte 101 of the file)"},
      {"7", "the state is 7, not an object"},
      {"{}", "tensor \"w\" (byte 100 of the file) needs quant_type, blocksize, dtype, shape"},
      {"{" + plain + "} x", "not valid JSON"},
      {"{" + plain + R"(, "shape": [3]})", "shape appears twice"},
      {"{" + plain + R"(, "code": [3]})", "the entry \"code\" is not known"},
      {"{" + plain + R"(, "nested_blocksize": 256})",
       "for double quantization nested_blocksize, nested_dtype, nested_o"},
      {R"({"quant_type": "int4"})", "quant_type \"int4\" is neither nf4 nor fp4"},
      {R"({"quant_type": null})", "quant_type is null"},
      {R"({"blocksize": 48})", "a block size of 48"},
      {R"({"blocksize": -64})", "blocksize is -64"},
      {R"({"blocksize": 64.0})", "blocksize is \"64.0\""},
      {R"({"blocksize": 8192})", "a block size of 8192"},
      {R"({"dtype": "float8"})", "dtype \"float8\" is none of"},
      {R"({"shape": 7})", "shape is 7"},
      {R"({"shape": [-1]})", "shape is -1"},
      {R"({"shape": [[1]]})", "shape is an array"},
      {R"({"shape": ["1"]})", "shape is \"1\""},
      {R"({"shape": [{}]})", "shape is an object"},
      {R"({"shape": [18446744073709551616]})", "shape is \"18446744073709551616\""},
      {R"({"shape": )" + std::string(1 << 20, '['), "shape is an array (in tensor \"w\", byte 112"},
      {R"({"nested_blocksize": 128})", "nested blocks of 128 scales"},
      {R"({"nested_dtype": "float16"})", "nested_dtype \"float16\" is not float32"},
      {R"({"nested_offset": 1e40})", "is no float32"},
      {R"({"nested_offset": NaN})", "not valid JSON"},
      {"{\"dtype\": \"\xff\"}", "ill-formed UTF-8"},
  };
  for (const auto& [text, error] : cases) {
    const absl::Status status = ParseQuantState("dir/file", 100, "w", text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 100);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("dir/file: "), HasSubstr("\"w\""), HasSubstr(error)));
  }
  std::string many = R"({"shape": [1)";
  for (int i = 0; i < 64; ++i) many += ",1";
  EXPECT_THAT(std::string(ParseQuantState("f", 0, "w", many + "]}").status().message()), HasSubstr("64 dimensions"));
}

// A source in memory.
class Tensors final : public ModelSource {
 public:
  void Put(const std::string& name, Dtype dtype, std::vector<uint64_t> shape, std::string data) {
    uint64_t elements = 1;
    for (const uint64_t dimension : shape) elements *= dimension;
    infos_.push_back({name, dtype, std::move(shape), elements, 1000 + infos_.size(), Bytes(data.size())});
    data_[name] = std::move(data);
  }
  template <size_t N>
  void Put(const std::string& name, const std::array<float, N>& values) {
    Put(name, Dtype::kF32, {N}, {reinterpret_cast<const char*>(values.data()), sizeof(values)});
  }
  void Drop(const std::string& name) {
    std::erase_if(infos_, [&](const TensorInfo& info) { return info.name == name; });
  }
  const std::string& name() const override { return name_; }
  const std::string& directory() const override { return name_; }
  const std::string& config() const override { return config_; }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  absl::Status Read(const TensorInfo& tensor, Bytes offset, std::span<std::byte> out) const override {
    if (!out.empty()) std::memcpy(out.data(), data_.at(tensor.name).data() + offset.count(), out.size());
    return absl::OkStatus();
  }

  std::string name_ = "dir";
  std::string config_ = R"({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}})";
  std::vector<TensorInfo> infos_;
  std::map<std::string, std::string> data_;
};

// A 3 x 43 weight: 129 elements, 65 bytes, 3 blocks.
Tensors OneWeight(const FourBitFormat& format = {}, std::string_view kind = kBitsandbytesState) {
  Tensors source;
  source.Put("a.weight", Dtype::kU8, {65, 1}, std::string(65, 'x'));
  if (format.double_quant) {
    source.Put("a.weight.absmax", Dtype::kU8, {3}, "123");
    source.Put("a.weight.nested_absmax", Dtype::kF32, {1}, "1234");
    source.Put("a.weight.nested_quant_map", NestedTable());
  } else {
    source.Put("a.weight.absmax", Dtype::kF32, {3}, std::string(12, '1'));
  }
  source.Put("a.weight.quant_map", CodeTable(format.type));
  const std::string state = QuantStateText({format, FloatType::kFloat16, {3, 43}, 0.5f});
  source.Put("a.weight" + std::string(kind) + std::string(QuantTypeName(format.type)), Dtype::kU8, {state.size()},
             state);
  source.Put("norm.weight", Dtype::kF32, {1}, "1234");
  return source;
}

TEST(StoredWeightsTest, AreFoundWithTheirParts) {
  for (const bool nested : {false, true}) {
    for (const std::string_view kind : {kBitsandbytesState, kOwnState}) {
      const FourBitFormat format{QuantType::kFp4, 64, nested};
      const Tensors source = OneWeight(format, kind);
      const auto weights = FindStoredWeights(source);
      ASSERT_TRUE(weights.ok()) << weights.status();
      ASSERT_EQ(weights->size(), 1u);
      const StoredWeight& weight = weights->front();
      EXPECT_EQ(weight.name, "a.weight");
      EXPECT_EQ(weight.format, format);
      EXPECT_EQ(weight.source_type, FloatType::kFloat16);
      EXPECT_THAT(weight.shape, ElementsAre(3, 43));
      EXPECT_EQ(weight.elements, 129u);
      EXPECT_EQ(weight.own_layout, kind == kOwnState);
      EXPECT_EQ(weight.offset, nested ? 0.5f : 0.0f);
      EXPECT_EQ(weight.packed->name, "a.weight");
      EXPECT_EQ(weight.absmax->name, "a.weight.absmax");
      EXPECT_EQ(weight.table->name, "a.weight.quant_map");
      EXPECT_EQ(weight.nested_table != nullptr, nested);
    }
  }
}

TEST(StoredWeightsTest, PartsThatDoNotFitAreRefusedByName) {
  const auto error = [](auto change, bool nested = false) {
    Tensors source = OneWeight({QuantType::kNf4, 64, nested});
    change(source);
    const absl::Status status = FindStoredWeights(source).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  const auto replace = [](Tensors& source, const std::string& name, Dtype dtype, std::vector<uint64_t> shape,
                          std::string data) {
    source.Drop(name);
    source.Put(name, dtype, std::move(shape), std::move(data));
  };
  const std::string state = "a.weight" + std::string(kState);
  EXPECT_THAT(error([](Tensors& s) { s.Drop("a.weight"); }),
              AllOf(HasSubstr("dir: tensor \"" + state + "\" (byte 100"), HasSubstr("no \"a.weight\" beside it")));
  for (const char* part : {".absmax", ".quant_map"}) {
    EXPECT_THAT(error([&](Tensors& s) { s.Drop("a.weight" + std::string(part)); }), HasSubstr(part));
  }
  for (const char* part : {".nested_absmax", ".nested_quant_map"}) {
    EXPECT_THAT(error([&](Tensors& s) { s.Drop("a.weight" + std::string(part)); }, true), HasSubstr(part));
  }
  EXPECT_THAT(error([&](Tensors& s) {
                replace(s, "a.weight", Dtype::kU8, {64, 1}, std::string(64, 'x'));
              }),
              HasSubstr("\"a.weight\" (byte 1004 of the file) has 64 bytes; shape [3, 43] in 4 bit needs 65"));
  EXPECT_THAT(error([&](Tensors& s) { replace(s, "a.weight.absmax", Dtype::kBF16, {3}, "123456"); }),
              HasSubstr("has 3 elements of dtype BF16; the quant_state of \"a.weight\" needs 3 of F32"));
  EXPECT_THAT(error([&](Tensors& s) { replace(s, "a.weight.absmax", Dtype::kF32, {3}, std::string(12, '1')); }, true),
              HasSubstr("has 3 elements of dtype F32; the quant_state of \"a.weight\" needs 3 of U8"));
  EXPECT_THAT(error([&](Tensors& s) { replace(s, "a.weight.nested_absmax", Dtype::kF32, {2}, "12345678"); }, true),
              HasSubstr("\"a.weight.nested_absmax\" (byte 1006 of the file) has 2 elements"));
  std::array<float, 16> table = CodeTable(QuantType::kNf4);
  table[3] = 0.25f;
  EXPECT_THAT(error([&](Tensors& s) { s.Drop("a.weight.quant_map"), s.Put("a.weight.quant_map", table); }),
              HasSubstr("has 0.25 as entry 3 where the format's table has -0.3949175"));
  EXPECT_THAT(error([&](Tensors& s) { s.Drop(state); }), HasSubstr("a.weight.absmax\" (byte 1001 of the file) has no quant_state of"));
  EXPECT_THAT(error([&](Tensors& s) { replace(s, state, Dtype::kU8, {3}, "{}x"); }), HasSubstr("not valid JSON"));
  EXPECT_THAT(error([&](Tensors& s) { replace(s, state, Dtype::kI8, {3}, "{}x"); }), HasSubstr("is 3 bytes of I8"));
  EXPECT_THAT(error([&](Tensors& s) { replace(s, state, Dtype::kU8, {65537}, std::string(65537, ' ')); }),
              HasSubstr("at most 65536 bytes"));
  const std::string large = QuantStateText({{}, FloatType::kFloat16, {uint64_t{1} << 40, uint64_t{1} << 40}, 0});
  EXPECT_THAT(error([&](Tensors& s) { replace(s, state, Dtype::kU8, {large.size()}, large); }), HasSubstr("overflows"));
  EXPECT_THAT(error([&](Tensors& s) {
                const std::string text = s.data_[state];
                s.Put("a.weight" + std::string(kOwnState) + "nf4", Dtype::kU8, {text.size()}, text);
              }),
              HasSubstr("second quant_state of its weight"));
  EXPECT_THAT(error([&](Tensors& s) {
                const std::string text = s.data_[state];
                s.Drop(state), s.Put("a.weight.quant_state.bitsandbytes__fp4", Dtype::kU8, {text.size()}, text);
              }),
              HasSubstr("has quant_type nf4"));
}

TEST(StoredWeightsTest, AModelInFullPrecisionHasNone) {
  Tensors source;
  source.Put("a.weight", Dtype::kF32, {1}, "1234");
  for (const char* config : {R"({})", R"({"quantization_config": null})"}) {
    source.config_ = config;
    const auto weights = FindStoredWeights(source);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_THAT(*weights, IsEmpty());
  }
}

TEST(StoredWeightsTest, OtherMethodsAreNamedAndTheOriginalAskedFor) {
  Tensors source = OneWeight();
  const auto error = [&](const std::string& config) {
    source.config_ = config;
    return std::string(FindStoredWeights(source).status().message());
  };
  for (const std::string method : {"gptq", "awq", "fp8", "compressed-tensors", "mxfp4"}) {
    EXPECT_THAT(error(R"({"quantization_config": {"quant_method": ")" + method + "\"}}"),
                AllOf(HasSubstr("dir/config.json"), HasSubstr("with \"" + method + "\""), HasSubstr("the original")));
  }
  EXPECT_THAT(error(R"({"compression_config": {"quant_method": "compressed-tensors"}})"),
              HasSubstr("compressed-tensors"));
  EXPECT_THAT(error(R"({"quantization_config": {"load_in_8bit": true}})"), HasSubstr("bitsandbytes in 8 bit"));
  EXPECT_THAT(error(R"({"quantization_config": {"bits": 4}})"), HasSubstr("with a method that it does not name"));
  EXPECT_THAT(error(R"({"quantization_config": 4})"), HasSubstr("quantization_config is not an object"));
  EXPECT_THAT(error(R"({"quantization_config": {"load_in_4bit": true}})"), IsEmpty());
  source.Drop("a.weight"), source.Drop("a.weight" + std::string(kState)), source.Drop("a.weight.quant_map");
  EXPECT_THAT(error(R"({"quantization_config": {"load_in_4bit": true}})"), HasSubstr("no tensor has a quant_state"));
}

}  // namespace
}  // namespace gpuledger
