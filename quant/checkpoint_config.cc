#include <algorithm>
#include <vector>

#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include "checkpoint_files.h"
#include "json_text.h"
#include "quant_state.h"
#include "quantization_config.h"

namespace gpuledger {
namespace {

using Json = nlohmann::ordered_json;

// Output layers that share their weight with the embedding and so are not in the file. Transformers leaves them in
// 16 bit on its own only if there is no list of modules to skip.
constexpr std::string_view kTiedHeads[] = {"lm_head", "lm_head.decoder", "embed_out", "cls.predictions.decoder",
                                           "generator_lm_head", "proj_out"};

std::string ModuleOf(std::string_view weight) { return std::string(weight.substr(0, weight.rfind('.'))); }

// Transformers takes an entry of the list for a regular expression that matches the beginning of a module's name, and
// for its end. An entry that would so hit a quantized module too (`mlp.gate` hits `mlp.gate_proj`) is anchored.
class SkipEntries {
 public:
  explicit SkipEntries(const absl::flat_hash_set<std::string>& quantized)
      : forwards_(quantized.begin(), quantized.end()) {
    for (const std::string& module : forwards_) backwards_.emplace_back(module.rbegin(), module.rend());
    std::sort(forwards_.begin(), forwards_.end());
    std::sort(backwards_.begin(), backwards_.end());
  }
  std::string For(const std::string& module) const {
    const bool hits = AnyStartsWith(forwards_, module) || AnyStartsWith(backwards_, {module.rbegin(), module.rend()});
    return hits ? "^" + module + "$" : module;
  }

 private:
  static bool AnyStartsWith(const std::vector<std::string>& sorted, const std::string& beginning) {
    const auto at = std::lower_bound(sorted.begin(), sorted.end(), beginning);
    return at != sorted.end() && at->starts_with(beginning);
  }
  std::vector<std::string> forwards_, backwards_;
};

Json SkippedModules(std::span<const CheckpointTensor> tensors, const absl::flat_hash_set<std::string>& quantized) {
  std::vector<std::string> modules;
  absl::flat_hash_set<std::string> seen = quantized;
  const SkipEntries entries(quantized);
  const auto add = [&](const std::string& module) {
    if (seen.insert(module).second) modules.push_back(entries.For(module));
  };
  for (const CheckpointTensor& tensor : tensors) {
    const auto* kept = std::get_if<KeptTensor>(&tensor);
    // Only matrices can be linear layers; that embeddings are listed as well does no harm.
    if (kept != nullptr && kept->shape.size() == 2 && kept->name.ends_with(".weight")) add(ModuleOf(kept->name));
  }
  for (const std::string_view head : kTiedHeads) add(std::string(head));
  return modules;
}

}  // namespace

absl::StatusOr<std::string> MakeCheckpointConfig(const ModelSource& source, std::span<const CheckpointTensor> tensors) {
  const QuantizedWeight* first = nullptr;
  absl::flat_hash_set<std::string> quantized;
  for (const CheckpointTensor& tensor : tensors) {
    const auto* weight = std::get_if<QuantizedWeight>(&tensor);
    if (weight == nullptr) continue;
    quantized.insert(ModuleOf(weight->name));
    if (first == nullptr && !weight->own_layout) first = weight;
  }
  const absl::StatusOr<ConfiguredMethod> method = MethodOf(source);
  if (!method.ok()) return method.status();
  if (first == nullptr || *method == ConfiguredMethod::kFourBit) return source.config();

  absl::StatusOr<Json> config = ParseJsonObject(ConfigName(source), source.config());
  if (!config.ok()) return config.status();
  (*config)["quantization_config"] = {
      {"quant_method", "bitsandbytes"},
      {"load_in_4bit", true},
      {"load_in_8bit", false},
      {"bnb_4bit_quant_type", QuantTypeName(first->format.type)},
      {"bnb_4bit_use_double_quant", first->format.double_quant},
      {"bnb_4bit_compute_dtype", TorchName(first->source_type)},
      {"bnb_4bit_quant_storage", "uint8"},
      {"llm_int8_skip_modules", SkippedModules(tensors, quantized)},
  };
  return config->dump(2, ' ', /*ensure_ascii=*/true) + "\n";
}

}  // namespace gpuledger
