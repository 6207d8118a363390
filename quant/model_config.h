// quant/model_config.h - what config.json says that matters for which weights become 4-bit.
#pragma once

#include <absl/status/statusor.h>

#include <optional>
#include <string>
#include <vector>

namespace gpuledger {

struct ModelConfig {
  std::string model_type;    // "bert", "llama", ...; empty if it does not say
  std::string architecture;  // the class that loads it, "BertForMaskedLM"; empty if it does not say
  std::optional<bool> tied;  // the output head shares the embedding's weight
  // llm_int8_skip_modules, at the top or in quantization_config: it replaces the modules that are kept by default.
  std::optional<std::vector<std::string>> skip_modules;
};

// kInvalidArgument for a text that is no JSON object, and for a list of modules that is no list of strings. Anything
// else that is not as expected counts as not said.
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text);

}  // namespace gpuledger
