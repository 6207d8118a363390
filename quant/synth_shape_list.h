// quant/synth_shape_list.h - what the families share: the list of tensors, and questions to a configuration.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gpuledger/safetensors.h"
#include "synth_config.h"

namespace gpuledger {

inline constexpr uint64_t kMostSynthTensors = 1'000'000;  // their names alone then fill a safetensors header

// The tensors so far. After the first that does not fit it takes no more.
class ShapeList {
 public:
  explicit ShapeList(Dtype dtype) : dtype_(dtype) {}
  [[nodiscard]] bool fits() const { return fits_; }
  std::vector<TensorInfo> Take() { return std::move(tensors_); }

  void Add(std::string name, std::vector<uint64_t> shape);
  // MODULE.weight [out, in], and MODULE.bias [out].
  void AddLinear(const std::string& module, uint64_t out, uint64_t in, bool bias);
  // MODULE.weight and MODULE.bias, both [size].
  void AddLayerNorm(const std::string& module, uint64_t size);
  // MODULE.gate_proj, .up_proj and .down_proj.
  void AddGatedMlp(const std::string& module, uint64_t hidden, uint64_t inter, bool bias);

 private:
  const Dtype dtype_;
  std::vector<TensorInfo> tensors_;
  uint64_t end_ = 0;
  bool fits_ = true;
};

// A number of layers or experts, each of which has tensors of its own.
uint64_t CountOf(ConfigReader& config, std::string_view key);

// The model's class, from `architectures`; empty if that is not there.
std::string ClassOf(ConfigReader& config);
// True for a class with an output head (*ForCausalLM), also if none is named; false for the bare *Model, whose names
// lack the prefix "model.". Any other class is an error.
bool IsWholeModel(ConfigReader& config);

// The families. Each adds nothing if the configuration turned out to be wrong.
struct DecoderTraits;
const DecoderTraits* FindDecoder(std::string_view model_type);  // null if it is not one of Llama's relatives
void ListDecoder(const DecoderTraits& traits, ConfigReader& config, ShapeList& list);
void ListOpt(ConfigReader& config, ShapeList& list);
void ListBert(ConfigReader& config, ShapeList& list);
// `prefix` is that of the text model: "model." or "model.language_model.".
void ListQwen35Moe(ConfigReader& config, const std::string& prefix, ShapeList& list);

}  // namespace gpuledger
