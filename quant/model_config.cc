#include "model_config.h"

#include <nlohmann/json.hpp>

namespace gpuledger {
namespace {

using Json = nlohmann::json;
constexpr const char* kSkipModules = "llm_int8_skip_modules";

// The entry, or null if `object` is no object or lacks it or has null there.
const Json* Find(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string StringOr(const Json* value, const char* otherwise) {
  return value != nullptr && value->is_string() ? value->get<std::string>() : otherwise;
}

absl::StatusOr<std::vector<std::string>> NamesIn(const Json& list) {
  std::vector<std::string> names;
  bool strings = list.is_array();
  if (strings) {
    for (const Json& entry : list) {
      strings = strings && entry.is_string();
      if (strings) names.push_back(entry.get<std::string>());
    }
  }
  if (!strings) return absl::InvalidArgumentError("config.json: llm_int8_skip_modules is not a list of names");
  return names;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return absl::InvalidArgumentError("config.json: not a JSON object");
  ModelConfig config;
  config.model_type = StringOr(Find(json, "model_type"), "");
  if (const Json* classes = Find(json, "architectures");
      classes != nullptr && classes->is_array() && !classes->empty()) {
    config.architecture = StringOr(&classes->front(), "");
  }
  const Json* tied = Find(json, "tie_word_embeddings");
  const Json* text_config = Find(json, "text_config");
  if (tied == nullptr && text_config != nullptr) tied = Find(*text_config, "tie_word_embeddings");
  if (tied != nullptr && tied->is_boolean()) config.tied = tied->get<bool>();

  const Json* modules = Find(json, kSkipModules);
  const Json* quantization = Find(json, "quantization_config");
  if (modules == nullptr && quantization != nullptr) modules = Find(*quantization, kSkipModules);
  if (modules == nullptr) return config;
  absl::StatusOr<std::vector<std::string>> names = NamesIn(*modules);
  if (!names.ok()) return names.status();
  config.skip_modules = *std::move(names);
  return config;
}

}  // namespace gpuledger
