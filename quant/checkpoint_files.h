// checkpoint_files.h - what lies beside the weights of a model directory: its configuration and small files.
#pragma once

#include <span>
#include <string>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/checkpoint.h"

namespace gpuledger {

// The source's config.json with quantization_config added (unchanged if no tensor is quantized).
absl::StatusOr<std::string> MakeCheckpointConfig(const std::string& source, std::span<const CheckpointTensor> tensors);

// "float32", "float16", "bfloat16": PyTorch's name.
std::string_view TorchName(FloatType type);

// Copies what belongs to a checkpoint but is neither weights nor config.json from directory `source` to directory `to`,
// and notes in `written` what came along and what did not.
absl::Status CopyCompanionFiles(const std::string& source, const std::string& to, WrittenCheckpoint* written);

}  // namespace gpuledger
