#include "quantization_config.h"

#include <fmt/format.h>

#include "file_io.h"
#include "json_text.h"

namespace gpuledger {
namespace {

bool IsTrue(const nlohmann::ordered_json& config, const char* key) {
  const auto found = config.find(key);
  return found != config.end() && found->is_boolean() && found->get<bool>();
}

}  // namespace

std::string ConfigName(const ModelSource& source) {
  return source.directory().empty() ? "the configuration of " + source.name() : source.directory() + "/config.json";
}

absl::StatusOr<ConfiguredMethod> MethodOf(const ModelSource& source) {
  const std::string path = ConfigName(source);
  const absl::StatusOr<nlohmann::ordered_json> config = ParseJsonObject(path, source.config());
  if (!config.ok()) return config.status();
  // compression_config is what compressed-tensors called it before.
  for (const char* key : {"quantization_config", "compression_config"}) {
    const auto found = config->find(key);
    if (found == config->end() || found->is_null()) continue;
    if (!found->is_object()) return absl::InvalidArgumentError(fmt::format("{}: {} is not an object", path, key));
    const auto stated = found->find("quant_method");
    const bool bits = IsTrue(*found, "load_in_4bit") || IsTrue(*found, "load_in_8bit");
    // Without quant_method it is bitsandbytes', from before there were others.
    const std::string method = stated != found->end() && stated->is_string() ? stated->get<std::string>()
                               : bits                                        ? "bitsandbytes"
                                                                             : "a method that it does not name";
    if (method != "bitsandbytes" && method != "bitsandbytes_4bit") {
      return absl::InvalidArgumentError(
          fmt::format("{}: the model is quantized already, with {}; load the original, "
                      "which is in 16 or 32 bit",
                      path, bits || stated != found->end() ? Quoted(method) : method));
    }
    if (method == "bitsandbytes" && !IsTrue(*found, "load_in_4bit")) {
      return absl::InvalidArgumentError(
          fmt::format("{}: the model is quantized already, with bitsandbytes in 8 bit; "
                      "load the original, which is in 16 or 32 bit",
                      path));
    }
    return ConfiguredMethod::kFourBit;
  }
  return ConfiguredMethod::kNone;
}

}  // namespace gpuledger
