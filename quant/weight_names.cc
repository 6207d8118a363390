#include "weight_names.h"

#include <algorithm>
#include <array>

namespace gpuledger {
namespace {

template <size_t N>
bool OneOf(std::string_view name, const std::array<std::string_view, N>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool Contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

bool IsNumber(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// What follows the component `experts`; empty if there is no such component, or nothing follows.
std::string_view InsideExperts(std::string_view name) {
  constexpr std::string_view kExperts = "experts.";
  size_t at = name.find(kExperts);
  while (at != name.npos && at != 0 && name[at - 1] != '.') at = name.find(kExperts, at + 1);
  return at == name.npos ? std::string_view() : name.substr(at + kExperts.size());
}

}  // namespace

std::string_view LastComponent(std::string_view module) {
  const size_t dot = module.rfind('.');
  return dot == module.npos ? module : module.substr(dot + 1);
}

std::string_view FirstComponent(std::string_view module) { return module.substr(0, module.find('.')); }

std::string_view ParentModule(std::string_view module) {
  const size_t dot = module.rfind('.');
  return dot == module.npos ? std::string_view() : module.substr(0, dot);
}

bool NamesEmbedding(std::string_view module) {
  constexpr std::array<std::string_view, 8> kNames = {"wte", "wpe",      "shared",    "relative_attention_bias",
                                                      "emb", "embed_in", "pos_embed", "position_embed"};
  const std::string_view last = LastComponent(module);
  // `embedding_hidden_mapping_in` and `embeddings_project` are linears.
  return OneOf(last, kNames) || last.ends_with("embedding") || last.ends_with("embeddings") ||
         Contains(last, "embed_tokens") || Contains(last, "embed_positions") || last.starts_with("tok_embed");
}

bool NamesNorm(std::string_view module) {
  const std::string_view last = LastComponent(module);
  return Contains(last, "norm") || Contains(last, "Norm") || last.starts_with("ln_");
}

bool NamesOutputHead(std::string_view module) {
  constexpr std::array<std::string_view, 6> kNames = {"lm_head",  "embed_out",         "generator_lm_head",
                                                      "proj_out", "output_projection", "vocab_projector"};
  return OneOf(LastComponent(module), kNames) || module == "output" || module.ends_with("predictions.decoder") ||
         module.ends_with("lm_head.decoder");
}

bool NamesTaskHead(std::string_view module) {
  constexpr std::array<std::string_view, 3> kNames = {"score", "classifier", "qa_outputs"};
  return OneOf(LastComponent(module), kNames);
}

bool NamesRouter(std::string_view module) {
  const std::string_view last = LastComponent(module);
  return last == "gate" || last == "router" || LastComponent(ParentModule(module)) == "router";
}

bool NamesConv1D(std::string_view module) {
  constexpr std::array<std::string_view, 4> kNames = {"c_attn", "c_proj", "c_fc", "q_attn"};
  return OneOf(LastComponent(module), kNames);
}

bool NamesExpert(std::string_view module) {
  const std::string_view inside = InsideExperts(module);
  return IsNumber(FirstComponent(inside)) && inside != FirstComponent(inside);
}

bool NamesFusedExperts(std::string_view tensor) {
  const std::string_view inside = InsideExperts(tensor);
  return !inside.empty() && !IsNumber(FirstComponent(inside)) && !inside.ends_with("bias");
}

}  // namespace gpuledger
