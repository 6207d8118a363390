"""make_corpus.py TARGET FOLDER: writes the seeds of a fuzz target, small valid inputs and near misses."""

import gzip
import json
import pathlib
import struct
import sys


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 64]}
ROWS = b"""op,id,size,stream,time_us
a,0,4096,0,7
a,1,1,1,8
r,0,4096,0,9
a,2,513,0,10
c,0,4096,0,11
r,1,1,1,12
c,1,1,1,12
"""
NESTED = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.048828125}

SEEDS = {
    "safetensors": [
        safetensors({}),
        safetensors({"a": tensor("F32", [2], 0, 8)}, b"01234567"),
        safetensors(
            {"__metadata__": {"format": "pt"}, "a": tensor("BF16", [1, 2], 0, 4), "b": tensor("U8", [], 4, 5)}, b"01234"
        ),
        safetensors({"none": tensor("I64", [0, 7], 0, 0), "b": tensor("F4", [4], 0, 2)}, b"01"),
        safetensors({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 4, 8)}, b"01234567"),
        safetensors({"a": tensor("U8", [5], 0, 5), "b": tensor("U8", [4], 4, 8)}, b"01234567"),
        safetensors(b'{"a":' + b"[" * 64),
        struct.pack("<Q", 2**64 - 1) + b"{}",
    ],
    "shard_index": [
        b'{"metadata": {"total_size": 8}, "weight_map": {"a": "m-00001-of-00002.safetensors", "b": "c.safetensors"}}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": "../a.safetensors"}}',
        b'{"weight_map": {"a": "a.safetensors", "\\u0061": "b.safetensors"}}',
        b'{"x": [1, -1, 1.5, null, true, "", {"y": {}}], "weight_map": {"a": "a.safetensors"}}',
    ],
    "config": [
        b'{"model_type": "bert", "layer_norm_eps": 1e-12, "z": "\xc3\xa9"}',
        b'{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}',
        b'{"quantization_config": {"quant_method": "gptq", "bits": 4}}',
        b'{"quantization_config": null, "compression_config": {"load_in_8bit": true}}',
        b'{"a": ' + b"[" * 62 + b"]" * 62 + b"}",
    ],
    "quant_state": [
        json.dumps(STATE).encode(),
        json.dumps(STATE | NESTED).encode(),
        b'{"quant_type": "fp4", "shape": []}',
    ],
    "bytes": [b"8MiB", b"1.5GiB", b"4096", b"2GB", b"0x10", b"1e30TiB", b"-1"],
    "allocation_trace": [
        b"1" + ROWS,
        b"0" + gzip.compress(ROWS, mtime=0),
        b"0" + gzip.compress(ROWS, mtime=0)[:-6],
        b"1" + ROWS.replace(b"4096", b"9223372036854775808"),
        b"1" + ROWS.replace(b"r,", b"x,"),
        b"1" + ROWS + b"r,0,4096,0,30\n",
        b"1op,id,size,stream,time_us\n",
    ],
    "globs": [
        b"model/*.weight\nmodel/a.weight",
        b"**.self_attn.*\nmodel/layers.0.self_attn.q",
        b"a**b***c*\naxbyczc",
        b"*" * 40 + b"x\n" + b"a" * 60,
    ],
}

if __name__ == "__main__":
    target, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    for number, seed in enumerate(SEEDS[target]):
        (folder / f"seed-{number}").write_bytes(seed)
