// Facts of published models: their numbers, as their configurations give them. Shapes follow from these alone.
#include "synth_shapes.h"

#include <iterator>

#include "gpuledger/synth.h"

namespace gpuledger {
namespace {

struct KnownModel {
  SynthShape shape;
  std::string_view config;
};

constexpr KnownModel kModels[] = {
    {{"opt-350m", "OPT 350M, float16: 331,196,416 parameters"},
     R"({
  "architectures": [
    "OPTForCausalLM"
  ],
  "model_type": "opt",
  "torch_dtype": "float16",
  "vocab_size": 50272,
  "hidden_size": 1024,
  "num_hidden_layers": 24,
  "ffn_dim": 4096,
  "num_attention_heads": 16,
  "word_embed_proj_dim": 512,
  "max_position_embeddings": 2048,
  "do_layer_norm_before": false,
  "activation_function": "relu",
  "bos_token_id": 2,
  "eos_token_id": 2,
  "pad_token_id": 1
})"},
    {{"llama-3-8b", "Llama 3 8B, bfloat16: 8,030,261,248 parameters"},
     R"({
  "architectures": [
    "LlamaForCausalLM"
  ],
  "model_type": "llama",
  "torch_dtype": "bfloat16",
  "vocab_size": 128256,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "hidden_act": "silu",
  "attention_bias": false,
  "tie_word_embeddings": false,
  "bos_token_id": 128000,
  "eos_token_id": 128001
})"},
    {{"llama-3-70b", "Llama 3 70B, bfloat16: 70,553,706,496 parameters"},
     R"({
  "architectures": [
    "LlamaForCausalLM"
  ],
  "model_type": "llama",
  "torch_dtype": "bfloat16",
  "vocab_size": 128256,
  "hidden_size": 8192,
  "intermediate_size": 28672,
  "num_hidden_layers": 80,
  "num_attention_heads": 64,
  "num_key_value_heads": 8,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "hidden_act": "silu",
  "attention_bias": false,
  "tie_word_embeddings": false,
  "bos_token_id": 128000,
  "eos_token_id": 128001
})"},
    {{"command-r", "Command R v01, bfloat16: 34,980,831,232 parameters"},
     R"({
  "architectures": [
    "CohereForCausalLM"
  ],
  "model_type": "cohere",
  "torch_dtype": "bfloat16",
  "vocab_size": 256000,
  "hidden_size": 8192,
  "intermediate_size": 22528,
  "num_hidden_layers": 40,
  "num_attention_heads": 64,
  "num_key_value_heads": 64,
  "max_position_embeddings": 8192,
  "layer_norm_eps": 1e-05,
  "rope_theta": 8000000.0,
  "logit_scale": 0.0625,
  "hidden_act": "silu",
  "use_qk_norm": false,
  "tie_word_embeddings": true,
  "bos_token_id": 5,
  "eos_token_id": 255001,
  "pad_token_id": 0
})"},
    {{"mixtral-8x7b", "Mixtral 8x7B, bfloat16, per-expert tensors: 46,702,792,704 parameters"},
     R"({
  "architectures": [
    "MixtralForCausalLM"
  ],
  "model_type": "mixtral",
  "torch_dtype": "bfloat16",
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "num_local_experts": 8,
  "num_experts_per_tok": 2,
  "max_position_embeddings": 32768,
  "rms_norm_eps": 1e-05,
  "rope_theta": 1000000.0,
  "hidden_act": "silu",
  "sliding_window": null,
  "tie_word_embeddings": false,
  "bos_token_id": 1,
  "eos_token_id": 2
})"},
    {{"qwen3.5-35b-a3b", "Qwen3.5 35B-A3B, text part, bfloat16, fused experts: 34,660,610,688 parameters"},
     R"({
  "architectures": [
    "Qwen3_5MoeForConditionalGeneration"
  ],
  "model_type": "qwen3_5_moe",
  "text_config": {
    "model_type": "qwen3_5_moe_text",
    "dtype": "bfloat16",
    "vocab_size": 248320,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "attention_bias": false,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "tie_word_embeddings": false
  },
  "tie_word_embeddings": false
})"},
    {{"qwen3.5-moe-4l", "the first four layers of qwen3.5-35b-a3b: 4,381,469,760 parameters"},
     R"({
  "architectures": [
    "Qwen3_5MoeForConditionalGeneration"
  ],
  "model_type": "qwen3_5_moe",
  "text_config": {
    "model_type": "qwen3_5_moe_text",
    "dtype": "bfloat16",
    "vocab_size": 248320,
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "attention_bias": false,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "tie_word_embeddings": false
  },
  "tie_word_embeddings": false
})"},
    {{"tiny-opt", "opt-350m's structure, 2 layers: 495,104 parameters"},
     R"({
  "architectures": [
    "OPTForCausalLM"
  ],
  "model_type": "opt",
  "torch_dtype": "float16",
  "vocab_size": 1024,
  "hidden_size": 128,
  "num_hidden_layers": 2,
  "ffn_dim": 512,
  "num_attention_heads": 4,
  "word_embed_proj_dim": 64,
  "max_position_embeddings": 128,
  "do_layer_norm_before": false,
  "activation_function": "relu",
  "bos_token_id": 2,
  "eos_token_id": 2,
  "pad_token_id": 1
})"},
    {{"tiny-llama", "llama-3-8b's structure, 2 layers: 1,639,680 parameters"},
     R"({
  "architectures": [
    "LlamaForCausalLM"
  ],
  "model_type": "llama",
  "torch_dtype": "bfloat16",
  "vocab_size": 1024,
  "hidden_size": 256,
  "intermediate_size": 512,
  "num_hidden_layers": 2,
  "num_attention_heads": 8,
  "num_key_value_heads": 2,
  "max_position_embeddings": 256,
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "hidden_act": "silu",
  "attention_bias": false,
  "tie_word_embeddings": false,
  "bos_token_id": 1,
  "eos_token_id": 2
})"},
    {{"tiny-command-r", "command-r's structure, 2 layers: 1,573,632 parameters"},
     R"({
  "architectures": [
    "CohereForCausalLM"
  ],
  "model_type": "cohere",
  "torch_dtype": "bfloat16",
  "vocab_size": 1024,
  "hidden_size": 256,
  "intermediate_size": 512,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 4,
  "max_position_embeddings": 256,
  "layer_norm_eps": 1e-05,
  "rope_theta": 8000000.0,
  "logit_scale": 0.0625,
  "hidden_act": "silu",
  "use_qk_norm": false,
  "tie_word_embeddings": true,
  "bos_token_id": 5,
  "eos_token_id": 2,
  "pad_token_id": 0
})"},
    {{"tiny-mixtral", "mixtral-8x7b's structure, 2 layers of 4 experts: 1,148,544 parameters"},
     R"({
  "architectures": [
    "MixtralForCausalLM"
  ],
  "model_type": "mixtral",
  "torch_dtype": "bfloat16",
  "vocab_size": 1024,
  "hidden_size": 128,
  "intermediate_size": 256,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "num_local_experts": 4,
  "num_experts_per_tok": 2,
  "max_position_embeddings": 32768,
  "rms_norm_eps": 1e-05,
  "rope_theta": 1000000.0,
  "hidden_act": "silu",
  "sliding_window": null,
  "tie_word_embeddings": false,
  "bos_token_id": 1,
  "eos_token_id": 2
})"},
    {{"tiny-qwen3.5-moe", "qwen3.5-35b-a3b's structure, 4 layers of 8 experts: 1,486,712 parameters"},
     R"({
  "architectures": [
    "Qwen3_5MoeForConditionalGeneration"
  ],
  "model_type": "qwen3_5_moe",
  "text_config": {
    "model_type": "qwen3_5_moe_text",
    "dtype": "bfloat16",
    "vocab_size": 1024,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "full_attention_interval": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "attention_bias": false,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "tie_word_embeddings": false
  },
  "tie_word_embeddings": false
})"},
};

}  // namespace

const std::vector<SynthShape>& SynthShapes() {
  static const std::vector<SynthShape>* const shapes = [] {
    auto* const list = new std::vector<SynthShape>;
    for (const KnownModel& model : kModels) list->push_back(model.shape);
    return list;
  }();
  return *shapes;
}

std::string_view KnownConfig(std::string_view name) {
  for (const KnownModel& model : kModels) {
    if (model.shape.name == name) return model.config;
  }
  return {};
}

}  // namespace gpuledger
