// quant/model_files.h - model.safetensors, or its shards with their index, from tensors wherever they are.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/statusor.h>

#include "gpuledger/checkpoint.h"
#include "gpuledger/progress.h"
#include "gpuledger/safetensors.h"

namespace gpuledger {

// One tensor and where its bytes are: in memory, in `text`, or behind a reader.
struct ModelTensor {
  TensorSpec spec;
  std::span<const std::byte> bytes{};
  std::string text{};
  TensorReader read{};
  uint64_t group = 0;  // tensors with the same number, which stand beside each other, go into the same file
};

struct WrittenFiles {
  Bytes bytes;
  uint64_t count;
};

// Writes into `directory`, which exists, and for the rest is as WriteCheckpoint says. Errors that have no file of their
// own name `target`, what the directory will be called.
absl::StatusOr<WrittenFiles> WriteModelFiles(const std::string& directory, const std::string& target,
                                             std::vector<ModelTensor> tensors,
                                             const std::vector<std::pair<std::string, std::string>>& metadata,
                                             Bytes shard_size, const Progress& progress);

}  // namespace gpuledger
