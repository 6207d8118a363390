// quant/weight_rules.h - which weights become 4-bit, decided from a checkpoint's names, shapes and dtypes.
#pragma once

#include <string>

#include "gpuledger/plan.h"
#include "gpuledger/safetensors.h"

namespace gpuledger {

// What config.json says that matters here.
struct ModelConfig {
  std::string model_type;  // "bert", "llama", ...; empty if it does not say
};

struct WeightRule {
  WeightAction action;
  bool linear;              // a linear's weight by its name and shape
  std::string_view reason;  // static
};

// Quantizes the 2-D `*.weight` tensors that transformers' bitsandbytes integration would make Linear4bit: every linear
// but output heads. Where a name leaves doubt the weight is kept, and the reason says why.
WeightRule RuleFor(const TensorInfo& tensor, const ModelConfig& config);

// kFloat32, kFloat16 or kBFloat16; false for dtypes that are not quantized.
bool FloatTypeOf(Dtype dtype, FloatType* type);

}  // namespace gpuledger
