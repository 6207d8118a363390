"""Which weights become 4-bit: what `gpuledger plan` says, held against transformers on tiny models of each family.

Transformers' answer is the set of modules that are Linear4bit after from_pretrained with a BitsAndBytesConfig. The two
may differ only where `Case.experts` and `Case.conv1d` list it:

  experts  a mixture's experts: quantized here, left in 16 bit by transformers
  conv1d   GPT-2's transposed linears: kept here, transposed and quantized by transformers
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess

import bitsandbytes
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("GPULEDGER_BINARY", ROOT / "build/release/bin/gpuledger"))

torch.set_num_threads(1)  # the models are tiny

DECODER = dict(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, head_dim=16, max_position_embeddings=64, pad_token_id=0)
TIED = DECODER | dict(tie_word_embeddings=True)
BERT = dict(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=70)
DISTILBERT = dict(vocab_size=128, dim=64, hidden_dim=128, n_layers=2, n_heads=4)
OPT = dict(vocab_size=128, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
           max_position_embeddings=64, word_embed_proj_dim=64)
OPT_350M = OPT | dict(word_embed_proj_dim=32, do_layer_norm_before=False)
GPT2 = dict(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64)
T5 = dict(vocab_size=128, d_model=64, d_ff=128, d_kv=16, num_heads=4, num_layers=2)
T5_GATED = T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
SIGLIP = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=16,
              patch_size=4)
GEMMA3 = dict(text_config=DECODER, vision_config=SIGLIP, mm_tokens_per_image=4)
MIXTRAL = DECODER | dict(num_local_experts=2, num_experts_per_tok=2)
MOE = dict(moe_intermediate_size=32, num_experts=2, num_experts_per_tok=2)
QWEN2_MOE = DECODER | MOE | dict(shared_expert_intermediate_size=32, decoder_sparse_step=1)
QWEN3_MOE = DECODER | MOE | dict(decoder_sparse_step=1, mlp_only_layers=[0])
HYBRID = DECODER | dict(layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
                        linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16)
HYBRID_MOE = HYBRID | MOE | dict(shared_expert_intermediate_size=32)
QWEN3_5_VISION = dict(depth=1, hidden_size=32, num_heads=2, intermediate_size=64, out_hidden_size=64,
                      num_position_embeddings=16, patch_size=4)
QWEN3_5 = dict(text_config=HYBRID, vision_config=QWEN3_5_VISION)
QWEN3_5_MOE = dict(text_config=HYBRID_MOE, vision_config=QWEN3_5_VISION)


@dataclasses.dataclass
class Case:
    family: str
    config: dict
    saved_by: str
    loaded_by: str = None
    edit: callable = lambda tensors: tensors  # of the file
    skip_modules: list = None
    in_file: tuple = ()  # (pattern, replacement): from a module's name in the model to its name in the file
    experts: set = dataclasses.field(default_factory=set)
    conv1d: set = dataclasses.field(default_factory=set)

    def __str__(self):
        skip = "" if self.skip_modules is None else f"-skipping-{len(self.skip_modules)}"
        edit = "" if self.edit is Case.edit else f"-{self.edit.__name__}"
        return f"{self.saved_by}{f'-as-{self.loaded_by}' if self.loaded_by else ''}{edit}{skip}"


def of(family, config, *classes, **rest):
    return [Case(family, config, name, **rest) for name in classes]


def heads(family, name, *heads, config=DECODER, **rest):
    return of(family, config, *(f"{name}{head}" for head in heads), **rest)


def mixture(layers, names, experts=(0, 1)):
    """The experts' tensors: `layers` is the name up to and with `experts` of each layer that has some."""
    return {f"{layer}.{expert}.{name}.weight" for layer in layers for expert in experts for name in names}


def fused(layers):
    return {f"{layer}.{name}" for layer in layers for name in ("gate_up_proj", "down_proj")}


W123 = ("w1", "w2", "w3")
GATED = ("gate_proj", "up_proj", "down_proj")


def experts_of(prefix, block="mlp", layers=(0, 1)):
    return [f"{prefix}layers.{layer}.{block}.experts" for layer in layers]


def gpt2_linears(prefix):
    return {f"{prefix}h.{layer}.{name}.weight" for layer in (0, 1)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}


def with_experts_fused(tensors):
    """As Qwen3.5's own files have them; save_pretrained writes one tensor per expert."""
    result = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition("experts.")
        if not rest:
            result[name] = tensor
        elif rest == "0.gate_proj.weight":
            def both(expert):
                return torch.cat([tensors[f"{layer}experts.{expert}.{half}_proj.weight"] for half in ("gate", "up")])
            result[f"{layer}experts.gate_up_proj"] = torch.stack([both(0), both(1)])
        elif rest == "0.down_proj.weight":
            result[f"{layer}experts.down_proj"] = torch.stack([tensor, tensors[f"{layer}experts.1.down_proj.weight"]])
    return result


def with_mtp(tensors):
    mtp = {"mtp.fc.weight": torch.ones(64, 128, dtype=torch.bfloat16),
           "mtp.layers.0.self_attn.q_proj.weight": torch.ones(64, 64, dtype=torch.bfloat16)}
    return with_experts_fused(tensors) | mtp


def with_the_tied_head(tensors):
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


CASES = [
    *heads("bert", "Bert", "Model", "ForMaskedLM", "LMHeadModel", "ForPreTraining", "ForSequenceClassification",
           "ForTokenClassification", "ForQuestionAnswering", "ForNextSentencePrediction", config=BERT),
    # As most files on the Hub: saved with everything, loaded by a class without some of it.
    Case("bert", BERT, "BertForPreTraining", "BertForMaskedLM"),
    Case("bert", BERT, "BertForPreTraining", "BertForSequenceClassification"),
    Case("bert", BERT, "BertForPreTraining", "BertModel"),
    *heads("roberta", "Roberta", "Model", "ForMaskedLM", "ForSequenceClassification", config=BERT),
    Case("roberta", BERT, "RobertaForMaskedLM", "RobertaForTokenClassification"),
    Case("roberta", BERT, "RobertaForMaskedLM", "RobertaModel"),
    *heads("xlm-roberta", "XLMRoberta", "Model", "ForMaskedLM", config=BERT),
    *heads("distilbert", "DistilBert", "Model", "ForMaskedLM", "ForSequenceClassification", config=DISTILBERT),
    Case("distilbert", DISTILBERT, "DistilBertForMaskedLM", "DistilBertForSequenceClassification"),
    *heads("opt", "OPT", "Model", "ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering", config=OPT),
    *heads("opt", "OPT", "Model", "ForCausalLM", config=OPT_350M),
    Case("opt", OPT_350M, "OPTModel", "OPTForCausalLM"),
    *heads("llama", "Llama", "Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification",
           "ForQuestionAnswering"),
    *heads("llama", "Llama", "ForCausalLM", config=TIED),
    Case("llama", TIED, "LlamaForCausalLM", edit=with_the_tied_head),
    Case("llama", DECODER, "LlamaForCausalLM", "LlamaModel"),
    Case("llama", DECODER, "LlamaModel", "LlamaForSequenceClassification"),
    *heads("mistral", "Mistral", "Model", "ForCausalLM", "ForSequenceClassification"),
    *heads("qwen2", "Qwen2", "Model", "ForCausalLM", "ForSequenceClassification"),
    *heads("qwen2", "Qwen2", "ForCausalLM", config=TIED),
    *heads("qwen3", "Qwen3", "Model", "ForCausalLM", "ForSequenceClassification"),
    *heads("gemma", "Gemma", "Model", "ForCausalLM", "ForSequenceClassification"),
    *heads("gemma2", "Gemma2", "Model", "ForCausalLM", "ForSequenceClassification"),
    *of("gemma3_text", DECODER, "Gemma3TextModel", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"),
    *of("gemma3", GEMMA3, "Gemma3ForConditionalGeneration",
        in_file=((r"^model\.language_model", "language_model.model"), (r"^model\.vision_tower", "vision_tower"))),
    *heads("cohere", "Cohere", "Model", "ForCausalLM"),
    *heads("cohere2", "Cohere2", "Model", "ForCausalLM"),
    *heads("phi", "Phi", "Model", "ForCausalLM", "ForSequenceClassification"),
    *heads("phi3", "Phi3", "Model", "ForCausalLM", "ForSequenceClassification"),
    *of("gpt2", GPT2, "GPT2Model", conv1d=gpt2_linears("")),
    *of("gpt2", GPT2, "GPT2LMHeadModel", "GPT2ForSequenceClassification", conv1d=gpt2_linears("transformer.")),
    *heads("t5", "T5", "Model", "ForConditionalGeneration", "EncoderModel", "ForSequenceClassification",
           "ForTokenClassification", config=T5),
    *heads("t5", "T5", "ForConditionalGeneration", config=T5_GATED),
    Case("t5", T5, "T5ForConditionalGeneration", "T5EncoderModel"),
    *heads("mt5", "MT5", "ForConditionalGeneration", config=T5),
    *heads("umt5", "UMT5", "ForConditionalGeneration", config=T5),
    *of("mixtral", MIXTRAL, "MixtralModel", experts=mixture(experts_of("", "block_sparse_moe"), W123)),
    *of("mixtral", MIXTRAL, "MixtralForCausalLM", "MixtralForSequenceClassification",
        experts=mixture(experts_of("model.", "block_sparse_moe"), W123)),
    *of("qwen2_moe", QWEN2_MOE, "Qwen2MoeForCausalLM", experts=mixture(experts_of("model."), GATED)),
    *of("qwen3_moe", QWEN3_MOE, "Qwen3MoeModel", experts=mixture(experts_of("", layers=[1]), GATED)),
    *of("qwen3_moe", QWEN3_MOE, "Qwen3MoeForCausalLM", "Qwen3MoeForSequenceClassification",
        experts=mixture(experts_of("model.", layers=[1]), GATED)),
    *of("qwen3_next", HYBRID_MOE, "Qwen3NextForCausalLM", experts=mixture(experts_of("model."), GATED)),
    *of("qwen3_5_text", HYBRID, "Qwen3_5ForCausalLM"),
    *of("qwen3_5", QWEN3_5, "Qwen3_5ForConditionalGeneration"),
    *of("qwen3_5_moe_text", HYBRID_MOE, "Qwen3_5MoeForCausalLM", experts=mixture(experts_of("model."), GATED)),
    *of("qwen3_5_moe_text", HYBRID_MOE, "Qwen3_5MoeForCausalLM", edit=with_experts_fused,
        experts=fused(experts_of("model."))),
    *of("qwen3_5_moe_text", HYBRID_MOE, "Qwen3_5MoeTextModel", experts=mixture(experts_of(""), GATED)),
    *of("qwen3_5_moe", QWEN3_5_MOE, "Qwen3_5MoeForConditionalGeneration",
        experts=mixture(experts_of("model.language_model."), GATED)),
    *of("qwen3_5_moe", QWEN3_5_MOE, "Qwen3_5MoeForConditionalGeneration", edit=with_mtp,
        experts=fused(experts_of("model.language_model."))),
    Case("qwen3_5", QWEN3_5, "Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM",
         in_file=((r"^model\.layers", "model.language_model.layers"),)),
    # A list of modules not to convert replaces the default, except what is kept in 32 bit.
    *of("llama", DECODER, "LlamaForCausalLM", skip_modules=[]),
    *of("llama", DECODER, "LlamaForCausalLM", skip_modules=["lm_head", "model.layers.0"]),
    *of("llama", DECODER, "LlamaForCausalLM",
        skip_modules=["q_proj", r"model\.layers\.[1-9]\.mlp\..*", "^model.layers.0.mlp.up_proj$", "mlp"]),
    *of("llama", DECODER, "LlamaForSequenceClassification", skip_modules=["lm_head", "k_proj", "layers.1"]),
    Case("llama", DECODER, "LlamaModel", "LlamaForSequenceClassification", skip_modules=["model.layers.0", "score"]),
    Case("llama", DECODER, "LlamaForCausalLM", "LlamaModel", skip_modules=["layers.0.mlp"]),
    *of("bert", BERT, "BertForSequenceClassification", skip_modules=["classifier", "bert.pooler"]),
    *of("t5", T5, "T5ForConditionalGeneration", skip_modules=["lm_head", "encoder.block.0"]),
    *of("gemma3", GEMMA3, "Gemma3ForConditionalGeneration", skip_modules=["lm_head", "model.language_model.layers.0"],
        in_file=((r"^model\.language_model", "language_model.model"), (r"^model\.vision_tower", "vision_tower"))),
]

# Families that the rules do not know: names decide.
UNKNOWN = [
    *heads("stablelm", "StableLm", "Model", "ForCausalLM"),
    *heads("olmo2", "Olmo2", "Model", "ForCausalLM"),
    *heads("granite", "Granite", "ForCausalLM"),
    *heads("starcoder2", "Starcoder2", "ForCausalLM"),
    *heads("gpt_neox", "GPTNeoX", "Model", "ForCausalLM"),
    *heads("electra", "Electra", "Model", "ForMaskedLM", config=BERT | dict(embedding_size=32)),
    *heads("albert", "Albert", "Model", "ForMaskedLM", config=BERT | dict(embedding_size=32)),
    *heads("smollm3", "SmolLM3", "ForCausalLM"),
    *of("olmoe", DECODER | dict(num_experts=2, num_experts_per_tok=2), "OlmoeForCausalLM",
        experts=mixture(experts_of("model."), GATED)),
]


def saved(case, directory):
    """The model's file, with random weights, and the configuration of whoever loads it."""
    torch.manual_seed(44728)
    config = transformers.AutoConfig.for_model(case.family, **case.config)
    getattr(transformers, case.saved_by)(config).to(torch.bfloat16).save_pretrained(directory)
    path = directory / "model.safetensors"
    save_file(case.edit(load_file(path)), path, metadata={"format": "pt"})
    written = json.loads((directory / "config.json").read_text())
    written["architectures"] = [case.loaded_by or case.saved_by]
    if case.skip_modules is not None:
        written["llm_int8_skip_modules"] = case.skip_modules
    (directory / "config.json").write_text(json.dumps(written))
    return directory


def linear4bit(case, directory):
    """Names in the model of the weights that transformers reads from the file and quantizes."""
    wanted = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                             llm_int8_skip_modules=case.skip_modules)
    model, loading = getattr(transformers, case.loaded_by or case.saved_by).from_pretrained(
        directory, quantization_config=wanted, device_map="cpu", output_loading_info=True)
    assert case.loaded_by or not loading["missing_keys"], "the file that we look at is the one that was loaded"
    names = {f"{name}.weight" for name, module in model.named_modules()
             if isinstance(module, bitsandbytes.nn.Linear4bit)}
    return names - set(loading["missing_keys"])


def planned(directory):
    """The plan's weights by name."""
    ran = subprocess.run([BINARY, "plan", directory, "--json"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return {weight["name"]: weight for weight in json.loads(ran.stdout)["weights"]}


def name_in_file(name, case, plan):
    for pattern, replacement in case.in_file:
        name = re.sub(pattern, replacement, name)
    if not case.loaded_by:
        return name
    # The class may have a base prefix where the file has none, or the reverse.
    [found] = [n for n in plan if n == name or n.endswith(f".{name}") or name.endswith(f".{n}")]
    return found


def check_agreement(case, directory):
    """Compares the two and returns the plan."""
    plan = planned(saved(case, directory))
    theirs = {name_in_file(name, case, plan) for name in linear4bit(case, directory)}
    ours = {name for name, weight in plan.items() if weight["action"] == "quantize"}
    assert theirs <= plan.keys()
    assert ours - theirs == case.experts
    assert theirs - ours == case.conv1d
    assert case.conv1d or ours & theirs, "there is something to agree on"
    return plan


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_quantizes_what_transformers_quantizes(case, tmp_path):
    plan = check_agreement(case, tmp_path)
    assert not any("by its name" in weight["reason"] for weight in plan.values())
    for name in case.experts:
        assert plan[name]["reason"] in ("expert", "experts, fused")
    for name in case.conv1d:
        assert plan[name]["reason"] == "Conv1D, stored transposed"
    for name in plan:
        if name.startswith("mtp."):
            assert plan[name]["reason"] == f"not loaded by {case.saved_by}"


@pytest.mark.parametrize("case", UNKNOWN, ids=str)
def test_names_decide_as_transformers_does_where_the_family_is_unknown(case, tmp_path):
    plan = check_agreement(case, tmp_path)
    quantized = {weight["reason"] for weight in plan.values() if weight["action"] == "quantize"}
    assert "linear (by its name)" in quantized <= {"linear (by its name)", "expert (by its name)"}
