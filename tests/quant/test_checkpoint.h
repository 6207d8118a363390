// test_checkpoint.h - small models for the tests of plan and load: a directory with config.json and model.safetensors.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gpuledger/load.h"
#include "test_files.h"

namespace gpuledger {

// A float with this value in the given format; the low bits of 16-bit formats are cut off.
inline void PutFloat(Dtype dtype, float value, std::vector<std::byte>& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  uint64_t stored = bits;
  size_t size = 4;
  if (dtype == Dtype::kBF16) stored = bits >> 16, size = 2;
  if (dtype == Dtype::kF16) {  // values of 0.01 to 1 in magnitude are normal numbers
    const uint32_t exponent = ((bits >> 23) & 0xffu) - 112u;
    stored = (bits >> 31) << 15 | exponent << 10 | ((bits >> 13) & 0x3ffu), size = 2;
  }
  if (dtype == Dtype::kI64) stored = 7, size = 8;
  for (size_t i = 0; i < size; ++i) out.push_back(static_cast<std::byte>(stored >> (8 * i)));
}

// Writes a model of these tensors, in this order, with seeded values; `path` is made.
inline void WriteModel(const std::string& path, const std::vector<TensorSpec>& tensors,
                       std::string_view config = R"({"model_type": "bert"})") {
  WriteFile(path + "/config.json", config);
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(path + "/model.safetensors", tensors, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  std::mt19937 random(44728);
  std::uniform_real_distribution<float> magnitude(0.01f, 1.0f);
  for (const TensorSpec& tensor : tensors) {
    uint64_t elements = 1;
    for (const uint64_t dimension : tensor.shape) elements *= dimension;
    std::vector<std::byte> data;
    for (uint64_t i = 0; i < elements; ++i)
      PutFloat(tensor.dtype, random() % 2 == 0 ? magnitude(random) : -magnitude(random), data);
    ASSERT_TRUE(writer->Append(data).ok());
  }
  const absl::Status finished = writer->Finish();
  ASSERT_TRUE(finished.ok()) << finished;
}

// Two layers of linears with norms and biases, an embedding and a head.
inline std::vector<TensorSpec> TinyModel(Dtype dtype, uint64_t hidden = 96, uint64_t inter = 320) {
  std::vector<TensorSpec> tensors = {{"embeddings.word_embeddings.weight", dtype, {500, hidden}},
                                     {"embeddings.position_ids", Dtype::kI64, {1, 32}}};
  for (const std::string layer : {"encoder.layer.0.", "encoder.layer.1."}) {
    tensors.push_back({layer + "attention.self.query.weight", dtype, {hidden, hidden}});
    tensors.push_back({layer + "attention.self.query.bias", dtype, {hidden}});
    tensors.push_back({layer + "intermediate.dense.weight", dtype, {inter, hidden}});
    tensors.push_back({layer + "output.dense.weight", dtype, {hidden, inter}});
    tensors.push_back({layer + "output.LayerNorm.weight", dtype, {hidden}});
  }
  tensors.push_back({"pooler.dense.weight", dtype, {hidden, hidden}});
  return tensors;
}

// The plan of the model in that directory.
inline absl::StatusOr<LoadPlan> PlanDirectory(const std::string& directory, const LoadOptions& options = {},
                                              Bytes available = Bytes::Max()) {
  absl::StatusOr<std::shared_ptr<const ModelSource>> source = OpenModel(directory);
  if (!source.ok()) return source.status();
  return PlanLoad(*std::move(source), options, available);
}

}  // namespace gpuledger
