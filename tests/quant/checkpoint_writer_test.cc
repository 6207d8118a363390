// The directory that WriteCheckpoint writes: keys, bytes, configuration, companions, shards.
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "test_writer.h"

namespace gpuledger {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAre;
using Json = nlohmann::ordered_json;

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
  EXPECT_EQ(ReadTensor(*file, "layer.fc.weight"), Part(block_, 0_B, 65));
  EXPECT_EQ(ReadTensor(*file, "layer.fc.weight.absmax"), Part(block_, 68_B, 12));
  EXPECT_EQ(ReadTensor(*file, "layer.fc.weight.quant_map"), Part(block_, 80_B, 64));
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
      QuantizedWeight{"layer.fc.weight", {3, 43}, FloatType::kFloat32, {}, false, block_},
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

TEST_F(CheckpointWriterTest, WhatTheFormatCannotSayIsRefusedByName) {
  const auto error = [&](std::string name, std::vector<uint64_t> shape, size_t size, FourBitFormat format = {}) {
    const absl::Status status = Write({QuantizedWeight{std::move(name), std::move(shape), FloatType::kFloat32, format,
                                                       false, std::span(block_).first(size)}})
                                    .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(error("experts.weight", {3, 43, 1}, 144),
              AllOf(HasSubstr("\"experts.weight\""), HasSubstr("3 dimensions")));
  EXPECT_THAT(error("experts.gate_up_proj", {3, 43}, 144), HasSubstr("*.weight"));
  EXPECT_THAT(error("a.weight", {3, 43}, 143), HasSubstr("needs a block of 144 bytes, but was given 143"));
  EXPECT_THAT(error("a.weight", {3, 43}, 144, {QuantType::kFp4, 32, true}), HasSubstr("as fp4, blocks of 32, double"));
  EXPECT_THAT(error("a.weight", {3, 43}, 144, {QuantType::kNf4, 48, false}), HasSubstr("blocks of 48 elements"));
  EXPECT_THAT(error("a.weight", {uint64_t{1} << 40, uint64_t{1} << 40}, 144), HasSubstr("overflows"));
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
  EXPECT_THAT(error("{\"a\":" + std::string(100000, '[')), HasSubstr("deeper"));
  EXPECT_THAT(error("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}"), HasSubstr("deeper"));
  EXPECT_THAT(error(R"({"quantization_config": {"quant_method": "gptq"}})"), HasSubstr("already, with \"gptq\""));
  ExpectOnly({"model"});
}

TEST_F(CheckpointWriterTest, WritesEveryFormatsKeys) {
  for (const QuantType type : {QuantType::kNf4, QuantType::kFp4}) {
    for (const uint32_t size : {32u, 64u, 4096u}) {
      for (const bool nested : {false, true}) {
        const FourBitFormat format{type, size, nested};
        const std::vector<std::byte> block = MakeBlock(format, 129, 0.1f);
        out_ = directory_ / (ToString(format) + ".model");
        ASSERT_TRUE(Write({QuantizedWeight{"fc.weight", {3, 43}, FloatType::kFloat16, format, false, block}}).ok());
        const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(out_ + "/model.safetensors");
        ASSERT_TRUE(file.ok()) << file.status();
        const FourBitLayout at = FourBitLayout::Of(format, 129);
        EXPECT_EQ(ReadTensor(*file, "fc.weight"), Part(block, 0_B, 65));
        EXPECT_EQ(ReadTensor(*file, "fc.weight.absmax"), Part(block, at.absmax_at, at.blocks * (nested ? 1 : 4)));
        EXPECT_EQ(ReadTensor(*file, "fc.weight.quant_map"), Part(block, at.table_at, 64));
        std::string state = R"({"quant_type": ")" + std::string(QuantTypeName(type)) + R"(", "blocksize": )" +
                            std::to_string(size) + R"(, "dtype": "float16", "shape": [3, 43])";
        if (nested) {
          EXPECT_EQ(ReadTensor(*file, "fc.weight.nested_absmax"), Part(block, at.nested_absmax_at, 4));
          EXPECT_EQ(ReadTensor(*file, "fc.weight.nested_quant_map"), Part(block, at.nested_table_at, 1024));
          state += R"(, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.10000000149011612)";
        }
        EXPECT_EQ(ReadTensor(*file, "fc.weight.quant_state.bitsandbytes__" + std::string(QuantTypeName(type))),
                  state + "}");
        EXPECT_EQ(file->tensors().size(), nested ? 6u : 4u);
        const Json config = ReadJson("config.json")["quantization_config"];
        EXPECT_EQ(config["bnb_4bit_quant_type"], QuantTypeName(type));
        EXPECT_EQ(config["bnb_4bit_use_double_quant"], nested);
      }
    }
  }
}

TEST_F(CheckpointWriterTest, WritesExpertsInALayoutOfOurOwnAndCountsThem) {
  const std::vector<std::byte> experts = MakeBlock({}, 2 * 3 * 43);
  const absl::StatusOr<WrittenCheckpoint> written = Write(
      {QuantizedWeight{"mlp.experts.gate_up_proj", {2, 3, 43}, FloatType::kBFloat16, {}, true, experts}, Tensors()[1]});
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->own_layout, 1u);
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(out_ + "/model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->metadata(), ElementsAre(std::pair<std::string, std::string>("format", "pt"),
                                            std::pair<std::string, std::string>("gpuledger_four_bit", "1")));
  EXPECT_EQ(ReadTensor(*file, "mlp.experts.gate_up_proj"), Part(experts, 0_B, 129));
  EXPECT_EQ(ReadTensor(*file, "mlp.experts.gate_up_proj.absmax").size(), 20u);
  EXPECT_EQ(ReadTensor(*file, "mlp.experts.gate_up_proj.quant_state.gpuledger__nf4"),
            R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 3, 43]})");
  EXPECT_TRUE(ReadJson("config.json").contains("quantization_config")) << "for the other weight";
}

TEST_F(CheckpointWriterTest, WithNothingThatBitsandbytesLoadsTheConfigurationStays) {
  ASSERT_TRUE(Write({QuantizedWeight{"experts", {129}, FloatType::kFloat32, {}, true, block_}}).ok());
  EXPECT_EQ(ReadFile(out_ + "/config.json"), kConfig);
}

TEST_F(CheckpointWriterTest, AModelThatIsIn4BitAlreadyKeepsItsConfigurationToTheByte) {
  const std::string config = R"({"quantization_config":  {"load_in_4bit": true, "quant_method": "bitsandbytes"}})";
  WriteFile(source_ + "/config.json", config);
  ASSERT_TRUE(Write(Tensors()).ok());
  EXPECT_EQ(ReadFile(out_ + "/config.json"), config);
}

TEST_F(CheckpointWriterTest, CutsLargeModelsIntoShardsWithAnIndex) {
  std::vector<CheckpointTensor> tensors;
  for (const char* name : {"c", "a", "b"}) tensors.push_back(KeptTensor{name, Dtype::kU8, {6}, FromText("012345")});
  tensors.push_back(Tensors()[1]);
  tensors.push_back(KeptTensor{"z", Dtype::kU8, {1}, FromText("z")});
  CheckpointOptions options;
  options.shard_size = 12_B;
  const absl::StatusOr<WrittenCheckpoint> written = WriteCheckpoint(Directory(source_), out_, tensors, {}, options);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->files, 4u) << "c a | b | the weight, larger than a shard, but whole | z";
  const Json index = ReadJson("model.safetensors.index.json");
  EXPECT_EQ(index["weight_map"]["c"], "model-00001-of-00004.safetensors");
  EXPECT_EQ(index["weight_map"]["a"], "model-00001-of-00004.safetensors");
  EXPECT_EQ(index["weight_map"]["b"], "model-00002-of-00004.safetensors");
  for (const char* part : {"", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4"}) {
    EXPECT_EQ(index["weight_map"]["layer.fc.weight" + std::string(part)], "model-00003-of-00004.safetensors");
  }
  const auto model = OpenModel(out_);
  ASSERT_TRUE(model.ok()) << model.status();
  uint64_t size = 0;
  for (const TensorInfo& tensor : (*model)->tensors()) size += tensor.size.count();
  EXPECT_EQ(index["metadata"]["total_size"], size);
  EXPECT_EQ((*model)->tensors().size(), 8u);
}

TEST_F(CheckpointWriterTest, ASourceWithoutADirectoryGivesItsConfigurationAlone) {
  class Shapes final : public ModelSource {
   public:
    const std::string& name() const override { return name_; }
    const std::string& directory() const override { return nothing_; }
    const std::string& config() const override { return config_; }
    const std::vector<TensorInfo>& tensors() const override { return tensors_; }
    absl::Status Read(const TensorInfo&, Bytes, std::span<std::byte>) const override { return absl::OkStatus(); }
    std::string name_ = "synth:tiny", nothing_, config_ = kConfig;
    std::vector<TensorInfo> tensors_;
  } shapes;
  ASSERT_TRUE(WriteCheckpoint(shapes, out_, Tensors()).ok());
  EXPECT_EQ(ReadJson("config.json")["model_type"], "bert");
  shapes.config_ = "{";
  EXPECT_THAT(std::string(WriteCheckpoint(shapes, directory_ / "b", Tensors()).status().message()),
              HasSubstr("the configuration of synth:tiny: it is not valid JSON"));
}

}  // namespace
}  // namespace gpuledger
