#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "gpuledger/checkpoint.h"
#include "test_files.h"

namespace gpuledger {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;
using Json = nlohmann::ordered_json;

constexpr char kConfig[] = R"({"model_type": "bert", "layer_norm_eps": 1e-12, "hidden_size": 384, "z": "é"})";

TensorReader FromText(std::string text) {
  return [text = std::move(text)](Bytes offset, std::span<std::byte> out) {
    std::memcpy(out.data(), text.data() + offset.count(), out.size());
    return absl::OkStatus();
  };
}

std::string ReadTensor(const SafetensorsFile& file, std::string_view name) {
  const TensorInfo* tensor = file.Find(name);
  if (tensor == nullptr) return "absent";
  std::string data(tensor->size.count(), '\0');
  EXPECT_TRUE(file.Read(*tensor, 0_B, std::as_writable_bytes(std::span(data))).ok());
  return data;
}

template <class T>
std::string RawBytes(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

// A model directory with one quantized 3 x 43 weight (129 elements: odd, a partial last block) and two kept tensors.
class CheckpointWriterTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteFile(source_ + "/config.json", kConfig); }

  std::vector<CheckpointTensor> Tensors() const {
    return {
        KeptTensor{"norm.bias", Dtype::kBF16, {3}, FromText("norm-b")},
        QuantizedWeight{"layer.fc.weight", {3, 43}, FloatType::kBFloat16, packed_, absmax_},
        KeptTensor{"embed.weight", Dtype::kF16, {2, 2}, FromText("embedded")},
    };
  }
  absl::StatusOr<WrittenCheckpoint> Write(const std::vector<CheckpointTensor>& tensors) {
    return WriteNf4Checkpoint(source_, out_, tensors);
  }
  Json ReadJson(const std::string& name) { return Json::parse(ReadFile(out_ + "/" + name)); }

  // Nothing was published, and nothing is left in the directory but `names`.
  void ExpectOnly(std::vector<std::string> names) {
    EXPECT_THAT(directory_.Names(), ::testing::UnorderedElementsAreArray(names));
  }

  TestDirectory directory_;
  std::string source_ = directory_ / "model";
  std::string out_ = directory_ / "out";
  std::vector<uint8_t> packed_ = std::vector<uint8_t>(65, 0x5a);
  std::vector<float> absmax_ = {1.0f, 0.5f, 0.25f};
};

TEST_F(CheckpointWriterTest, WritesTheKeysThatBitsandbytesReads) {
  const absl::StatusOr<WrittenCheckpoint> written = Write(Tensors());
  ASSERT_TRUE(written.ok()) << written.status();
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(out_ + "/model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(written->model_bytes.count(), fs::file_size(out_ + "/model.safetensors"));
  EXPECT_THAT(file->metadata(), ElementsAre(std::pair<std::string, std::string>("format", "pt")));

  // safetensors' order: alignment descending, then name.
  std::vector<std::string> names;
  for (const TensorInfo& tensor : file->tensors()) names.push_back(tensor.name);
  EXPECT_THAT(names, ElementsAre("layer.fc.weight.absmax", "layer.fc.weight.quant_map", "norm.bias", "embed.weight",
                                 "layer.fc.weight", "layer.fc.weight.quant_state.bitsandbytes__nf4"));
  for (const TensorInfo& tensor : file->tensors()) {
    EXPECT_EQ(tensor.begin % DtypeSize(tensor.dtype).count(), 0u) << tensor.name << " is misaligned";
  }
  EXPECT_EQ(file->Find("layer.fc.weight")->dtype, Dtype::kU8);
  EXPECT_THAT(file->Find("layer.fc.weight")->shape, ElementsAre(65, 1));
  EXPECT_THAT(file->Find("layer.fc.weight.absmax")->shape, ElementsAre(3));
  EXPECT_EQ(ReadTensor(*file, "layer.fc.weight"), std::string(65, 0x5a));
  EXPECT_EQ(ReadTensor(*file, "layer.fc.weight.absmax"), RawBytes(std::span<const float>(absmax_)));
  EXPECT_EQ(ReadTensor(*file, "layer.fc.weight.quant_map"), RawBytes(std::span<const float>(Nf4Table())));
  EXPECT_EQ(ReadTensor(*file, "layer.fc.weight.quant_state.bitsandbytes__nf4"),
            R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [3, 43]})");
  EXPECT_EQ(ReadTensor(*file, "norm.bias"), "norm-b");
  EXPECT_EQ(ReadTensor(*file, "embed.weight"), "embedded");
}

TEST_F(CheckpointWriterTest, AddsQuantizationConfigAndKeepsTheRestOfTheConfiguration) {
  ASSERT_TRUE(Write(Tensors()).ok());
  Json config = ReadJson("config.json");
  const Json quantization = config["quantization_config"];
  EXPECT_EQ(quantization["quant_method"], "bitsandbytes");
  EXPECT_EQ(quantization["load_in_4bit"], true);
  EXPECT_EQ(quantization["bnb_4bit_quant_type"], "nf4");
  EXPECT_EQ(quantization["bnb_4bit_use_double_quant"], false);
  EXPECT_EQ(quantization["bnb_4bit_compute_dtype"], "bfloat16");
  EXPECT_EQ(quantization["bnb_4bit_quant_storage"], "uint8");
  EXPECT_THAT(quantization["llm_int8_skip_modules"].get<std::vector<std::string>>(),
              AllOf(::testing::Contains("embed"), ::testing::Contains("lm_head"), Not(::testing::Contains("norm"))));
  config.erase("quantization_config");
  EXPECT_EQ(config, Json::parse(kConfig));
}

TEST_F(CheckpointWriterTest, ASkipEntryThatWouldHitAQuantizedModuleIsAnchored) {
  const std::vector<CheckpointTensor> tensors = {
      KeptTensor{"layer.f.weight", Dtype::kU8, {2, 1}, FromText("ab")},
      KeptTensor{"fc.weight", Dtype::kU8, {2, 1}, FromText("ab")},
      QuantizedWeight{"layer.fc.weight", {3, 43}, FloatType::kFloat32, packed_, absmax_},
  };
  ASSERT_TRUE(Write(tensors).ok());
  EXPECT_THAT(ReadJson("config.json")["quantization_config"]["llm_int8_skip_modules"].get<std::vector<std::string>>(),
              AllOf(::testing::Contains("^layer.f$"), ::testing::Contains("^fc$")));
}

TEST_F(CheckpointWriterTest, AModelWithNothingQuantizedKeepsItsConfiguration) {
  ASSERT_TRUE(Write({KeptTensor{"norm.bias", Dtype::kBF16, {3}, FromText("norm-b")}}).ok());
  EXPECT_EQ(ReadJson("config.json"), Json::parse(kConfig));
}

TEST_F(CheckpointWriterTest, ReadsKeptTensorsInPiecesThatLeaveNothingOut) {
  constexpr uint64_t kSize = (9u << 20) + 5;
  uint64_t next = 0;
  size_t largest = 0;
  const TensorReader read = [&](Bytes offset, std::span<std::byte> out) {
    EXPECT_EQ(offset.count(), next);
    for (std::byte& value : out) value = static_cast<std::byte>(next++ * 7 >> 3);
    largest = std::max(largest, out.size());
    return absl::OkStatus();
  };
  ASSERT_TRUE(Write({KeptTensor{"big", Dtype::kU8, {kSize}, read}}).ok());
  EXPECT_EQ(next, kSize);
  EXPECT_LE(largest, 4u << 20);
  const std::string data = ReadTensor(*SafetensorsFile::Open(out_ + "/model.safetensors"), "big");
  for (uint64_t i = 0; i < kSize; ++i) ASSERT_EQ(data[i], static_cast<char>(i * 7 >> 3)) << i;
}

TEST_F(CheckpointWriterTest, CopiesWhatIsNeitherWeightsNorHidden) {
  WriteFile(source_ + "/tokenizer.json", "{}");
  WriteFile(source_ + "/1_Pooling/config.json", "pooling");
  WriteFile(source_ + "/2_Dense/pytorch_model.bin", "weights");
  WriteFile(source_ + "/1_Pooling/deeper/x.txt", "x");
  for (const char* name : {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.pt", "tf.h5",
                           "model.onnx", ".gitattributes"}) {
    WriteFile(source_ + "/" + name, "weights");
  }
  ASSERT_EQ(::mkfifo((source_ + "/pipe").c_str(), 0600), 0);
  const absl::StatusOr<WrittenCheckpoint> written = Write(Tensors());
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(written->copied, ElementsAre("1_Pooling/config.json", "tokenizer.json"));
  EXPECT_THAT(written->left_out,
              UnorderedElementsAre(HasSubstr("1_Pooling/deeper ("), HasSubstr("2_Dense/pytorch_model.bin ("),
                                   HasSubstr("model.safetensors ("), HasSubstr("index.json ("),
                                   HasSubstr("pytorch_model.bin ("), HasSubstr("x.pt ("), HasSubstr("tf.h5 ("),
                                   HasSubstr("model.onnx ("), HasSubstr(".gitattributes (hidden"),
                                   HasSubstr("pipe (not a regular file")));
  EXPECT_EQ(ReadFile(out_ + "/1_Pooling/config.json"), "pooling");
  EXPECT_EQ(ReadFile(out_ + "/tokenizer.json"), "{}");
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(out_)) names.push_back(entry.path().filename().string());
  EXPECT_THAT(names, UnorderedElementsAre("1_Pooling", "config.json", "model.safetensors", "tokenizer.json"));
}

TEST_F(CheckpointWriterTest, FollowsTheLinksOfTheHubCacheAndNoOthers) {
  const std::string cache = directory_ / "hub/models--a--b";
  source_ = cache + "/snapshots/0123";
  WriteFile(cache + "/blobs/c0", kConfig);
  WriteFile(cache + "/blobs/70", "tokens");
  WriteFile(directory_ / "private", "secret");
  fs::create_directories(source_);
  fs::create_symlink("../../blobs/c0", source_ + "/config.json");
  fs::create_symlink("../../blobs/70", source_ + "/tokenizer.json");
  fs::create_symlink("tokenizer.json", source_ + "/vocab.json");
  fs::create_symlink("../../../../private", source_ + "/README.md");
  fs::create_symlink("../../blobs/absent", source_ + "/broken.txt");
  fs::create_directory_symlink("../..", source_ + "/up");
  const absl::StatusOr<WrittenCheckpoint> written = Write(Tensors());
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(written->copied, ElementsAre("tokenizer.json", "vocab.json"));
  EXPECT_THAT(written->left_out, ElementsAre("README.md (a link that leaves the model's directory)",
                                             HasSubstr("broken.txt"), HasSubstr("up (not a regular file")));
  EXPECT_EQ(ReadFile(out_ + "/vocab.json"), "tokens");
  EXPECT_FALSE(fs::is_symlink(out_ + "/vocab.json"));
}

TEST_F(CheckpointWriterTest, NeverReplacesADirectory) {
  fs::create_directory(out_);
  for (const std::string& name : {out_, out_ + "/", out_ + "/.", directory_ / "model/../out"}) {
    const absl::Status status = WriteNf4Checkpoint(source_, name, Tensors()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
  EXPECT_TRUE(fs::is_empty(out_));
  ExpectOnly({"model", "out"});
}

TEST_F(CheckpointWriterTest, ADirectoryThatAppearsMeanwhileIsNotReplaced) {
  const TensorReader read = [&](Bytes, std::span<std::byte>) {
    fs::create_directory(out_);
    return absl::OkStatus();
  };
  EXPECT_EQ(Write({KeptTensor{"a", Dtype::kU8, {1}, read}}).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(fs::is_empty(out_));
  ExpectOnly({"model", "out"});
}

TEST_F(CheckpointWriterTest, AFailedReaderLeavesNothingAndItsErrorIsReturned) {
  std::vector<CheckpointTensor> tensors = Tensors();
  std::get<KeptTensor>(tensors[2]).read = [](Bytes, std::span<std::byte>) {
    return absl::DataLossError("the reader's own");
  };
  EXPECT_EQ(Write(tensors).status(), absl::DataLossError("the reader's own"));
  ExpectOnly({"model"});
}

TEST_F(CheckpointWriterTest, AKilledWriterLeavesNothingThatLooksLikeACheckpoint) {
  WriteFile(source_ + "/tokenizer.json", "{}");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::vector<CheckpointTensor> tensors = Tensors();
    std::get<KeptTensor>(tensors[2]).read = [](Bytes, std::span<std::byte>) -> absl::Status {
      ::raise(SIGKILL);
      return absl::OkStatus();
    };
    (void)Write(tensors);
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(fs::exists(out_));
  for (const auto& entry : fs::recursive_directory_iterator(directory_.path())) {
    if (entry.path().parent_path() == source_) continue;
    EXPECT_NE(entry.path().filename(), "config.json");
    EXPECT_NE(entry.path().filename(), "model.safetensors");
  }
}

TEST_F(CheckpointWriterTest, WhatTheFormatCannotSayIsRefusedByName) {
  const auto error = [&](std::string name, std::vector<uint64_t> shape, size_t packed, size_t absmax) {
    const absl::Status status =
        Write({QuantizedWeight{std::move(name), std::move(shape), FloatType::kFloat32, std::span(packed_).first(packed),
                               std::span(absmax_).first(absmax)}})
            .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(error("experts.weight", {3, 43, 1}, 65, 3),
              AllOf(HasSubstr("\"experts.weight\""), HasSubstr("3 dimensions")));
  EXPECT_THAT(error("experts.gate_up_proj", {3, 43}, 65, 3), HasSubstr("*.weight"));
  EXPECT_THAT(error("a.weight", {3, 43}, 64, 3),
              HasSubstr("needs 65 packed bytes and 3 absmax values, but was given 64 and 3"));
  EXPECT_THAT(error("a.weight", {3, 43}, 65, 2), HasSubstr("was given 65 and 2"));
  EXPECT_THAT(error("a.weight", {uint64_t{1} << 40, uint64_t{1} << 40}, 65, 2), HasSubstr("overflows"));
  ExpectOnly({"model"});
}

TEST_F(CheckpointWriterTest, AConfigurationThatCannotBeExtendedIsRefusedByName) {
  const auto error = [&](const std::string& config) {
    WriteFile(source_ + "/config.json", config);
    const absl::Status status = Write(Tensors()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(source_ + "/config.json"));
    return std::string(status.message());
  };
  EXPECT_THAT(error("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(error("{\"a\":" + std::string(100000, '[')), HasSubstr("JSON"));
  EXPECT_THAT(error("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}"), HasSubstr("deeper"));
  EXPECT_THAT(error(R"({"quantization_config": {}})"), HasSubstr("already"));
  fs::remove(source_ + "/config.json");
  EXPECT_EQ(Write(Tensors()).status().code(), absl::StatusCode::kNotFound);
  ExpectOnly({"model"});
}

}  // namespace
}  // namespace gpuledger
