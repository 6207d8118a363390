// Models made of shapes alone: their sizes to the byte, their values, and what a configuration may get wrong.
#include "gpuledger/synth.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <set>
#include <string>

#include "test_files.h"

namespace gpuledger {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<const ModelSource> Synth(const std::string& shapes, uint64_t seed = 0) {
  absl::StatusOr<std::shared_ptr<const ModelSource>> source = SynthModel(shapes, seed);
  if (!source.ok()) ADD_FAILURE() << source.status();
  return source.ok() ? *source : nullptr;
}

std::vector<std::byte> ReadAll(const ModelSource& source, const TensorInfo& tensor) {
  std::vector<std::byte> bytes(tensor.size.count());
  const absl::Status status = source.Read(tensor, Bytes(), bytes);
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

const TensorInfo& Tensor(const ModelSource& source, std::string_view name) {
  for (const TensorInfo& tensor : source.tensors()) {
    if (tensor.name == name) return tensor;
  }
  ADD_FAILURE() << "no tensor " << name;
  return source.tensors().front();
}

float FloatOf(Dtype dtype, const std::byte* bytes) {
  uint32_t bits = 0;
  if (dtype == Dtype::kF32) {
    std::memcpy(&bits, bytes, 4);
    return std::bit_cast<float>(bits);
  }
  std::memcpy(&bits, bytes, 2);
  if (dtype == Dtype::kBF16) return std::bit_cast<float>(bits << 16);
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const float mantissa = static_cast<float>(bits & 1023);
  const float magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
  return (bits >> 15) != 0 ? -magnitude : magnitude;
}

std::vector<float> Values(const ModelSource& source, const TensorInfo& tensor) {
  const std::vector<std::byte> bytes = ReadAll(source, tensor);
  const size_t size = DtypeSize(tensor.dtype).count();
  std::vector<float> values(tensor.elements);
  for (size_t i = 0; i < values.size(); ++i) values[i] = FloatOf(tensor.dtype, &bytes[i * size]);
  return values;
}

struct Moments {
  double mean = 0;
  double deviation = 0;
};

Moments MomentsOf(const std::vector<float>& values) {
  double sum = 0, squares = 0;
  for (const float v : values) sum += v, squares += double{v} * v;
  const double n = static_cast<double>(values.size());
  return {sum / n, std::sqrt(squares / n - sum / n * (sum / n))};
}

struct Sizes {
  std::string name;
  uint64_t parameters;
  uint64_t linears;
  uint64_t linear_elements;
  uint64_t fused;  // expert tensors of three dimensions
};

// Linears are matrices named *.weight that are no embedding, output head or router (`mlp.gate`).
bool IsLinear(const TensorInfo& tensor) {
  if (tensor.shape.size() != 2 || tensor.name == "lm_head.weight") return false;
  return tensor.name.find("embed") == std::string::npos && !tensor.name.ends_with("mlp.gate.weight");
}

TEST(SynthShapes, SumToTheByteForEveryPublishedModel) {
  const Sizes published[] = {{"opt-350m", 331'196'416, 146, 303'038'464, 0},
                             {"llama-3-8b", 8'030'261'248, 224, 6'979'321'856, 0},
                             {"llama-3-70b", 70'553'706'496, 560, 68'451'041'280, 0},
                             {"command-r", 34'980'831'232, 280, 32'883'343'360, 0},
                             {"mixtral-8x7b", 46'702'792'704, 928, 46'440'382'464, 0},
                             {"qwen3.5-35b-a3b", 34'660'610'688, 350, 33'621'360'640, 80}};
  for (const Sizes& model : published) {
    SCOPED_TRACE(model.name);
    const auto source = Synth(model.name);
    ASSERT_NE(source, nullptr);
    uint64_t parameters = 0, linears = 0, linear_elements = 0, fused = 0;
    Bytes bytes;
    for (const TensorInfo& tensor : source->tensors()) {
      EXPECT_EQ(tensor.dtype, model.name == "opt-350m" ? Dtype::kF16 : Dtype::kBF16);
      EXPECT_EQ(tensor.begin, bytes.count()) << tensor.name;
      parameters += tensor.elements;
      bytes += tensor.size;
      const bool expert = tensor.name.find(".experts.") != std::string::npos && tensor.shape.size() == 3;
      linears += IsLinear(tensor) ? 1 : 0;
      fused += expert ? 1 : 0;
      linear_elements += IsLinear(tensor) || expert ? tensor.elements : 0;
    }
    EXPECT_EQ(parameters, model.parameters);
    EXPECT_EQ(bytes, Bytes(2 * model.parameters));
    EXPECT_EQ(linears, model.linears);
    EXPECT_EQ(linear_elements, model.linear_elements);
    EXPECT_EQ(fused, model.fused);
  }
}

TEST(SynthShapes, DescribeEachNameWithItsNumberOfParameters) {
  std::set<std::string> names;
  for (const SynthShape& shape : SynthShapes()) {
    SCOPED_TRACE(shape.name);
    EXPECT_TRUE(names.insert(std::string(shape.name)).second);
    const auto source = Synth(std::string(shape.name));
    ASSERT_NE(source, nullptr);
    EXPECT_EQ(source->name(), "synth:" + std::string(shape.name));
    EXPECT_EQ(source->directory(), "");
    uint64_t parameters = 0;
    std::set<std::string> tensors;
    for (const TensorInfo& tensor : source->tensors()) {
      parameters += tensor.elements;
      EXPECT_TRUE(tensors.insert(tensor.name).second) << tensor.name;
    }
    const std::string count = ToString(Bytes(parameters));  // "331,196,416 B"
    EXPECT_THAT(std::string(shape.description), HasSubstr(": " + count.substr(0, count.size() - 2) + " parameters"));
    if (shape.name.starts_with("tiny-")) {
      EXPECT_GT(parameters, 100'000u);
      EXPECT_LT(parameters, 2'500'000u);
    }
  }
  EXPECT_EQ(names.size(), 12u);
}

TEST(SynthShapes, OfFourLayersOfQwenAreThoseMeasuredWithTransformers) {
  Bytes bytes;
  uint64_t linears = 0, linear_elements = 0;
  const auto source = Synth("qwen3.5-moe-4l");
  for (const TensorInfo& tensor : source->tensors()) {
    bytes += tensor.size;
    linears += IsLinear(tensor) ? 1 : 0;
    linear_elements += IsLinear(tensor) ? tensor.elements : 0;
  }
  EXPECT_EQ(bytes, Bytes(uint64_t{8'762'939'520}));
  EXPECT_EQ(linears, 35u);
  // All but the experts in 4 bit, as measured: 8,560,404,480 B allocated, that is without what allocating rounds up.
  const uint64_t loaded = bytes.count() - 2 * linear_elements + linear_elements / 2 + linear_elements / 16 + 35 * 64;
  EXPECT_LT(loaded, 8'560'404'480u);
  EXPECT_GT(loaded + 180 * 512, 8'560'404'480u);
}

std::string Named(std::string_view model_type, std::string_view rest) {
  return fmt::format(R"({{"model_type": "{}", {}}})", model_type, rest);
}

constexpr std::string_view kNumbers = R"("hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
  "num_attention_heads": 4, "vocab_size": 100)";

absl::Status StatusOf(const std::string& config) {
  TestDirectory directory;
  const std::string path = directory / "config.json";
  WriteFile(path, config);
  return SynthModel(path).status();
}

TEST(SynthConfig, GivesAllShapesOfAModelThatNobodyPublished) {
  TestDirectory directory;
  WriteFile(directory / "config.json", Named("llama", std::string(kNumbers) + R"(, "torch_dtype": "float16")"));
  const auto source = Synth(directory / "config.json");
  ASSERT_NE(source, nullptr);
  EXPECT_EQ(source->tensors().size(), 1u + 2 * 9 + 1 + 1);
  const TensorInfo& tensor = Tensor(*source, "model.layers.1.mlp.down_proj.weight");
  EXPECT_EQ(tensor.dtype, Dtype::kF16);
  EXPECT_EQ(tensor.shape, (std::vector<uint64_t>{64, 128}));
  EXPECT_EQ(source->config(), ReadFile(directory / "config.json"));
}

TEST(SynthConfig, ThatIsIncompleteOrWrongIsASentenceWithTheKey) {
  const std::string numbers(kNumbers);
  const std::pair<std::string, std::string> cases[] = {
      {"{}", "model_type is missing"},
      {Named("t5", numbers), R"(model_type is "t5"; known are bert,)"},
      {R"({"model_type": 7})", "model_type is \"7\"; it must be a string"},
      {Named("llama", R"("hidden_size": 64)"), "intermediate_size is missing"},
      {Named("mistral", numbers), "num_key_value_heads is missing"},
      {Named("gemma", numbers + R"(, "num_key_value_heads": 2)"), "head_dim is missing"},
      {Named("opt", numbers), "ffn_dim is missing"},
      {Named("bert", numbers), "max_position_embeddings is missing"},
      {Named("mixtral", numbers + R"(, "num_key_value_heads": 2)"), "num_local_experts is missing"},
      {Named("qwen3_5_moe", R"("text_config": {"hidden_size": 64})"), "text_config.num_hidden_layers is missing"},
      {Named("qwen3_5_moe", numbers), "num_key_value_heads is missing"},
      {Named("llama", numbers + R"(, "head_dim": 0)"),
       R"(head_dim is "0"; it must be a whole number from 1 to 2147483648)"},
      {Named("llama", numbers + R"(, "head_dim": -1)"), R"(head_dim is "-1")"},
      {Named("llama", numbers + R"(, "head_dim": 2.5)"), R"(head_dim is "2.5")"},
      {Named("llama", numbers + R"(, "head_dim": "many")"), R"(head_dim is "many")"},
      {Named("llama", numbers + R"(, "head_dim": 2147483649)"), "head_dim is"},
      {Named("llama", numbers + R"(, "mlp_bias": 1)"), R"(mlp_bias is "1"; it must be true or false)"},
      {Named("llama", numbers + R"(, "dtype": "int4")"), R"(dtype is "int4"; it must be bfloat16, float16 or float32)"},
      {Named("llama", numbers + R"(, "architectures": ["LlamaForTokens"])"), "architectures names"},
      {Named("llama", numbers + R"(, "architectures": {})"), "architectures must be a list"},
      {Named("bert",
             numbers + R"(, "max_position_embeddings": 9, "type_vocab_size": 2, "architectures": ["BertForX"])"),
       "architectures names"},
      {Named("llama", R"("num_hidden_layers": 1000001, "hidden_size": 1, "intermediate_size": 1)"),
       "num_hidden_layers is"},
      {"[1]", "is not a JSON object"},
      {"{\"a\": 1e999}", "number"},
      {"{\"a\": ", "is not valid JSON"},
      {"{\"a\": " + std::string(100, '[') + std::string(100, ']') + "}", "nests deeper than 64 levels"}};
  for (const auto& [config, sentence] : cases) {
    const absl::Status status = StatusOf(config);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << config << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json: "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(sentence)) << config;
  }
}

TEST(SynthConfig, OfMoreThanFitsIsRefusedAtOnce) {
  const std::string many = R"("hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 900000,
    "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 2, "num_local_experts": 900000)";
  EXPECT_THAT(std::string(StatusOf(Named("mixtral", many)).message()),
              HasSubstr("describes more than 1000000 tensors"));
  const std::string large = R"("hidden_size": 2147483648, "intermediate_size": 2147483648, "num_hidden_layers": 2,
    "num_attention_heads": 2147483648, "head_dim": 2147483648, "num_key_value_heads": 2147483648, "vocab_size": 2)";
  for (const std::string family : {"llama", "phi3", "qwen3", "cohere"}) {
    EXPECT_THAT(std::string(StatusOf(Named(family, large)).message()), HasSubstr("or more than 2^64 bytes"));
  }
}

TEST(SynthConfig, UnknownIsNotFoundWithTheListOfNames) {
  const absl::Status status = SynthModel("gpt-5").status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("\"gpt-5\": is neither the path of a config.json nor one of opt-350m,"));
  TestDirectory directory;
  EXPECT_TRUE(absl::IsInvalidArgument(SynthModel(directory.path()).status()));
}

TEST(SynthValues, DoNotDependOnHowTheyAreRead) {
  std::random_device device;
  const uint32_t seed = device();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  TestDirectory directory;
  for (const std::string dtype : {"float16", "bfloat16", "float32"}) {
    WriteFile(directory / (dtype + ".json"), Named("llama", fmt::format(R"({}, "dtype": "{}")", kNumbers, dtype)));
    const auto source = Synth(directory / (dtype + ".json"));
    const TensorInfo& tensor = Tensor(*source, "model.layers.0.mlp.up_proj.weight");
    const std::vector<std::byte> whole = ReadAll(*source, tensor);
    for (int i = 0; i < 300; ++i) {
      const uint64_t begin = random() % (whole.size() + 1);
      const uint64_t size = random() % (std::min<uint64_t>(whole.size() - begin, i < 200 ? 40 : whole.size()) + 1);
      std::vector<std::byte> part(size + 1, std::byte{0xaa});
      ASSERT_TRUE(source->Read(tensor, Bytes(begin), std::span(part).first(size)).ok());
      EXPECT_TRUE(std::equal(part.begin(), part.end() - 1, whole.begin() + static_cast<ptrdiff_t>(begin)));
      EXPECT_EQ(part.back(), std::byte{0xaa});
    }
    std::vector<std::byte> two(2);
    EXPECT_TRUE(absl::IsInvalidArgument(source->Read(tensor, tensor.size - Bytes(1u), two)));
    EXPECT_TRUE(absl::IsInvalidArgument(source->Read(tensor, tensor.size + Bytes(1u), {})));
  }
}

TEST(SynthValues, DependOnSeedNameAndPosition) {
  const auto source = Synth("tiny-llama");
  const TensorInfo& tensor = Tensor(*source, "model.layers.0.mlp.up_proj.weight");
  const std::vector<float> values = Values(*source, tensor);
  const auto equal = [&](const std::vector<float>& other) {
    size_t count = 0;
    for (size_t i = 0; i < values.size(); ++i) count += values[i] == other[i] ? 1 : 0;
    return static_cast<double>(count) / static_cast<double>(values.size());
  };
  EXPECT_EQ(equal(Values(*Synth("tiny-llama"), tensor)), 1);
  EXPECT_LT(equal(Values(*Synth("tiny-llama", 1), tensor)), 0.01);
  EXPECT_LT(equal(Values(*source, Tensor(*source, "model.layers.0.mlp.gate_proj.weight"))), 0.01);
  EXPECT_LT(equal(Values(*source, Tensor(*source, "model.layers.1.mlp.up_proj.weight"))), 0.01);
  std::vector<float> shifted(values.begin() + 4, values.end());
  shifted.resize(values.size());
  EXPECT_LT(equal(shifted), 0.01);
}

// FNV-1a of all bytes: the same on every machine, or files made on two of them differ.
uint64_t Digest(std::span<const std::byte> bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const std::byte b : bytes) hash = (hash ^ static_cast<uint64_t>(b)) * 0x100000001b3u;
  return hash;
}

TEST(SynthValues, AreTheSameOnEveryMachine) {
  const auto opt = Synth("tiny-opt", 7);
  EXPECT_EQ(Digest(ReadAll(*opt, Tensor(*opt, "model.decoder.layers.1.fc1.weight"))), 6655665267757678157u);
  const auto llama = Synth("tiny-llama", 7);
  EXPECT_EQ(Digest(ReadAll(*llama, Tensor(*llama, "model.layers.1.mlp.down_proj.weight"))), 10887908000733940726u);
  TestDirectory directory;
  WriteFile(directory / "config.json", Named("llama", kNumbers));
  const auto single = Synth(directory / "config.json", 7);
  EXPECT_EQ(Digest(ReadAll(*single, Tensor(*single, "model.embed_tokens.weight"))), 17683031439058753974u);
}

TEST(SynthValues, AreNormalAroundWhatTheirNameSays) {
  const auto source = Synth("opt-350m");
  const Moments weight = MomentsOf(Values(*source, Tensor(*source, "model.decoder.layers.0.fc1.weight")));
  EXPECT_NEAR(weight.mean, 0, 5e-5);
  EXPECT_NEAR(weight.deviation, 0.02, 5e-5);
  const Moments norm = MomentsOf(Values(*source, Tensor(*source, "model.decoder.layers.3.final_layer_norm.weight")));
  EXPECT_NEAR(norm.mean, 1, 0.003);
  EXPECT_NEAR(norm.deviation, 0.02, 0.003);
  const Moments bias = MomentsOf(Values(*source, Tensor(*source, "model.decoder.layers.3.fc1.bias")));
  EXPECT_NEAR(bias.mean, 0, 2e-4);
  EXPECT_NEAR(bias.deviation, 0.002, 2e-4);
}

// Each part of the normal distribution is hit as often as it is likely, and neighbours know nothing of each other.
TEST(SynthValues, PassAChiSquareTestAndHaveNoCorrelation) {
  const auto source = Synth("llama-3-8b");
  const TensorInfo& tensor = Tensor(*source, "model.layers.0.self_attn.q_proj.weight");
  const std::vector<float> values = Values(*source, tensor);
  constexpr int kParts = 64;
  std::vector<double> hits(kParts);
  std::vector<double> products(9);
  for (size_t i = 0; i < values.size(); ++i) {
    const double part = std::erfc(-values[i] / 0.02 / std::sqrt(2.0)) / 2 * kParts;
    ++hits[static_cast<size_t>(std::clamp(part, 0.0, kParts - 1.0))];
    for (size_t lag = 1; lag < products.size() && lag <= i; ++lag) products[lag] += double{values[i]} * values[i - lag];
  }
  const double n = static_cast<double>(values.size());
  // bfloat16 has but eight bits, so values near a boundary all fall on one side of it: 3 % off, not more.
  for (const double count : hits) EXPECT_NEAR(count / (n / kParts), 1, 0.05);
  for (size_t lag = 1; lag < products.size(); ++lag) EXPECT_LT(std::abs(products[lag] / n / 4e-4), 5 / std::sqrt(n));
}

// NF4's published error is that of normal values: mean |x - dequantized(x)| of 0.0728 at blocks of 64.
TEST(SynthValues, HaveTheErrorThatNf4HasOnNormalValues) {
  constexpr float kTable[] = {-1,
                              -0.6961928009986877f,
                              -0.5250730514526367f,
                              -0.39491748809814453f,
                              -0.28444138169288635f,
                              -0.18477343022823334f,
                              -0.09105003625154495f,
                              0,
                              0.07958029955625534f,
                              0.16093020141124725f,
                              0.24611230194568634f,
                              0.33791524171829224f,
                              0.44070982933044434f,
                              0.5626170039176941f,
                              0.7229568362236023f,
                              1};
  for (const auto& [model, name] :
       {std::pair{"opt-350m", "model.decoder.layers.0.fc2.weight"},
        std::pair{"llama-3-8b", "model.layers.5.self_attn.k_proj.weight"},
        std::pair{"qwen3.5-35b-a3b", "model.language_model.layers.0.linear_attn.in_proj_z.weight"}}) {
    const auto source = Synth(model);
    const std::vector<float> values = Values(*source, Tensor(*source, name));
    double error = 0;
    for (size_t block = 0; block < values.size(); block += 64) {
      float absmax = 0;
      for (size_t i = block; i < block + 64; ++i) absmax = std::max(absmax, std::abs(values[i]));
      for (size_t i = block; i < block + 64; ++i) {
        float nearest = 2;
        for (const float code : kTable) nearest = std::min(nearest, std::abs(values[i] / absmax - code));
        error += double{nearest} * absmax;
      }
    }
    EXPECT_NEAR(error / static_cast<double>(values.size()) / 0.02, 0.0728, 0.0005) << model;
  }
}

// A model whose third tensor cannot be read.
class DamagedSource final : public ModelSource {
 public:
  const std::string& name() const override { return whole_->name(); }
  const std::string& directory() const override { return whole_->directory(); }
  const std::string& config() const override { return whole_->config(); }
  const std::vector<TensorInfo>& tensors() const override { return whole_->tensors(); }
  absl::Status Read(const TensorInfo& tensor, Bytes offset, std::span<std::byte> out) const override {
    if (tensor.name == tensors()[2].name) return absl::DataLossError("the third tensor is damaged");
    return whole_->Read(tensor, offset, out);
  }

 private:
  std::shared_ptr<const ModelSource> whole_ = Synth("tiny-llama");
};

TEST(ModelDirectoryWriter, WritesTheBytesThatTheSourceReads) {
  TestDirectory directory;
  const auto source = Synth("tiny-qwen3.5-moe", 3);
  uint64_t last = 0, total = 0;
  const auto progress = [&](Bytes done, Bytes of) {
    EXPECT_GE(done.count(), last);
    last = done.count(), total = of.count();
    return true;
  };
  const absl::Status status =
      WriteModelDirectory(*source, directory / "model", {.shard_size = Bytes(uint64_t{300'000})}, progress);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(last, total);
  EXPECT_EQ(directory.Names(), std::vector<std::string>{"model"});

  const auto written = OpenModel(directory / "model");
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ((*written)->config(), source->config());
  ASSERT_EQ((*written)->tensors().size(), source->tensors().size());
  for (const TensorInfo& tensor : source->tensors()) {
    const TensorInfo& other = Tensor(**written, tensor.name);
    EXPECT_EQ(other.shape, tensor.shape);
    EXPECT_EQ(other.dtype, tensor.dtype);
    EXPECT_EQ(ReadAll(**written, other), ReadAll(*source, tensor)) << tensor.name;
  }
}

TEST(ModelDirectoryWriter, ThatIsStoppedAtAnyStepLeavesNothing) {
  TestDirectory directory;
  const auto source = Synth("tiny-llama");
  const WriteModelOptions shards = {.shard_size = Bytes(uint64_t{700'000})};
  for (int steps = 0, calls = steps; calls == steps; ++steps) {
    calls = 0;
    const absl::Status status =
        WriteModelDirectory(*source, directory / "model", shards, [&](Bytes, Bytes) { return calls++ != steps; });
    if (status.ok()) {
      EXPECT_GT(steps, 3);
      break;
    }
    --calls;
    EXPECT_TRUE(absl::IsCancelled(status)) << status;
    EXPECT_TRUE(directory.Names().empty()) << steps;
  }
}

TEST(ModelDirectoryWriter, LeavesNothingOfASourceThatCannotBeRead) {
  TestDirectory directory;
  const absl::Status status = WriteModelDirectory(DamagedSource(), directory / "model");
  EXPECT_EQ(status.message(), "the third tensor is damaged");
  EXPECT_TRUE(directory.Names().empty());
}

// The disk is a small file system of our own, in a child with a mount namespace of its own; it is filled meanwhile.
TEST(ModelDirectoryWriter, MeetsADiskThatFillsUpAndLeavesNothing) {
  TestDirectory directory;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // The same user and group, as root of the new namespace.
    const std::string user = fmt::format("0 {} 1", getuid());
    const std::string group = fmt::format("0 {} 1", getgid());
    const auto set = [](const char* file, const std::string& value) {
      return static_cast<bool>(std::ofstream(file) << value << std::flush);
    };
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0 || !set("/proc/self/uid_map", user) ||
        !set("/proc/self/setgroups", "deny") || !set("/proc/self/gid_map", group) ||
        mount("none", directory.path().c_str(), "tmpfs", 0, "size=8m") != 0) {
      _exit(77);
    }
    const absl::Status status = WriteModelDirectory(
        *Synth("tiny-llama"), directory / "model", {.shard_size = Bytes(uint64_t{700'000})}, [&](Bytes done, Bytes) {
          std::ofstream(directory / "other", std::ios::app) << std::string(done.is_zero() ? 0 : 4 << 20, 'x');
          return true;
        });
    if (!absl::IsResourceExhausted(status)) {
      std::cerr << status << "\n";
      _exit(1);
    }
    _exit(directory.Names() == std::vector<std::string>{"other"} ? 0 : 2);
  }
  int result = 0;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  ASSERT_TRUE(WIFEXITED(result));
  if (WEXITSTATUS(result) == 77) GTEST_SKIP() << "no mount namespaces here";
  EXPECT_EQ(WEXITSTATUS(result), 0);
}

}  // namespace
}  // namespace gpuledger
