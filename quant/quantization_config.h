// quant/quantization_config.h - what a model's config.json says of how it is quantized already.
#pragma once

#include <string>

#include <absl/status/statusor.h>

#include "gpuledger/model_source.h"

namespace gpuledger {

enum class ConfiguredMethod : uint8_t { kNone, kFourBit };

// What errors call the source's configuration: the path of config.json, or the source's own name.
std::string ConfigName(const ModelSource& source);

// kFourBit for bitsandbytes' 4 bit. Errors: kInvalidArgument with a sentence for any other method, or for a
// configuration that cannot be understood.
absl::StatusOr<ConfiguredMethod> MethodOf(const ModelSource& source);

}  // namespace gpuledger
