// Llama and its relatives: decoders of one attention, a gated MLP or a mixture of experts, and norms without bias.
#include <fmt/format.h>

#include <array>
#include <span>

#include "synth_shape_list.h"

namespace gpuledger {

// Where a family differs from Llama 1: what its configuration may leave out, and what its layers have.
struct DecoderTraits {
  std::string_view model_type;
  bool kv_heads_given = true;   // num_key_value_heads must be there; otherwise it is num_attention_heads
  bool head_dim_given = false;  // head_dim must be there; otherwise it is hidden_size / num_attention_heads
  bool tied = false;            // if tie_word_embeddings is not there
  bool attention_bias = false;  // the key attention_bias counts
  bool mlp_bias = false;        // the key mlp_bias counts
  bool qkv_bias = false;        // always
  bool fused = false;           // q, k and v are one linear; so are gate and up
  bool experts = false;
  enum class QkNorm : uint8_t { kNone, kShared, kPerHeadIfUsed } qk_norm = QkNorm::kNone;
  std::span<const std::string_view> norms;
};

namespace {

using QkNorm = DecoderTraits::QkNorm;

constexpr std::array<std::string_view, 4> kNorms = {"input_layernorm", "post_attention_layernorm",
                                                    "pre_feedforward_layernorm", "post_feedforward_layernorm"};
constexpr std::span<const std::string_view> kOneNorm = std::span(kNorms).first(1);
constexpr std::span<const std::string_view> kTwoNorms = std::span(kNorms).first(2);

constexpr DecoderTraits kDecoders[] = {
    {.model_type = "llama", .kv_heads_given = false, .attention_bias = true, .mlp_bias = true, .norms = kTwoNorms},
    {.model_type = "mistral", .norms = kTwoNorms},
    {.model_type = "mixtral", .experts = true, .norms = kTwoNorms},
    {.model_type = "qwen2", .qkv_bias = true, .norms = kTwoNorms},
    {.model_type = "qwen3",
     .head_dim_given = true,
     .attention_bias = true,
     .qk_norm = QkNorm::kShared,
     .norms = kTwoNorms},
    {.model_type = "gemma", .head_dim_given = true, .tied = true, .attention_bias = true, .norms = kTwoNorms},
    {.model_type = "gemma2", .head_dim_given = true, .tied = true, .attention_bias = true, .norms = kNorms},
    {.model_type = "phi3", .kv_heads_given = false, .fused = true, .norms = kTwoNorms},
    {.model_type = "cohere",
     .kv_heads_given = false,
     .tied = true,
     .attention_bias = true,
     .qk_norm = QkNorm::kPerHeadIfUsed,
     .norms = kOneNorm},
};

// The configuration's numbers. Wrong ones are in its status.
struct Decoder {
  Decoder(const DecoderTraits& family, ConfigReader& config)
      : traits(family),
        hidden(config.Number("hidden_size")),
        inter(config.Number("intermediate_size")),
        layers(CountOf(config, "num_hidden_layers")),
        heads(config.Number("num_attention_heads")),
        kv_heads(family.kv_heads_given ? config.NumberOrNull("num_key_value_heads", heads)
                                       : config.Number("num_key_value_heads", heads)),
        head_dim(family.head_dim_given ? config.Number("head_dim") : config.Number("head_dim", hidden / heads)),
        vocab(config.Number("vocab_size")),
        experts(family.experts ? CountOf(config, "num_local_experts") : 0),
        whole(IsWholeModel(config)),
        head(!config.Flag("tie_word_embeddings", family.tied) && whole),
        attention_bias(family.attention_bias && config.Flag("attention_bias", false)),
        mlp_bias(family.mlp_bias && config.Flag("mlp_bias", false)),
        qk_norm(family.qk_norm == QkNorm::kShared ||
                (family.qk_norm == QkNorm::kPerHeadIfUsed && config.Flag("use_qk_norm", false))) {}

  const DecoderTraits& traits;
  uint64_t hidden, inter, layers, heads, kv_heads, head_dim, vocab, experts;
  bool whole, head, attention_bias, mlp_bias, qk_norm;
};

void AddAttention(const std::string& module, const Decoder& d, ShapeList& list) {
  const uint64_t q = d.heads * d.head_dim;
  const uint64_t kv = d.kv_heads * d.head_dim;
  const bool bias = d.attention_bias || d.traits.qkv_bias;
  if (d.traits.fused) {
    list.AddLinear(module + ".qkv_proj", q + 2 * kv, d.hidden, bias);
  } else {
    list.AddLinear(module + ".q_proj", q, d.hidden, bias);
    list.AddLinear(module + ".k_proj", kv, d.hidden, bias);
    list.AddLinear(module + ".v_proj", kv, d.hidden, bias);
  }
  list.AddLinear(module + ".o_proj", d.hidden, q, d.attention_bias);
  if (!d.qk_norm) return;
  const bool shared = d.traits.qk_norm == QkNorm::kShared;
  list.Add(module + ".q_norm.weight", shared ? std::vector{d.head_dim} : std::vector{d.heads, d.head_dim});
  list.Add(module + ".k_norm.weight", shared ? std::vector{d.head_dim} : std::vector{d.kv_heads, d.head_dim});
}

void AddExperts(const std::string& module, const Decoder& d, ShapeList& list) {
  list.Add(module + ".gate.weight", {d.experts, d.hidden});
  for (uint64_t e = 0; e < d.experts && list.fits(); ++e) {
    const std::string expert = fmt::format("{}.experts.{}.", module, e);
    list.AddLinear(expert + "w1", d.inter, d.hidden, false);
    list.AddLinear(expert + "w2", d.hidden, d.inter, false);
    list.AddLinear(expert + "w3", d.inter, d.hidden, false);
  }
}

void AddMlp(const std::string& layer, const Decoder& d, ShapeList& list) {
  if (d.traits.experts) {
    AddExperts(layer + "block_sparse_moe", d, list);
  } else if (d.traits.fused) {
    list.AddLinear(layer + "mlp.gate_up_proj", 2 * d.inter, d.hidden, d.mlp_bias);
    list.AddLinear(layer + "mlp.down_proj", d.hidden, d.inter, d.mlp_bias);
  } else {
    list.AddGatedMlp(layer + "mlp", d.hidden, d.inter, d.mlp_bias);
  }
}

}  // namespace

const DecoderTraits* FindDecoder(std::string_view model_type) {
  for (const DecoderTraits& traits : kDecoders) {
    if (traits.model_type == model_type) return &traits;
  }
  return nullptr;
}

void ListDecoder(const DecoderTraits& traits, ConfigReader& config, ShapeList& list) {
  const Decoder d(traits, config);
  if (!config.status().ok()) return;
  const std::string prefix = d.whole ? "model." : "";
  list.Add(prefix + "embed_tokens.weight", {d.vocab, d.hidden});
  for (uint64_t i = 0; i < d.layers && list.fits(); ++i) {
    const std::string layer = fmt::format("{}layers.{}.", prefix, i);
    AddAttention(layer + "self_attn", d, list);
    AddMlp(layer, d, list);
    for (const std::string_view norm : traits.norms) list.Add(fmt::format("{}{}.weight", layer, norm), {d.hidden});
  }
  list.Add(prefix + "norm.weight", {d.hidden});
  if (d.head) list.Add("lm_head.weight", {d.vocab, d.hidden});
}

}  // namespace gpuledger
