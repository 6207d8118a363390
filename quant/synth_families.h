// quant/synth_families.h - all tensors of a model, names, shapes and dtypes, from its configuration alone.
//
// The names are those of published checkpoints. Known are the families in synth_families.cc; of Qwen3.5-MoE the text
// part, without the vision tower and the layers of multi-token prediction.
#pragma once

#include <absl/status/statusor.h>

#include <string>
#include <string_view>
#include <vector>

#include "gpuledger/safetensors.h"

namespace gpuledger {

// In the order of the model's modules, as if all were in one file. `name` is what errors call the configuration.
absl::StatusOr<std::vector<TensorInfo>> ShapesFromConfig(const std::string& name, std::string_view config);

}  // namespace gpuledger
