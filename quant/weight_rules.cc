#include "weight_rules.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gpuledger/owner.h"

namespace gpuledger {
namespace {

// What config.json says that matters here.
struct ModelConfig {
  std::string model_type;  // "bert", "llama", ...; empty if it does not say
};

// The module a tensor belongs to and its last component: "encoder.layer.0.output.dense.weight" -> "dense".
std::string_view LastComponent(std::string_view module) {
  const size_t dot = module.rfind('.');
  return dot == std::string_view::npos ? module : module.substr(dot + 1);
}

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool Contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

template <size_t N>
bool OneOf(std::string_view name, const std::array<std::string_view, N>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// nn.Embedding in the families that transformers knows.
bool IsEmbedding(std::string_view last) {
  constexpr std::array<std::string_view, 5> kNames = {"wte", "wpe", "shared", "relative_attention_bias", "emb"};
  return OneOf(last, kNames) || Contains(last, "embedding") || Contains(last, "embed_tokens") ||
         Contains(last, "embed_positions") || Contains(last, "tok_embed") || Contains(last, "pos_embed");
}

bool IsNorm(std::string_view last) {
  return Contains(last, "norm") || Contains(last, "Norm") || last.substr(0, 3) == "ln_";
}

// Output heads, tied or not: language models', and those of the task classes.
bool IsHead(std::string_view module, std::string_view last) {
  constexpr std::array<std::string_view, 8> kNames = {
      "lm_head", "embed_out", "score", "classifier", "qa_outputs", "proj_out", "seq_relationship", "output_projection"};
  return OneOf(last, kNames) || module == "output" || EndsWith(module, "predictions.decoder") ||
         EndsWith(module, "lm_head.decoder");
}

// A mixture's router: small, and quantizing it changes which experts are chosen.
bool IsRouter(std::string_view module, std::string_view last) {
  return last == "router" || EndsWith(module, "mlp.gate") || EndsWith(module, "block_sparse_moe.gate") ||
         last == "shared_expert_gate";
}

// GPT-2's Conv1D stores [in, out], the transpose of a linear.
bool IsConv1D(const ModelConfig& config, std::string_view last) {
  constexpr std::array<std::string_view, 4> kNames = {"c_attn", "c_proj", "c_fc", "q_attn"};
  return (config.model_type == "gpt2" || config.model_type == "openai-gpt") && OneOf(last, kNames);
}

}  // namespace

bool FloatTypeOf(Dtype dtype, FloatType* type) {
  switch (dtype) {
    case Dtype::kF32:
      *type = FloatType::kFloat32;
      return true;
    case Dtype::kF16:
      *type = FloatType::kFloat16;
      return true;
    case Dtype::kBF16:
      *type = FloatType::kBFloat16;
      return true;
    default:
      return false;
  }
}

struct WeightRules::State {
  ModelConfig config;
  RuleOptions options;
};

namespace {

WeightRule Decide(const TensorInfo& tensor, const ModelConfig& config) {
  const auto keep = [](std::string_view reason, bool linear = false) {
    return WeightRule{WeightAction::kKeep, linear, false, std::string(reason)};
  };
  FloatType type;
  if (tensor.elements == 0) return keep("empty");
  if (!FloatTypeOf(tensor.dtype, &type)) return keep("not a 16- or 32-bit float");
  const std::string_view name = tensor.name;
  constexpr std::string_view kWeight = ".weight";
  if (EndsWith(name, ".bias")) return keep("bias");
  const std::string_view module = EndsWith(name, kWeight) ? name.substr(0, name.size() - kWeight.size()) : name;
  const std::string_view last = LastComponent(module);
  if (IsNorm(last)) return keep("norm");
  if (IsEmbedding(last)) return keep("embedding");
  if (tensor.shape.size() < 2) return keep("one-dimensional");
  if (tensor.shape.size() > 2) return keep("more than two dimensions");
  if (module.size() == name.size()) return keep("not a module's weight");
  if (IsHead(module, last)) return keep("output head", true);
  if (IsRouter(module, last)) return keep("router", true);
  if (IsConv1D(config, last)) return keep("Conv1D, stored transposed");
  return {WeightAction::kQuantize, true, false, "linear"};
}

// The first of `globs` that matches; null if none does.
const std::string* FirstMatch(const std::vector<std::string>& globs, std::string_view name) {
  const auto found =
      std::find_if(globs.begin(), globs.end(), [&](const std::string& glob) { return OwnerMatches(glob, name); });
  return found == globs.end() ? nullptr : &*found;
}

absl::Status CheckGlobs(std::string_view flag, const std::vector<std::string>& globs,
                        const std::vector<TensorInfo>& tensors) {
  for (const std::string& glob : globs) {
    const bool used = std::any_of(tensors.begin(), tensors.end(),
                                  [&](const TensorInfo& tensor) { return OwnerMatches(glob, tensor.name); });
    if (!used) return absl::InvalidArgumentError(fmt::format("{} {}: no tensor has such a name", flag, glob));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightRules> WeightRules::For(const std::string& config_text, const std::vector<TensorInfo>& tensors,
                                             const RuleOptions& options) {
  const nlohmann::json json = nlohmann::json::parse(config_text, nullptr, false);
  if (!json.is_object()) return absl::InvalidArgumentError("config.json: not a JSON object");
  if (absl::Status status = CheckGlobs("--skip", options.skip, tensors); !status.ok()) return status;
  if (absl::Status status = CheckGlobs("--only", options.only, tensors); !status.ok()) return status;
  ModelConfig config;
  if (const auto type = json.find("model_type"); type != json.end() && type->is_string()) {
    config.model_type = type->get<std::string>();
  }
  return WeightRules(std::make_shared<const State>(State{std::move(config), options}));
}

WeightRule WeightRules::RuleFor(const TensorInfo& tensor) const {
  WeightRule rule = Decide(tensor, state_->config);
  if (rule.action == WeightAction::kKeep) return rule;
  const RuleOptions& options = state_->options;
  if (const std::string* glob = FirstMatch(options.skip, tensor.name)) {
    return {WeightAction::kKeep, rule.linear, false, fmt::format("skipped by --skip {}", *glob)};
  }
  if (!options.only.empty() && FirstMatch(options.only, tensor.name) == nullptr) {
    return {WeightAction::kKeep, rule.linear, false, "not in --only"};
  }
  return rule;
}

}  // namespace gpuledger
