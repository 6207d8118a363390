#include "synth_shape_list.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "file_io.h"
#include "safetensors_header.h"

namespace gpuledger {

void ShapeList::Add(std::string name, std::vector<uint64_t> shape) {
  TensorInfo tensor{std::move(name), dtype_, std::move(shape), 0, end_, Bytes()};
  fits_ = fits_ && tensors_.size() < kMostSynthTensors &&
          CountElements(tensor.shape, dtype_, &tensor.elements, &tensor.size) &&
          !__builtin_add_overflow(end_, tensor.size.count(), &end_);
  if (fits_) tensors_.push_back(std::move(tensor));
}

void ShapeList::AddLinear(const std::string& module, uint64_t out, uint64_t in, bool bias) {
  Add(module + ".weight", {out, in});
  if (bias) Add(module + ".bias", {out});
}

void ShapeList::AddLayerNorm(const std::string& module, uint64_t size) {
  Add(module + ".weight", {size});
  Add(module + ".bias", {size});
}

void ShapeList::AddGatedMlp(const std::string& module, uint64_t hidden, uint64_t inter, bool bias) {
  AddLinear(module + ".gate_proj", inter, hidden, bias);
  AddLinear(module + ".up_proj", inter, hidden, bias);
  AddLinear(module + ".down_proj", hidden, inter, bias);
}

uint64_t CountOf(ConfigReader& config, std::string_view key) {
  const uint64_t count = config.Number(key);
  if (count <= kMostSynthTensors) return count;
  config.Fail(key, fmt::format("is {}, which makes more than {} tensors", count, kMostSynthTensors));
  return 1;
}

std::string ClassOf(ConfigReader& config) {
  if (!config.Has("architectures")) return {};
  const nlohmann::ordered_json& names = config.config().at("architectures");
  if (names.is_array() && names.size() == 1 && names[0].is_string()) return names[0].get<std::string>();
  config.Fail("architectures", "must be a list of one name");
  return {};
}

bool IsWholeModel(ConfigReader& config) {
  const std::string name = ClassOf(config);
  if (name.empty() || name.ends_with("ForCausalLM")) return true;
  if (!name.ends_with("Model")) {
    config.Fail("architectures", fmt::format("names {}; known are *ForCausalLM and *Model", Quoted(name)));
  }
  return false;
}

}  // namespace gpuledger
