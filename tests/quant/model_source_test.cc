// A model directory as a ModelSource: one file, shards with an index, and what is said about bad ones.
#include "gpuledger/model_source.h"

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "test_files.h"

namespace gpuledger {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::string_view kConfig = R"({"model_type": "bert"})";
constexpr std::string_view kIndex = "/model.safetensors.index.json";

// One U8 tensor of four bytes.
std::string OneTensor(std::string_view name, std::string_view data) {
  return MakeSafetensors("{\"" + std::string(name) + R"(":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", data);
}

class ModelSourceTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteFile(model_ + "/config.json", kConfig); }
  void WriteShards(std::string_view weight_map) {
    WriteFile(model_ + "/b.safetensors", OneTensor("x", "bbbb"));
    WriteFile(model_ + "/a.safetensors", OneTensor("y", "aaaa"));
    WriteIndex(R"({"metadata": {"total_size": 8}, "weight_map": )" + std::string(weight_map) + "}");
  }
  void WriteIndex(std::string_view text) { WriteFile(model_ + std::string(kIndex), text); }
  std::string Error(absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const absl::Status status = OpenModel(model_).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_LT(status.message().size(), 1000u);
    EXPECT_THAT(std::string(status.message()), HasSubstr(directory_.path()));
    return std::string(status.message());
  }
  static std::string Read(const ModelSource& source, const TensorInfo& tensor) {
    std::string data(tensor.size.count(), '\0');
    const absl::Status status = source.Read(tensor, 0_B, std::as_writable_bytes(std::span(data)));
    return status.ok() ? data : std::string(status.message());
  }

  TestDirectory directory_;
  std::string model_ = directory_ / "model";
};

TEST_F(ModelSourceTest, ReadsOneFile) {
  WriteFile(model_ + "/model.safetensors", OneTensor("x", "0123"));
  WriteIndex("not looked at, as transformers does not either");
  const auto source = OpenModel(model_);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->name(), model_);
  EXPECT_EQ((*source)->directory(), model_);
  EXPECT_EQ((*source)->config(), kConfig);
  ASSERT_EQ((*source)->tensors().size(), 1u);
  EXPECT_EQ(Read(**source, (*source)->tensors()[0]), "0123");
  TensorInfo other = (*source)->tensors()[0];
  other.file = 1;
  EXPECT_THAT(Read(**source, other), AllOf(HasSubstr(model_), HasSubstr("\"x\" is not one of this model's")));
}

TEST_F(ModelSourceTest, ReadsShardsInTheOrderOfTheirNames) {
  WriteShards(R"({"x": "b.safetensors", "y": "a.safetensors"})");
  const auto source = OpenModel(model_);
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ((*source)->tensors().size(), 2u);
  const TensorInfo& first = (*source)->tensors()[0];
  const TensorInfo& second = (*source)->tensors()[1];
  EXPECT_EQ(first.name, "y");
  EXPECT_EQ(first.file, 0u);
  EXPECT_EQ(second.file, 1u);
  EXPECT_EQ(Read(**source, first), "aaaa");
  EXPECT_EQ(Read(**source, second), "bbbb");
  EXPECT_EQ((*source)->FileOf(second), model_ + "/b.safetensors");
}

TEST_F(ModelSourceTest, ATensorThatTheIndexForgotIsReadAllTheSame) {
  WriteFile(model_ + "/a.safetensors", MakeSafetensors(R"({"p":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                                       R"("q":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                                       "pq"));
  WriteIndex(R"({"weight_map": {"p": "a.safetensors"}})");
  const auto source = OpenModel(model_);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->tensors().size(), 2u);
}

TEST_F(ModelSourceTest, AnIndexThatDoesNotAgreeWithItsShardsIsRefused) {
  WriteShards(R"({"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"})");
  EXPECT_THAT(Error(), AllOf(HasSubstr(kIndex), HasSubstr("\"z\" should be in a.safetensors, but is in no file")));
  WriteShards(R"({"x": "a.safetensors", "y": "b.safetensors"})");
  EXPECT_THAT(Error(), HasSubstr("\"x\" should be in a.safetensors, but is in b.safetensors"));
  WriteShards(R"({"x": "b.safetensors", "y": "gone.safetensors"})");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound),
              AllOf(HasSubstr("gone.safetensors: not there"), HasSubstr(kIndex), HasSubstr("names it")));
  WriteShards(R"({"x": "b.safetensors", "y": "a.safetensors"})");
  WriteFile(model_ + "/a.safetensors", OneTensor("x", "aaaa"));
  EXPECT_THAT(Error(), AllOf(HasSubstr("b.safetensors: tensor \"x\" (byte"), HasSubstr("also in a.safetensors")));
  WriteFile(model_ + "/a.safetensors", "damaged");
  EXPECT_THAT(Error(), HasSubstr("a.safetensors: has 7 bytes"));
}

TEST_F(ModelSourceTest, ADamagedIndexIsRefusedWithTheByte) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not valid JSON"},
      {"[]", "is an array, not an object (byte 1 of the file)"},
      {"7", "is the number 7, not an object"},
      {"{}", "has no weight_map"},
      {R"({"weight_map": []})", "weight_map is an array, not an object (byte 16"},
      {R"({"weight_map": {"x": 7}})", "tensor \"x\" is in the number 7; a file's name is a string (byte 23"},
      {R"({"weight_map": {"x": ["a.safetensors"]}})", "tensor \"x\" is in an array"},
      {R"({"weight_map": {"x": "a.safetensors", "\u0078": "b.safetensors"}})", "tensor \"x\" appears twice"},
      {R"({"weight_map": {}, "weight_map": {}})", "\"weight_map\" appears twice"},
      {R"({"weight_map": {"x": "../model/a.safetensors"}})", "\"../model/a.safetensors\", which leads out of"},
      {R"({"weight_map": {"x": "/etc/passwd"}})", "\"/etc/passwd\", which leads out of"},
      {R"({"weight_map": {"x": "sub/a.safetensors"}})", "which leads out of"},
      {R"({"weight_map": {"x": ".."}})", "which is not a safetensors file"},
      {R"({"weight_map": {"x": ""}})", "which is not a safetensors file"},
      {R"({"weight_map": {"x": "pytorch_model.bin"}})", "which is not a safetensors file"},
      {R"({"weight_map": {"x": "/etc/passwd\u0000.safetensors"}})", "which has a zero byte"},
      {R"({"weight_map": {"x": ")" + std::string(300, 'a') + R"(.safetensors"}})", "longer than a file's name"},
      {"{\"weight_map\": {\"\xff\": \"a.safetensors\"}}", "ill-formed UTF-8"},
      {std::string("{\"weight_map\": {}}\0x", 20), "has a zero byte (byte 18"},
      {"{\"a\":" + std::string(1 << 20, '['), "nests deeper than 64 levels (byte 69"},
      {"{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", "nests deeper than 64 levels"},
  };
  WriteShards("{}");
  for (const auto& [text, error] : cases) {
    WriteIndex(text);
    EXPECT_THAT(Error(), AllOf(HasSubstr(kIndex), HasSubstr(error)));
  }
  WriteIndex("{");
  fs::resize_file(model_ + std::string(kIndex), (uint64_t{64} << 20) + 1);
  EXPECT_THAT(Error(), HasSubstr("has 67108865 bytes, more than the 67108864 allowed"));
}

TEST_F(ModelSourceTest, SkipsWhatItDoesNotKnowInAnIndex) {
  WriteShards("{}");
  WriteIndex(R"({"metadata": {"a": [1, -1, 1.5, null, true, "x", {"weight_map": {"x": 7}}]}, "version": 2, "e": {},)"
             R"("weight_map": {"x": "b.safetensors"}})");
  EXPECT_TRUE(OpenModel(model_).ok()) << OpenModel(model_).status();
}

TEST_F(ModelSourceTest, ADamagedConfigurationIsRefusedWithTheByte) {
  WriteFile(model_ + "/model.safetensors", OneTensor("x", "0123"));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not valid JSON"},
      {"{", "not valid JSON"},
      {"[]", "not a JSON object (byte 1"},
      {"\"text\"", "not a JSON object"},
      {"{\"a\": \"\xc3\x28\"}", "ill-formed UTF-8 byte (byte 9"},
      {"{\"a\":" + std::string(1 << 20, '['), "nests deeper than 64 levels (byte 69"},
      {std::string("{}\0{", 4), "zero byte (byte 2"},
      {std::string((4 << 20) + 1, ' '), "has 4194305 bytes, more than the 4194304 allowed"},
  };
  for (const auto& [text, error] : cases) {
    WriteFile(model_ + "/config.json", text);
    EXPECT_THAT(Error(), AllOf(HasSubstr("config.json"), HasSubstr(error)));
  }
  fs::remove(model_ + "/config.json");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound), HasSubstr("config.json: not there, so"));
}

TEST_F(ModelSourceTest, SaysWhatIsMissing) {
  EXPECT_THAT(Error(absl::StatusCode::kNotFound),
              HasSubstr("model.safetensors: not there, nor is model.safetensors.index.json, so"));
  WriteFile(model_ + "/pytorch_model.bin", "pickled");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound),
              AllOf(HasSubstr("pytorch_model.bin belongs to pickled weights"), HasSubstr("safe_serialization=True")));
  model_ += "/absent";
  EXPECT_THAT(Error(absl::StatusCode::kNotFound), HasSubstr("no such directory"));
}

TEST_F(ModelSourceTest, FollowsTheLinksOfTheHubCacheAndNoOthers) {
  const std::string cache = directory_ / "hub/models--a--b";
  model_ = cache + "/snapshots/0123";
  WriteFile(cache + "/blobs/c0", kConfig);
  WriteFile(cache + "/blobs/50", OneTensor("x", "0123"));
  WriteFile(directory_ / "private", OneTensor("x", "0123"));
  fs::create_directories(model_);
  const auto link = [&](std::string_view to, std::string_view name) {
    fs::remove(model_ + "/" + std::string(name));
    fs::create_symlink(to, model_ + "/" + std::string(name));
  };
  link("../../blobs/c0", "config.json");
  link("../../blobs/50", "s.safetensors");
  WriteFile(model_ + std::string(kIndex), R"({"weight_map": {"x": "s.safetensors"}})");
  EXPECT_TRUE(OpenModel(model_).ok()) << OpenModel(model_).status();

  link("../../../../private", "s.safetensors");
  EXPECT_THAT(Error(), AllOf(HasSubstr("s.safetensors: a link that leaves the model's directory")));
  link("../../blobs/absent", "s.safetensors");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound), HasSubstr("s.safetensors: a link to a file that is not there, but"));
  link("s.safetensors", "s.safetensors");
  EXPECT_FALSE(OpenModel(model_).ok());
  link("../../blobs/50", "s.safetensors");
  link("../../../../private", "config.json");
  EXPECT_THAT(Error(), HasSubstr("config.json: a link that leaves"));
  link("../../blobs/c0", "config.json");
  link("../../blobs/absent", "model.safetensors");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound), HasSubstr("model.safetensors: a link to a file that is not there"));
}

TEST_F(ModelSourceTest, WhatIsNotAFileIsNotRead) {
  fs::create_directory(model_ + "/model.safetensors");
  EXPECT_THAT(Error(), HasSubstr("model.safetensors: is not a regular file"));
}

}  // namespace
}  // namespace gpuledger
