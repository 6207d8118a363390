// gpuledger/synth.h - models made of their shapes alone: exact names, shapes and dtypes, seeded random weights.
//
// A value depends on seed, tensor name and position alone, so that any part can be read in any order by any thread, the
// same on every machine. Norm weights are near 1, biases near 0, all others normal with a standard deviation of 0.02.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpuledger/model_source.h"
#include "gpuledger/progress.h"
#include "gpuledger/types.h"

namespace gpuledger {

struct SynthShape {
  std::string_view name;         // "opt-350m"
  std::string_view description;  // one line, with the number of parameters
};
// Every name that SynthModel knows, tiny versions included.
GPULEDGER_EXPORT const std::vector<SynthShape>& SynthShapes();

// `shapes` is one of those names, or the path of a config.json of a family that is known.
// Errors: kNotFound with the list of names; kInvalidArgument for a configuration that does not give all shapes.
GPULEDGER_EXPORT absl::StatusOr<std::shared_ptr<const ModelSource>> SynthModel(const std::string& shapes,
                                                                               uint64_t seed = 0);

struct WriteModelOptions {
  Bytes shard_size = Bytes(uint64_t{5} << 30);  // a file holds at most this, but at least one tensor
};
// Writes config.json and model.safetensors, or shards with their index, to the new directory `out`, complete or not at
// all. Errors: kAlreadyExists, kResourceExhausted (disk full, also foreseen), kCancelled, those of the source.
GPULEDGER_EXPORT absl::Status WriteModelDirectory(const ModelSource& source, const std::string& out,
                                                  const WriteModelOptions& options = {}, const Progress& progress = {});

}  // namespace gpuledger
