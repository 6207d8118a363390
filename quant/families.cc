// The facts are transformers 5.17's; tests/quant/test_rules_match_transformers.py holds them against it.
#include "families.h"

#include <algorithm>
#include <array>

namespace gpuledger {
namespace {

using Names = std::string_view[];

constexpr Names kWo = {"wo"};

constexpr Names kBertPoolerless = {"ForMaskedLM", "LMHeadModel", "ForTokenClassification", "ForQuestionAnswering"};
constexpr Names kBertLanguage = {"ForMaskedLM", "LMHeadModel", "ForPreTraining"};
constexpr Names kBertSentences = {"ForPreTraining", "ForNextSentencePrediction"};
constexpr ModelPart kBertParts[] = {{"pooler", {}, kBertPoolerless},
                                    {"cls.predictions", kBertLanguage, {}},
                                    {"cls.seq_relationship", kBertSentences, {}}};

constexpr Names kRobertaPooler = {"Model", "ForMultipleChoice"};
constexpr Names kRobertaLanguage = {"ForMaskedLM", "ForCausalLM"};
constexpr ModelPart kRobertaParts[] = {{"pooler", kRobertaPooler, {}}, {"lm_head", kRobertaLanguage, {}}};

constexpr Names kMaskedLM = {"ForMaskedLM"};
constexpr ModelPart kDistilbertParts[] = {{"vocab_transform", kMaskedLM, {}}};

constexpr Names kEncoderOnly = {"EncoderModel", "ForTokenClassification"};
constexpr ModelPart kT5Parts[] = {{"decoder", {}, kEncoderOnly}};

constexpr Names kTextOnly = {"ForCausalLM", "TextModel"};
constexpr ModelPart kVisionParts[] = {{"visual", {}, kTextOnly}};

constexpr ModelFamily kFamilies[] = {
    {.model_type = "bert", .base_prefix = "bert", .tied = true, .parts = kBertParts},
    {.model_type = "cohere", .base_prefix = "model", .tied = true},
    {.model_type = "cohere2", .base_prefix = "model", .tied = true},
    {.model_type = "distilbert", .base_prefix = "distilbert", .tied = true, .parts = kDistilbertParts},
    {.model_type = "gemma", .base_prefix = "model", .tied = true},
    {.model_type = "gemma2", .base_prefix = "model", .tied = true},
    {.model_type = "gemma3",
     .base_prefix = "model",
     .tied = true,
     .old_prefix = "language_model.model.",
     .new_prefix = "model.language_model."},
    {.model_type = "gemma3_text", .base_prefix = "model", .tied = true},
    {.model_type = "gpt2", .base_prefix = "transformer", .tied = true, .conv1d = true},
    {.model_type = "llama", .base_prefix = "model"},
    {.model_type = "mistral", .base_prefix = "model"},
    {.model_type = "mixtral", .base_prefix = "model"},
    {.model_type = "mt5", .base_prefix = "transformer", .tied = true, .kept_in_32_bit = kWo, .parts = kT5Parts},
    {.model_type = "opt", .base_prefix = "model", .tied = true},
    {.model_type = "phi", .base_prefix = "model"},
    {.model_type = "phi3", .base_prefix = "model"},
    {.model_type = "qwen2", .base_prefix = "model"},
    {.model_type = "qwen2_moe", .base_prefix = "model"},
    {.model_type = "qwen3", .base_prefix = "model"},
    {.model_type = "qwen3_5", .base_prefix = "model", .parts = kVisionParts},
    {.model_type = "qwen3_5_moe", .base_prefix = "model", .parts = kVisionParts},
    {.model_type = "qwen3_5_moe_text", .base_prefix = "model", .parts = kVisionParts},
    {.model_type = "qwen3_5_text", .base_prefix = "model", .parts = kVisionParts},
    {.model_type = "qwen3_moe", .base_prefix = "model"},
    {.model_type = "qwen3_next", .base_prefix = "model"},
    {.model_type = "roberta", .base_prefix = "roberta", .tied = true, .parts = kRobertaParts},
    {.model_type = "t5", .base_prefix = "transformer", .tied = true, .kept_in_32_bit = kWo, .parts = kT5Parts},
    {.model_type = "umt5", .base_prefix = "transformer", .tied = true, .kept_in_32_bit = kWo, .parts = kT5Parts},
    {.model_type = "xlm-roberta", .base_prefix = "roberta", .tied = true, .parts = kRobertaParts},
};

// True if `module` is `part` or inside it.
bool IsIn(std::string_view module, std::string_view part) {
  return module.starts_with(part) && (module.size() == part.size() || module[part.size()] == '.');
}

// Classes are told apart by the ends of their names: BertModel, RobertaForMaskedLM.
bool EndsWithOneOf(std::string_view architecture, std::span<const std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return architecture.ends_with(end); });
}

}  // namespace

const ModelFamily* FindFamily(std::string_view model_type) {
  const auto* found = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                   [&](const ModelFamily& family) { return family.model_type == model_type; });
  return found == std::end(kFamilies) ? nullptr : found;
}

bool ClassHas(const ModelFamily* family, std::string_view architecture, std::string_view module) {
  // Layers for predicting several tokens: every class of every family that has them ignores them.
  if (IsIn(module, "mtp")) return false;
  if (family == nullptr || architecture.empty()) return true;
  for (const ModelPart& part : family->parts) {
    if (!IsIn(module, part.module)) continue;
    if (!part.loaded_by.empty() && !EndsWithOneOf(architecture, part.loaded_by)) return false;
    if (EndsWithOneOf(architecture, part.ignored_by)) return false;
  }
  return true;
}

bool IsBaseClass(std::string_view architecture) {
  return architecture.ends_with("Model") && !architecture.ends_with("LMHeadModel") &&
         !architecture.ends_with("DoubleHeadsModel");
}

}  // namespace gpuledger
