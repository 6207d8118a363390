"""What bitsandbytes stores of a 4-bit weight is read, and written anew to the byte; transformers loads the result."""

import json
import os
import pathlib
import subprocess

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")
safetensors_torch = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("GPULEDGER_BINARY", ROOT / "build/release/bin/gpuledger"))
REWRITE = BINARY.parent / "rewrite_checkpoint"


def rewrite(source, out):
    done = subprocess.run([REWRITE, source, out], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def quantized(name, weight, **format):
    """The tensors that bitsandbytes stores for a weight, by name."""
    packed, state = functional.quantize_4bit(weight, **format)
    parts = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {name: packed, **parts}


def save(directory, tensors, config):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    safetensors_torch.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("blocksize", [32, 64, 128, 256, 512, 1024, 2048, 4096])
def test_the_whole_file_is_what_bitsandbytes_and_safetensors_write(tmp_path, quant_type, nested, blocksize):
    generator = torch.Generator().manual_seed(blocksize)
    tensors = {"norm.weight": torch.ones(7), "embed.weight": torch.randn(5, 3, generator=generator).half()}
    for name, shape, dtype, scale in [
        ("a.weight", (64, 64), torch.bfloat16, 0.02),
        ("b.weight", (7, 63), torch.float16, 1.0),
        ("c.weight", (300, 400), torch.float32, 1e-6),
        ("d.weight", (1, 1), torch.float32, 3e4),
    ]:
        weight = (torch.randn(shape, generator=generator) * scale).to(dtype)
        tensors |= quantized(name, weight, blocksize=blocksize, quant_type=quant_type, compress_statistics=nested)
    save(tmp_path / "in", tensors, {"model_type": "bert"})
    rewrite(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "in/model.safetensors").read_bytes()
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert (config["bnb_4bit_quant_type"], config["bnb_4bit_use_double_quant"]) == (quant_type, nested)

    # A model that says it is in 4 bit already comes out the same, configuration and all.
    rewrite(tmp_path / "out", tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("quant_type, blocksize, nested", [("nf4", 64, True), ("fp4", 128, False), ("nf4", 4096, True)])
def test_transformers_loads_what_was_written(tmp_path, quant_type, blocksize, nested):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, dtype="bfloat16",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    tensors, expected = {}, {}
    for name, value in model.state_dict().items():
        if "_proj" in name:
            tensors |= quantized(name, value, blocksize=blocksize, quant_type=quant_type, compress_statistics=nested)
            packed, state = functional.quantize_4bit(
                value, blocksize=blocksize, quant_type=quant_type, compress_statistics=nested
            )
            expected[name] = functional.dequantize_4bit(packed, state)
        else:
            tensors[name] = value.contiguous()
    save(tmp_path / "in", tensors, config.to_dict())
    rewrite(tmp_path / "in", tmp_path / "out")

    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", device_map={"": "cpu"}, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert len(expected) == 14
    for name, value in expected.items():
        weight = loaded.get_parameter(name)
        assert weight.quant_state.blocksize == blocksize and weight.quant_state.nested == nested
        assert torch.equal(functional.dequantize_4bit(weight.data, weight.quant_state), value), name
