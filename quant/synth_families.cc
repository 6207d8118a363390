#include "synth_families.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "file_io.h"
#include "json_text.h"
#include "synth_config.h"
#include "synth_shape_list.h"

namespace gpuledger {

void ListOpt(ConfigReader& config, ShapeList& list) {
  const uint64_t hidden = config.Number("hidden_size");
  const uint64_t layers = CountOf(config, "num_hidden_layers");
  const uint64_t ffn = config.Number("ffn_dim");
  const uint64_t vocab = config.Number("vocab_size");
  const uint64_t embedded = config.Number("word_embed_proj_dim", hidden);
  const uint64_t positions = config.Number("max_position_embeddings");
  const bool bias = config.Flag("enable_bias", true);
  const bool affine = config.Flag("layer_norm_elementwise_affine", true);
  const bool last_norm = config.Flag("do_layer_norm_before", true) && !config.Flag("_remove_final_layer_norm", false);
  const bool whole = IsWholeModel(config);
  const bool head = whole && !config.Flag("tie_word_embeddings", true);
  if (!config.status().ok()) return;

  const std::string prefix = whole ? "model.decoder." : "decoder.";
  list.Add(prefix + "embed_tokens.weight", {vocab, embedded});
  list.Add(prefix + "embed_positions.weight", {positions + 2, hidden});  // the first two are for padding
  if (embedded != hidden) list.AddLinear(prefix + "project_out", embedded, hidden, false);
  if (embedded != hidden) list.AddLinear(prefix + "project_in", hidden, embedded, false);
  if (last_norm && affine) list.AddLayerNorm(prefix + "final_layer_norm", hidden);
  for (uint64_t i = 0; i < layers && list.fits(); ++i) {
    const std::string layer = fmt::format("{}layers.{}.", prefix, i);
    for (const char* const linear : {"k_proj", "v_proj", "q_proj", "out_proj"}) {
      list.AddLinear(fmt::format("{}self_attn.{}", layer, linear), hidden, hidden, bias);
    }
    if (affine) list.AddLayerNorm(layer + "self_attn_layer_norm", hidden);
    list.AddLinear(layer + "fc1", ffn, hidden, bias);
    list.AddLinear(layer + "fc2", hidden, ffn, bias);
    if (affine) list.AddLayerNorm(layer + "final_layer_norm", hidden);
  }
  if (head) list.Add("lm_head.weight", {vocab, embedded});
}

void ListBert(ConfigReader& config, ShapeList& list) {
  const uint64_t hidden = config.Number("hidden_size");
  const uint64_t layers = CountOf(config, "num_hidden_layers");
  const uint64_t inter = config.Number("intermediate_size");
  const uint64_t vocab = config.Number("vocab_size");
  const uint64_t positions = config.Number("max_position_embeddings");
  const uint64_t types = config.Number("type_vocab_size");
  const std::string name = ClassOf(config);
  const bool masked = name == "BertForMaskedLM";
  if (!masked && !name.empty() && name != "BertModel") {
    config.Fail("architectures", fmt::format("names {}; known are BertModel and BertForMaskedLM", Quoted(name)));
  }
  const bool tied = config.Flag("tie_word_embeddings", true);
  if (!config.status().ok()) return;

  const std::string prefix = masked ? "bert." : "";
  list.Add(prefix + "embeddings.word_embeddings.weight", {vocab, hidden});
  list.Add(prefix + "embeddings.position_embeddings.weight", {positions, hidden});
  list.Add(prefix + "embeddings.token_type_embeddings.weight", {types, hidden});
  list.AddLayerNorm(prefix + "embeddings.LayerNorm", hidden);
  for (uint64_t i = 0; i < layers && list.fits(); ++i) {
    const std::string layer = fmt::format("{}encoder.layer.{}.", prefix, i);
    for (const char* const linear : {"self.query", "self.key", "self.value", "output.dense"}) {
      list.AddLinear(fmt::format("{}attention.{}", layer, linear), hidden, hidden, true);
    }
    list.AddLayerNorm(layer + "attention.output.LayerNorm", hidden);
    list.AddLinear(layer + "intermediate.dense", inter, hidden, true);
    list.AddLinear(layer + "output.dense", hidden, inter, true);
    list.AddLayerNorm(layer + "output.LayerNorm", hidden);
  }
  if (!masked) return list.AddLinear("pooler.dense", hidden, hidden, true);
  list.Add("cls.predictions.bias", {vocab});
  list.AddLinear("cls.predictions.transform.dense", hidden, hidden, true);
  list.AddLayerNorm("cls.predictions.transform.LayerNorm", hidden);
  if (!tied) list.AddLinear("cls.predictions.decoder", vocab, hidden, true);
}

namespace {

// `dtype`, or its older name torch_dtype; without either it is float32, as for transformers.
Dtype DtypeOf(ConfigReader& config, ConfigReader& text) {
  for (ConfigReader* const reader : {&config, &text}) {
    for (const std::string_view key : {"dtype", "torch_dtype"}) {
      const std::string name = reader->Text(key, "");
      if (name.empty()) continue;
      if (name == "bfloat16") return Dtype::kBF16;
      if (name == "float16") return Dtype::kF16;
      if (name != "float32") {
        reader->Fail(key, fmt::format("is {}; it must be bfloat16, float16 or float32", Quoted(name)));
      }
      return Dtype::kF32;
    }
  }
  return Dtype::kF32;
}

// The part of a configuration that describes the text model.
const nlohmann::ordered_json& TextConfig(const nlohmann::ordered_json& config) {
  const auto found = config.find("text_config");
  return found != config.end() && found->is_object() ? *found : config;
}

void ListFamily(const std::string& model_type, ConfigReader& config, ConfigReader& text, ShapeList& list) {
  if (const DecoderTraits* const decoder = FindDecoder(model_type)) return ListDecoder(*decoder, config, list);
  if (model_type == "opt") return ListOpt(config, list);
  if (model_type == "bert") return ListBert(config, list);
  if (model_type == "qwen3_5_moe") return ListQwen35Moe(text, "model.language_model.", list);
  if (model_type == "qwen3_5_moe_text") return ListQwen35Moe(config, "model.", list);
  config.Fail("model_type", fmt::format("is {}; known are bert, cohere, gemma, gemma2, llama, mistral, mixtral, opt, "
                                        "phi3, qwen2, qwen3, qwen3_5_moe and qwen3_5_moe_text",
                                        Quoted(model_type)));
}

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ShapesFromConfig(const std::string& name, std::string_view config) {
  const absl::StatusOr<nlohmann::ordered_json> parsed = ParseJsonObject(name, config);
  if (!parsed.ok()) return parsed.status();
  ConfigReader reader(name, *parsed);
  const nlohmann::ordered_json& text_config = TextConfig(*parsed);
  ConfigReader text(name, text_config, &text_config == &*parsed ? "" : "text_config.");
  if (!reader.Has("model_type")) reader.Fail("model_type", "is missing");
  ShapeList list(DtypeOf(reader, text));
  if (reader.status().ok() && text.status().ok()) ListFamily(reader.Text("model_type", ""), reader, text, list);
  if (!reader.status().ok()) return reader.status();
  if (!text.status().ok()) return text.status();
  if (!list.fits()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: describes more than {} tensors, or more than 2^64 bytes", name, kMostSynthTensors));
  }
  return list.Take();
}

}  // namespace gpuledger
