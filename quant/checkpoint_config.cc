#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "checkpoint_files.h"
#include "file_io.h"

namespace gpuledger {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMostConfigBytes = 4u << 20;
constexpr int kMostConfigDepth = 64;  // writing JSON recurses

// Output layers that share their weight with the embedding and so are not in the file. Transformers leaves them in
// 16 bit on its own only if there is no list of modules to skip.
constexpr std::string_view kTiedHeads[] = {"lm_head", "lm_head.decoder", "embed_out", "cls.predictions.decoder",
                                           "generator_lm_head", "proj_out"};

absl::StatusOr<Json> ReadConfig(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kMostConfigBytes);
  if (!text.ok()) return text.status();
  bool too_deep = false;
  const auto check_depth = [&](int depth, Json::parse_event_t, Json&) {
    if (depth <= kMostConfigDepth) return true;
    too_deep = true;
    return false;
  };
  Json config;
  try {
    config = Json::parse(*text, check_depth);
  } catch (const Json::parse_error& error) {
    return absl::InvalidArgumentError(fmt::format("{}: is not valid JSON at byte {}", path, error.byte));
  }
  if (too_deep) {
    return absl::InvalidArgumentError(fmt::format("{}: nests deeper than {} levels", path, kMostConfigDepth));
  }
  if (!config.is_object()) return absl::InvalidArgumentError(path + ": is not a JSON object");
  if (config.contains("quantization_config")) {
    return absl::InvalidArgumentError(path + ": has a quantization_config already; start from the unquantized model");
  }
  return config;
}

std::string ModuleOf(std::string_view weight) { return std::string(weight.substr(0, weight.rfind('.'))); }

// Transformers takes an entry of the list for a regular expression that matches the beginning of a module's name, and
// for its end. An entry that would so hit a quantized module too (`mlp.gate` hits `mlp.gate_proj`) is anchored.
std::string SkipEntry(const std::string& module, const absl::flat_hash_set<std::string>& quantized) {
  for (const std::string& other : quantized) {
    if (other.starts_with(module) || other.ends_with(module)) return "^" + module + "$";
  }
  return module;
}

Json SkippedModules(std::span<const CheckpointTensor> tensors, const absl::flat_hash_set<std::string>& quantized) {
  std::vector<std::string> modules;
  absl::flat_hash_set<std::string> seen = quantized;
  const auto add = [&](const std::string& module) {
    if (seen.insert(module).second) modules.push_back(SkipEntry(module, quantized));
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

std::string_view TorchName(FloatType type) {
  switch (type) {
    case FloatType::kFloat32: return "float32";
    case FloatType::kFloat16: return "float16";
    case FloatType::kBFloat16: return "bfloat16";
  }
  Die("FloatType: no such type");
}

absl::StatusOr<std::string> MakeCheckpointConfig(const std::string& source, std::span<const CheckpointTensor> tensors) {
  absl::StatusOr<Json> config = ReadConfig(source + "/config.json");
  if (!config.ok()) return config.status();

  const QuantizedWeight* first = nullptr;
  absl::flat_hash_set<std::string> quantized;
  for (const CheckpointTensor& tensor : tensors) {
    const auto* weight = std::get_if<QuantizedWeight>(&tensor);
    if (weight == nullptr) continue;
    if (first == nullptr) first = weight;
    quantized.insert(ModuleOf(weight->name));
  }
  if (first != nullptr) {
    (*config)["quantization_config"] = {
        {"quant_method", "bitsandbytes"},
        {"load_in_4bit", true},
        {"load_in_8bit", false},
        {"bnb_4bit_quant_type", "nf4"},
        {"bnb_4bit_use_double_quant", false},
        {"bnb_4bit_compute_dtype", TorchName(first->source_type)},
        {"bnb_4bit_quant_storage", "uint8"},
        {"llm_int8_skip_modules", SkippedModules(tensors, quantized)},
    };
  }
  return config->dump(2, ' ', /*ensure_ascii=*/true) + "\n";
}

}  // namespace gpuledger
