#include "weight_rules.h"

#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "families.h"
#include "gpuledger/owner.h"
#include "model_config.h"
#include "module_patterns.h"
#include "weight_names.h"

namespace gpuledger {

struct WeightRules::State {
  ModelConfig config;
  const ModelFamily* family = nullptr;
  RuleOptions options;
  ModulePatterns listed;          // the configuration's modules not to convert
  ModulePatterns kept_in_32_bit;  // the family's
  absl::flat_hash_set<std::string> names;
  std::string base_prefix;       // with its dot; empty if the family has none
  bool has_base_prefix = false;  // some tensor's name begins with it

  [[nodiscard]] bool tied() const { return config.tied.value_or(family != nullptr && family->tied); }
};

namespace {

using State = WeightRules::State;

WeightRule Keep(std::string reason, bool linear = false) {
  return {WeightAction::kKeep, linear, false, std::move(reason)};
}

// Names of linears and experts are certain only in families that are known.
WeightRule Quantize(const State& state, std::string_view reason, bool expert) {
  const bool certain = state.family != nullptr;
  return {WeightAction::kQuantize, true, expert, fmt::format("{}{}", reason, certain ? "" : " (by its name)")};
}

std::string_view ModuleOf(std::string_view tensor) {
  constexpr std::string_view kWeight = ".weight";
  return tensor.ends_with(kWeight) ? tensor.substr(0, tensor.size() - kWeight.size()) : std::string_view();
}

WeightRule RuleForManyDimensions(const State& state, const TensorInfo& tensor) {
  const size_t dimensions = tensor.shape.size();
  if (dimensions == 3 && NamesFusedExperts(tensor.name)) return Quantize(state, "experts, fused", true);
  const std::string_view module = ModuleOf(tensor.name);
  if (!module.empty() && (dimensions > 3 || module.find("conv") != module.npos)) return Keep("convolution");
  return Keep("more than two dimensions");
}

// A language model's head is kept unless there is a list of modules to keep instead; a head that is the embedding is
// kept in any case.
WeightRule RuleForOutputHead(const State& state) {
  if (state.tied()) return Keep("output head, tied to the embedding", true);
  if (state.config.skip_modules.has_value()) return Quantize(state, "output head, not in the list", false);
  return Keep("output head", true);
}

// Transformers keeps the module of the model's last parameter, which it finds to be the head's weight if there is no
// bias behind it. Heads with a bias it converts.
bool IsLastParameter(const State& state, std::string_view module) {
  return !state.config.skip_modules.has_value() && NamesTaskHead(module) &&
         !state.names.contains(fmt::format("{}.bias", module));
}

// nn.MultiheadAttention reads this weight itself; its class is not a plain linear.
bool IsInsideMultiheadAttention(const State& state, std::string_view module) {
  return LastComponent(module) == "out_proj" && !ParentModule(module).empty() &&
         state.names.contains(fmt::format("{}.in_proj_weight", ParentModule(module)));
}

// What the tensor is.
WeightRule RuleByNature(const State& state, const TensorInfo& tensor) {
  const std::string_view name = tensor.name;
  FloatType type;
  if (tensor.elements == 0) return Keep("empty");
  if (!FloatTypeOf(tensor.dtype, &type)) return Keep("not a 16- or 32-bit float");
  if (name.ends_with(".bias")) return Keep("bias");
  const std::string_view module = ModuleOf(name);
  const std::string_view named = module.empty() ? name : module;
  if (NamesNorm(named)) return Keep("norm");
  if (tensor.shape.size() > 2) return RuleForManyDimensions(state, tensor);
  if (NamesEmbedding(named)) return Keep("embedding");
  if (tensor.shape.size() < 2) return Keep("one-dimensional");
  if (module.empty()) return Keep("not a module's weight");
  if (NamesOutputHead(module)) return RuleForOutputHead(state);
  if (NamesExpert(module)) return Quantize(state, "expert", true);
  if (NamesRouter(module)) return Keep("router");
  if (state.family != nullptr && state.family->conv1d && NamesConv1D(module)) {
    return Keep("Conv1D, stored transposed");
  }
  if (IsLastParameter(state, module)) return Keep("output head, the last module", true);
  if (IsInsideMultiheadAttention(state, module)) return Keep("inside nn.MultiheadAttention", true);
  return Quantize(state, "linear", false);
}

// The module's name without the base prefix of classes with a head.
std::string_view WithoutBasePrefix(const State& state, std::string_view module) {
  if (!state.base_prefix.empty() && module.starts_with(state.base_prefix))
    module.remove_prefix(state.base_prefix.size());
  return module;
}

// The module's name in the class that loads it: lists of modules use that one.
std::string NameWhenLoaded(const State& state, std::string_view module) {
  if (state.family == nullptr || state.base_prefix.empty()) return std::string(module);
  const std::string_view old_prefix = state.family->old_prefix;
  if (!old_prefix.empty() && module.starts_with(old_prefix)) {
    return fmt::format("{}{}", state.family->new_prefix, module.substr(old_prefix.size()));
  }
  if (IsBaseClass(state.config.architecture)) return std::string(WithoutBasePrefix(state, module));
  if (state.has_base_prefix || NamesOutputHead(module) || NamesTaskHead(module)) return std::string(module);
  return state.base_prefix + std::string(module);
}

// True if the class that config.json names has the module; a base class has nothing beside its base.
bool IsLoaded(const State& state, std::string_view module) {
  const std::string_view inner = WithoutBasePrefix(state, module);
  const bool beside = state.has_base_prefix && inner.size() == module.size();
  if (beside && IsBaseClass(state.config.architecture)) return false;
  return ClassHas(state.family, state.config.architecture, inner);
}

bool IsListed(const ModulePatterns& patterns, const State& state, std::string_view module) {
  return patterns.Match(module) || patterns.Match(NameWhenLoaded(state, module));
}

// The first of `globs` that matches; null if none does.
const std::string* FirstMatch(const std::vector<std::string>& globs, std::string_view name) {
  const auto found =
      std::find_if(globs.begin(), globs.end(), [&](const std::string& glob) { return OwnerMatches(glob, name); });
  return found == globs.end() ? nullptr : &*found;
}

// Why a weight that could be quantized is kept all the same; empty if it is not.
std::string Exception(const State& state, std::string_view name) {
  const std::string_view module = ModuleOf(name).empty() ? name : ModuleOf(name);
  if (!IsLoaded(state, module)) {
    const std::string& loader = state.config.architecture;
    return fmt::format("not loaded by {}", loader.empty() ? "transformers" : loader);
  }
  if (IsListed(state.kept_in_32_bit, state, module)) return "kept in 32 bit by transformers";
  if (IsListed(state.listed, state, module)) return "in the model's list of modules not to convert";
  if (const std::string* glob = FirstMatch(state.options.skip, name)) return fmt::format("skipped by --skip {}", *glob);
  if (!state.options.only.empty() && FirstMatch(state.options.only, name) == nullptr) return "not in --only";
  return {};
}

absl::Status CheckGlobs(std::string_view flag, const std::vector<std::string>& globs,
                        const std::vector<TensorInfo>& tensors) {
  for (const std::string& glob : globs) {
    const bool used = std::any_of(tensors.begin(), tensors.end(),
                                  [&](const TensorInfo& tensor) { return OwnerMatches(glob, tensor.name); });
    if (!used) {
      return absl::InvalidArgumentError(
          fmt::format("{} {}: matches no tensor (`*` stays within one name, `**` crosses dots)", flag, glob));
    }
  }
  return absl::OkStatus();
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

absl::StatusOr<WeightRules> WeightRules::For(const std::string& config_text, const std::vector<TensorInfo>& tensors,
                                             const RuleOptions& options) {
  if (absl::Status status = CheckGlobs("--skip", options.skip, tensors); !status.ok()) return status;
  if (absl::Status status = CheckGlobs("--only", options.only, tensors); !status.ok()) return status;
  absl::StatusOr<ModelConfig> config = ParseModelConfig(config_text);
  if (!config.ok()) return config.status();
  State state;
  state.config = *std::move(config);
  state.options = options;
  state.family = FindFamily(state.config.model_type);
  absl::StatusOr<ModulePatterns> listed =
      ModulePatterns::Of(state.config.skip_modules.value_or(std::vector<std::string>()));
  if (!listed.ok()) return listed.status();
  state.listed = *std::move(listed);
  if (state.family != nullptr) {
    const auto kept = state.family->kept_in_32_bit;
    state.kept_in_32_bit = *ModulePatterns::Of({kept.begin(), kept.end()});
    if (!state.family->base_prefix.empty()) state.base_prefix = fmt::format("{}.", state.family->base_prefix);
  }
  for (const TensorInfo& tensor : tensors) {
    state.names.insert(tensor.name);
    state.has_base_prefix |= !state.base_prefix.empty() && tensor.name.starts_with(state.base_prefix);
  }
  return WeightRules(std::make_shared<const State>(std::move(state)));
}

WeightRule WeightRules::RuleFor(const TensorInfo& tensor) const {
  WeightRule rule = RuleByNature(*state_, tensor);
  if (rule.action == WeightAction::kKeep) return rule;
  if (std::string why = Exception(*state_, tensor.name); !why.empty()) return Keep(std::move(why), rule.linear);
  return rule;
}

}  // namespace gpuledger
