// Qwen3.5-MoE, the text part: linear and full attention by turns, fused experts beside a shared one.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "synth_shape_list.h"

namespace gpuledger {
namespace {

constexpr std::string_view kFull = "full_attention";
constexpr std::string_view kLinear = "linear_attention";

struct Qwen35Moe {
  explicit Qwen35Moe(ConfigReader& config)
      : hidden(config.Number("hidden_size")),
        layers(CountOf(config, "num_hidden_layers")),
        heads(config.Number("num_attention_heads")),
        kv_heads(config.Number("num_key_value_heads")),
        head_dim(config.Number("head_dim")),
        vocab(config.Number("vocab_size")),
        experts(config.Number("num_experts")),
        expert_inter(config.Number("moe_intermediate_size")),
        shared_inter(config.Number("shared_expert_intermediate_size")),
        kernel(config.Number("linear_conv_kernel_dim")),
        value_heads(config.Number("linear_num_value_heads")),
        value_head_dim(config.Number("linear_value_head_dim")),
        keys(config.Number("linear_num_key_heads") * config.Number("linear_key_head_dim")),
        values(value_heads * value_head_dim),
        bias(config.Flag("attention_bias", false)),
        tied(config.Flag("tie_word_embeddings", false)) {
    // Otherwise 2 * keys + values could wrap around.
    if (keys > kLargestConfigNumber) config.Fail("linear_num_key_heads", "makes keys too wide");
    if (values > kLargestConfigNumber) config.Fail("linear_num_value_heads", "makes values too wide");
  }
  uint64_t hidden, layers, heads, kv_heads, head_dim, vocab, experts, expert_inter, shared_inter;
  uint64_t kernel, value_heads, value_head_dim, keys, values;
  bool bias, tied;
};

// Whether each layer has full attention: layer_types, or every full_attention_interval-th.
std::vector<bool> FullAttention(ConfigReader& config, uint64_t layers) {
  std::vector<bool> full(layers);
  if (!config.Has("layer_types")) {
    const uint64_t interval = config.Number("full_attention_interval", 4);
    for (uint64_t i = 0; i < layers; ++i) full[i] = (i + 1) % interval == 0;
    return full;
  }
  const nlohmann::ordered_json& types = config.config().at("layer_types");
  if (!types.is_array() || types.size() != layers) {
    config.Fail("layer_types", fmt::format("must be a list of {} names, one for each layer", layers));
    return full;
  }
  for (uint64_t i = 0; i < layers; ++i) {
    full[i] = types[i] == kFull;
    if (!full[i] && types[i] != kLinear) {
      config.Fail("layer_types", fmt::format("has an entry {} that is neither {} nor {}", i, kFull, kLinear));
      return full;
    }
  }
  return full;
}

void AddFullAttention(const std::string& module, const Qwen35Moe& m, ShapeList& list) {
  list.AddLinear(module + ".q_proj", 2 * m.heads * m.head_dim, m.hidden, m.bias);  // queries and their gates
  list.AddLinear(module + ".k_proj", m.kv_heads * m.head_dim, m.hidden, m.bias);
  list.AddLinear(module + ".v_proj", m.kv_heads * m.head_dim, m.hidden, m.bias);
  list.AddLinear(module + ".o_proj", m.hidden, m.heads * m.head_dim, m.bias);
  list.Add(module + ".q_norm.weight", {m.head_dim});
  list.Add(module + ".k_norm.weight", {m.head_dim});
}

void AddLinearAttention(const std::string& module, const Qwen35Moe& m, ShapeList& list) {
  const uint64_t qkv = 2 * m.keys + m.values;
  list.Add(module + ".dt_bias", {m.value_heads});
  list.Add(module + ".A_log", {m.value_heads});
  list.Add(module + ".conv1d.weight", {qkv, 1, m.kernel});
  list.Add(module + ".norm.weight", {m.value_head_dim});
  list.AddLinear(module + ".out_proj", m.hidden, m.values, false);
  list.AddLinear(module + ".in_proj_qkv", qkv, m.hidden, false);
  list.AddLinear(module + ".in_proj_z", m.values, m.hidden, false);
  list.AddLinear(module + ".in_proj_b", m.value_heads, m.hidden, false);
  list.AddLinear(module + ".in_proj_a", m.value_heads, m.hidden, false);
}

void AddExperts(const std::string& module, const Qwen35Moe& m, ShapeList& list) {
  list.Add(module + ".gate.weight", {m.experts, m.hidden});
  list.Add(module + ".experts.gate_up_proj", {m.experts, 2 * m.expert_inter, m.hidden});
  list.Add(module + ".experts.down_proj", {m.experts, m.hidden, m.expert_inter});
  list.AddGatedMlp(module + ".shared_expert", m.hidden, m.shared_inter, false);
  list.AddLinear(module + ".shared_expert_gate", 1, m.hidden, false);
}

}  // namespace

void ListQwen35Moe(ConfigReader& config, const std::string& prefix, ShapeList& list) {
  const Qwen35Moe m(config);
  const std::vector<bool> full = FullAttention(config, m.layers);
  if (!config.status().ok()) return;
  list.Add(prefix + "embed_tokens.weight", {m.vocab, m.hidden});
  for (uint64_t i = 0; i < m.layers && list.fits(); ++i) {
    const std::string layer = fmt::format("{}layers.{}.", prefix, i);
    if (full[i]) {
      AddFullAttention(layer + "self_attn", m, list);
    } else {
      AddLinearAttention(layer + "linear_attn", m, list);
    }
    AddExperts(layer + "mlp", m, list);
    list.Add(layer + "input_layernorm.weight", {m.hidden});
    list.Add(layer + "post_attention_layernorm.weight", {m.hidden});
  }
  list.Add(prefix + "norm.weight", {m.hidden});
  if (!m.tied) list.Add("lm_head.weight", {m.vocab, m.hidden});
}

}  // namespace gpuledger
