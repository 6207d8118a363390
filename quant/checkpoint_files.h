// quant/checkpoint_files.h - what lies beside the weights of a model directory: its configuration and small files.
#pragma once

#include <span>
#include <string>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/checkpoint.h"

namespace gpuledger {

// The source's config.json with quantization_config added: unchanged if no tensor is in a layout that bitsandbytes
// loads, or if it says 4 bit already.
absl::StatusOr<std::string> MakeCheckpointConfig(const ModelSource& source, std::span<const CheckpointTensor> tensors);

// Copies what belongs to a checkpoint but is neither weights nor config.json from directory `source` to directory `to`,
// and notes in `written` what came along and what did not.
absl::Status CopyCompanionFiles(const std::string& source, const std::string& to, WrittenCheckpoint* written);

}  // namespace gpuledger
