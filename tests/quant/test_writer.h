// test_writer.h - what the tests of WriteCheckpoint share: a model directory, its tensors, blocks of any format.
#pragma once

#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "gpuledger/checkpoint.h"
#include "gpuledger/codec.h"
#include "test_files.h"

namespace gpuledger {

inline constexpr char kConfig[] = R"({"model_type": "bert", "layer_norm_eps": 1e-12, "hidden_size": 384, "z": "é"})";

inline TensorReader FromText(std::string text) {
  return [text = std::move(text)](Bytes offset, std::span<std::byte> out) {
    std::memcpy(out.data(), text.data() + offset.count(), out.size());
    return absl::OkStatus();
  };
}

inline std::string ReadTensor(const SafetensorsFile& file, std::string_view name) {
  const TensorInfo* tensor = file.Find(name);
  if (tensor == nullptr) return "absent";
  std::string data(tensor->size.count(), '\0');
  EXPECT_TRUE(file.Read(*tensor, 0_B, std::as_writable_bytes(std::span(data))).ok());
  return data;
}

// A source of whose tensors nobody asks: a directory's configuration and small files.
class Directory final : public ModelSource {
 public:
  explicit Directory(const std::string& path) : path_(path), config_(ReadFile(path + "/config.json")) {}
  const std::string& name() const override { return path_; }
  const std::string& directory() const override { return path_; }
  const std::string& config() const override { return config_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  absl::Status Read(const TensorInfo&, Bytes, std::span<std::byte>) const override { return absl::OkStatus(); }

 private:
  std::string path_;
  std::string config_;
  std::vector<TensorInfo> tensors_;
};

// A block of `format` with seeded codes and scales, and the format's tables.
inline std::vector<std::byte> MakeBlock(const FourBitFormat& format, uint64_t elements, float offset = 0) {
  const FourBitLayout at = FourBitLayout::Of(format, elements);
  std::vector<std::byte> block(at.size.count());
  for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>(i * 37 % 64);  // no NaN among scales
  const auto put = [&](Bytes to, const void* from, size_t size) { std::memcpy(block.data() + to.count(), from, size); };
  put(at.table_at, CodeTable(format.type).data(), 16 * sizeof(float));
  if (format.double_quant) {
    put(at.nested_table_at, NestedTable().data(), 256 * sizeof(float));
    put(at.offset_at, &offset, sizeof(offset));
  }
  return block;
}
inline std::string Part(const std::vector<std::byte>& block, Bytes at, uint64_t size) {
  return {reinterpret_cast<const char*>(block.data()) + at.count(), size};
}

// A model directory with one quantized 3 x 43 weight (129 elements: odd, a partial last block) and two kept tensors.
class CheckpointWriterTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteFile(source_ + "/config.json", kConfig); }

  std::vector<CheckpointTensor> Tensors() const {
    return {
        KeptTensor{"norm.bias", Dtype::kBF16, {3}, FromText("norm-b")},
        QuantizedWeight{"layer.fc.weight", {3, 43}, FloatType::kBFloat16, {}, false, block_},
        KeptTensor{"embed.weight", Dtype::kF16, {2, 2}, FromText("embedded")},
    };
  }
  absl::StatusOr<WrittenCheckpoint> Write(const std::vector<CheckpointTensor>& tensors) {
    return WriteCheckpoint(Directory(source_), out_, tensors);
  }
  nlohmann::ordered_json ReadJson(const std::string& name) {
    return nlohmann::ordered_json::parse(ReadFile(out_ + "/" + name));
  }

  // Nothing was published, and nothing is left in the directory but `names`.
  void ExpectOnly(std::vector<std::string> names) {
    EXPECT_THAT(directory_.Names(), ::testing::UnorderedElementsAreArray(names));
  }

  TestDirectory directory_;
  std::string source_ = directory_ / "model";
  std::string out_ = directory_ / "out";
  std::vector<std::byte> block_ = MakeBlock({}, 129);
};

}  // namespace gpuledger
