"""`gpuledger synth`: transformers loads what it writes; the shapes are transformers' own; nothing is left if it stops."""

import json
import os
import resource
import signal
import statistics
import subprocess
import time

import command
import huggingface_hub
import numpy
import pytest
import safetensors.torch
import torch
import transformers
from command import BINARY, answer
from safetensors import safe_open

TINY = ["tiny-opt", "tiny-llama", "tiny-command-r", "tiny-mixtral", "tiny-qwen3.5-moe"]


def gpuledger(*arguments, code=0):
    ran = command.gpuledger(*arguments)
    assert ran.returncode == code, ran.stderr
    return ran


def synth(*arguments):
    """The JSON object that `gpuledger synth` prints."""
    return answer("synth", *arguments)


def tensors_of(directory):
    """{name: (shape, dtype)} of all files."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                assert name not in found
                found[name] = (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype())
    return found


@pytest.mark.parametrize("shard_size", ["5GiB", "300KiB"])
@pytest.mark.parametrize("name", TINY)
def test_transformers_loads_each_tiny_model_without_a_key_too_few_or_too_many(name, shard_size, tmp_path):
    out = tmp_path / name
    answer = synth(name, "--out", out, "--shard-size", shard_size)
    assert (out / "model.safetensors").exists() == (shard_size == "5GiB")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, dtype="auto", local_files_only=True)
    assert not any(info.values()), info
    assert model.dtype == (torch.float16 if name == "tiny-opt" else torch.bfloat16)
    assert model.num_parameters() == answer["parameters"]
    with torch.inference_mode():
        assert torch.isfinite(model.float()(input_ids=torch.tensor([[3, 4, 5, 6]])).logits).all()


def test_shards_are_cut_as_the_hub_cuts_them(tmp_path):
    synth("tiny-llama", "--out", tmp_path / "whole")
    synth("tiny-llama", "--out", tmp_path / "cut", "--shard-size", 1000 * 1000)
    index = json.loads((tmp_path / "cut/model.safetensors.index.json").read_text())
    whole = safetensors.torch.load_file(tmp_path / "whole/model.safetensors")
    # Published files are cut in the order of the model's modules.
    in_order = [n for n in transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()]
    cut = huggingface_hub.split_torch_state_dict_into_shards({n: whole[n] for n in in_order}, max_shard_size=1000 * 1000)
    assert index["weight_map"] == cut.tensor_to_filename and len(cut.filename_to_tensors) > 2
    assert index["metadata"] == {"total_size": cut.metadata["total_size"], "total_parameters": 1639680}
    assert sorted(p.name for p in (tmp_path / "cut").glob("*.safetensors")) == sorted(cut.filename_to_tensors)
    for name, file in index["weight_map"].items():
        assert torch.equal(safetensors.torch.load_file(tmp_path / "cut" / file)[name], whole[name])


SMALL = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=99, bos_token_id=1, eos_token_id=2,
             pad_token_id=0)
GATED = dict(SMALL, intermediate_size=160, num_key_value_heads=2)
QWEN = dict(SMALL, num_key_value_heads=2, num_hidden_layers=5, head_dim=48, moe_intermediate_size=24,
            shared_expert_intermediate_size=40, num_experts=6, num_experts_per_tok=2, linear_num_key_heads=2,
            linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=32)
CONFIGS = {
    "opt, norms before": ("opt", dict(SMALL, ffn_dim=96, max_position_embeddings=50)),
    "opt, norms after, projected": ("opt", dict(SMALL, ffn_dim=96, max_position_embeddings=50, word_embed_proj_dim=32,
                                                do_layer_norm_before=False)),
    "opt, no biases": ("opt", dict(SMALL, ffn_dim=96, enable_bias=False, layer_norm_elementwise_affine=False)),
    "llama": ("llama", dict(GATED)),
    "llama, tied, biases, wide heads": ("llama", dict(GATED, tie_word_embeddings=True, attention_bias=True,
                                                      mlp_bias=True, head_dim=24)),
    "mistral": ("mistral", dict(GATED)),
    "mistral, wide heads": ("mistral", dict(GATED, head_dim=24)),
    "qwen2": ("qwen2", dict(GATED)),
    "qwen2, tied": ("qwen2", dict(GATED, tie_word_embeddings=True)),
    "qwen3": ("qwen3", dict(GATED, head_dim=32)),
    "qwen3, biases": ("qwen3", dict(GATED, head_dim=32, attention_bias=True)),
    "gemma": ("gemma", dict(GATED, head_dim=24)),
    "gemma2": ("gemma2", dict(GATED, head_dim=24)),
    "phi3": ("phi3", dict(GATED)),
    "cohere": ("cohere", dict(GATED)),
    "cohere, norms of heads": ("cohere", dict(GATED, use_qk_norm=True, attention_bias=True)),
    "mixtral": ("mixtral", dict(GATED, num_local_experts=3)),
    "bert": ("bert", dict(SMALL, intermediate_size=160, max_position_embeddings=40)),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", QWEN),
    "qwen3_5_moe_text, layer types": ("qwen3_5_moe_text", dict(QWEN, num_hidden_layers=2, attention_bias=True,
                                                               layer_types=["full_attention", "linear_attention"])),
}
CLASSES = [(case, "AutoModel" if kind[0] == "bert" else "AutoModelForCausalLM") for case, kind in CONFIGS.items()] + [
    ("bert", "AutoModelForMaskedLM"), ("llama", "AutoModel"), ("opt, norms before", "AutoModel")]


def fused(tensors):
    """With per-expert tensors of Qwen3.5 as the published checkpoints have them, fused."""
    experts = {n: s for n, s in tensors.items() if ".mlp.experts." in n}
    result = {n: s for n, s in tensors.items() if n not in experts}
    for layer in {n[:n.index("experts.") + 8] for n in experts}:
        mine = {n[len(layer):]: s for n, s in experts.items() if n.startswith(layer)}
        ([inter, hidden], dtype), count = mine["0.up_proj.weight"], len(mine) // 3
        result[layer + "gate_up_proj"] = ([count, 2 * inter, hidden], dtype)
        result[layer + "down_proj"] = ([count, hidden, inter], dtype)
    return result


@pytest.mark.parametrize("case, auto", CLASSES)
def test_names_and_shapes_from_a_config_are_those_that_transformers_saves(case, auto, tmp_path):
    model_type, arguments = CONFIGS[case]
    config = transformers.AutoConfig.for_model(model_type, **arguments)
    model = getattr(transformers, auto).from_config(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    synth(tmp_path / "theirs" / "config.json", "--out", tmp_path / "ours")
    theirs = tensors_of(tmp_path / "theirs")
    assert tensors_of(tmp_path / "ours") == (fused(theirs) if model_type.startswith("qwen3_5") else theirs)
    assert (tmp_path / "ours" / "config.json").read_text() == (tmp_path / "theirs" / "config.json").read_text()


def test_the_text_part_of_a_multimodal_config_has_the_published_prefix(tmp_path):
    config = transformers.AutoConfig.for_model("qwen3_5_moe", text_config=QWEN, vision_config=dict(
        depth=1, hidden_size=32, num_heads=2, intermediate_size=64, out_hidden_size=64))
    model = transformers.AutoModelForMultimodalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    synth(tmp_path / "theirs" / "config.json", "--out", tmp_path / "ours")
    theirs = {n: s for n, s in fused(tensors_of(tmp_path / "theirs")).items() if not n.startswith("model.visual.")}
    assert tensors_of(tmp_path / "ours") == theirs


def mix(x):
    x = numpy.uint64(x)
    x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return x ^ (x >> numpy.uint64(31))


def test_values_are_what_an_implementation_in_python_gives(tmp_path):
    """Quantiles from Python's own NormalDist, picked by the same 64-bit mixes of seed, name and position."""
    synth("tiny-llama", "--out", tmp_path / "model", "--seed", 44728)
    normal = statistics.NormalDist()
    quantiles = torch.tensor([normal.inv_cdf((i + 0.5) / 8192) for i in range(8192)], dtype=torch.float64)
    step = numpy.uint64(0x9E3779B97F4A7C15)
    with numpy.errstate(over="ignore"), safe_open(tmp_path / "model/model.safetensors", "pt") as file:
        for name in file.keys():
            ours = file.get_tensor(name).flatten()
            key = 0xCBF29CE484222325
            for byte in name.encode():
                key = (key ^ byte) * 0x100000001B3 % 2**64
            key = mix(numpy.uint64(key) ^ mix(numpy.uint64(44728) + step))
            bits = mix(key + numpy.arange((len(ours) + 3) // 4, dtype=numpy.uint64) * step)
            lanes = bits[:, None] >> numpy.arange(0, 64, 16, dtype=numpy.uint64)
            picked = torch.from_numpy((lanes & numpy.uint64(8191)).astype(numpy.int64).flatten()[:len(ours)])
            mean = 1 if "norm" in name else 0
            theirs = (mean + 0.02 * quantiles[picked]).float().bfloat16()
            assert torch.equal(ours, theirs), name


def test_list_names_every_model(tmp_path):
    listed = json.loads(gpuledger("synth", "--list", "--json").stdout)["shapes"]
    assert {"opt-350m", "llama-3-8b", "llama-3-70b", "command-r", "mixtral-8x7b", "qwen3.5-35b-a3b",
            "qwen3.5-moe-4l", *TINY} == {s["name"] for s in listed}
    text = gpuledger("synth", "--list").stdout
    assert all(s["name"] in text and s["description"] in text for s in listed)


def test_summary_counts_what_was_written(tmp_path):
    answer = synth("tiny-opt", "--out", tmp_path / "a", "--seed", 5)
    tensors = tensors_of(tmp_path / "a")
    assert answer["tensors"] == len(tensors) and answer["bytes"] == 2 * answer["parameters"] == 2 * 495104
    assert answer["seed"] == 5 and answer["seconds"] > 0 and answer["out"] == str(tmp_path / "a")
    text = gpuledger("synth", "tiny-opt", "--out", tmp_path / "b", "--seed", 5).stdout
    assert f"{len(tensors)} tensors, seed 5" in text and "GB/s" in text
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_bad_arguments_are_sentences_and_leave_nothing(tmp_path):
    out = tmp_path / "out"
    for arguments, code, sentence in [
        (["tiny-opt"], 2, "--out is missing"),
        (["--out", out], 2, "SHAPES is missing"),
        (["gpt-5", "--out", out], 2, "neither the path of a config.json nor one of opt-350m"),
        (["tiny-opt", "--out", tmp_path], 2, "already exists"),
        (["tiny-opt", "--out", tmp_path / "no/where"], 2, "No such file or directory"),
        (["tiny-opt", "--out", out, "--shard-size", "big"], 2, "--shard-size"),
        (["tiny-opt", "--out", out, "--seed", "-1"], 2, "--seed"),
    ]:
        assert sentence in gpuledger("synth", *arguments, code=code).stderr, arguments
    assert list(tmp_path.iterdir()) == []


def config_of_layers(path, layers, hidden):
    """A Llama of about 24 * hidden**2 bytes a layer."""
    path.write_text(json.dumps(dict(
        model_type="llama", dtype="bfloat16", hidden_size=hidden, intermediate_size=8 * hidden // 3,
        num_attention_heads=32, vocab_size=1000, num_hidden_layers=layers)))
    return path


def limit_files():
    """If what a test stops or has refused were written after all, it would not be more than this."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 30, 4 << 30))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored below a background job, say


def test_a_model_that_the_disk_cannot_hold_is_refused_at_once(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    config = config_of_layers(tmp_path / "config.json", 2 * free // (24 * 8192**2) + 1, 8192)
    ran = subprocess.run([BINARY, "synth", config, "--out", tmp_path / "out"], capture_output=True, text=True,
                         preexec_fn=limit_files)
    assert ran.returncode == 2
    assert "on disk, and" in ran.stderr and "are free; free" in ran.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_stopped_while_it_writes_it_leaves_no_model(number, code, tmp_path):
    # Three GB take over a second; it is stopped once the first bytes are there.
    config = config_of_layers(tmp_path / "config.json", 8, 4096)
    place = tmp_path / "place"
    place.mkdir()
    process = subprocess.Popen([BINARY, "synth", config, "--out", place / "out"], stderr=subprocess.PIPE,
                               preexec_fn=limit_files)
    deadline = time.monotonic() + 60
    while sum(p.stat().st_size for p in place.rglob("*safetensors*")) < 2**20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, text = process.communicate(timeout=120)
    assert process.returncode == code
    assert not (place / "out").exists()
    if number != signal.SIGKILL:
        assert b"stopped, and nothing is left" in text
        assert list(place.iterdir()) == []
    else:  # what is left is hidden, has no config.json, and no file under its final name
        assert all(p.name.startswith(".") for p in place.iterdir())
        assert not list(place.rglob("config.json")) and not list(place.rglob("*.safetensors"))
