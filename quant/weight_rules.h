// quant/weight_rules.h - which weights become 4-bit: as transformers 5.17 decides for bitsandbytes, from config.json
// and the tensors' names, shapes and dtypes alone.
#pragma once

#include <absl/status/statusor.h>

#include <memory>
#include <string>
#include <vector>

#include "gpuledger/plan.h"
#include "gpuledger/safetensors.h"

namespace gpuledger {

// Globs over tensor names, in which `*` stays within one name and `**` crosses dots. A tensor that matches `skip` is
// kept; if `only` is not empty, so is one that matches none of it.
struct RuleOptions {
  std::vector<std::string> skip;
  std::vector<std::string> only;
};

struct WeightRule {
  WeightAction action;
  bool linear;         // a linear's weight, or an expert's, whether it is quantized or kept
  bool expert;         // quantized here and in 16 bit in transformers: an expert of a mixture
  std::string reason;  // a short phrase: "linear", "experts, fused", "embedding", ...
};

// Immutable, cheap to copy, thread-safe.
class WeightRules {
 public:
  // `config_text` is config.json. Errors: kInvalidArgument for a text that is no JSON object, and for a glob that
  // matches none of `tensors`.
  static absl::StatusOr<WeightRules> For(const std::string& config_text, const std::vector<TensorInfo>& tensors,
                                         const RuleOptions& options);

  // `tensor` is one of those that For saw. A weight is quantized only if it is surely a linear or an expert.
  [[nodiscard]] WeightRule RuleFor(const TensorInfo& tensor) const;

  struct State;

 private:
  explicit WeightRules(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

// kFloat32, kFloat16 or kBFloat16; false for dtypes that are not quantized.
bool FloatTypeOf(Dtype dtype, FloatType* type);

}  // namespace gpuledger
