// quant/families.h - the model families whose weights are known one by one, and what sets each apart.
#pragma once

#include <span>
#include <string_view>

namespace gpuledger {

// A part of a model that not every class of the family has; a checkpoint may hold it all the same.
struct ModelPart {
  std::string_view module;                       // without the base prefix
  std::span<const std::string_view> loaded_by;   // ends of the names of the classes that have it; empty: all
  std::span<const std::string_view> ignored_by;  // but these
};

struct ModelFamily {
  std::string_view model_type;   // as in config.json
  std::string_view base_prefix;  // what classes with a head put before the base model's names: "bert", "model"
  bool tied = false;             // the output head is the embedding unless the configuration says otherwise
  bool conv1d = false;           // linears are stored [in, out]
  std::span<const std::string_view> kept_in_32_bit = {};  // modules that transformers never converts
  std::span<const ModelPart> parts = {};
  std::string_view old_prefix = {};  // names in the file that begin like this begin otherwise in the loaded model
  std::string_view new_prefix = {};
};

// Null for a family that is not known.
const ModelFamily* FindFamily(std::string_view model_type);

// True if the class has this module. `module` is without the base prefix; an empty class has everything.
bool ClassHas(const ModelFamily* family, std::string_view architecture, std::string_view module);

// True for a class without a head, such as BertModel, whose names lack the base prefix.
bool IsBaseClass(std::string_view architecture);

}  // namespace gpuledger
