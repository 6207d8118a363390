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


def number(value):
    """As FORMAT.md has it: seven bits a byte, the lowest first."""
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def numbers(*values):
    return b"".join(map(number, values))


def allocate(block, size, owner=1, role=0):
    """An entry with all of its fields; differences are twice the number (zigzag)."""
    return b"\x00" + numbers(20, 2 * block, size, 5, owner, role, 0, 3, 1, 0, 16, 2, (size + 511) // 512 * 512)


def free(kind, block):
    return bytes([kind]) + numbers(20, 2 * block, 1, 0, 2)


def extra(kind, *, id=0, value=0, more=0, third=0, text=b""):
    return bytes([15, kind]) + numbers(20, id, value, more, third, 0, len(text)) + text + b"\0"


SETTLE = [extra(5, value=step) for step in range(5)]
ENTRIES = [
    [extra(0, id=1, text=b"load/layers.0.up.weight"), allocate(1, 4096), free(1, 0), free(2, 0), extra(8)],
    [allocate(1, 4096), extra(6, id=1, value=1, text=b"sys.last_exc"), *SETTLE, extra(7, id=2)],
    [allocate(1, 9), extra(4, text=b"step"), allocate(1, 2**62), extra(4), allocate(1, 2**64 - 1), extra(4), extra(4)],
    [extra(11, id=1, value=9000, more=2**21), extra(12, id=1, value=1, third=9000), extra(13, value=1, more=1), extra(14, id=3)],
    [extra(3, id=1, text=b"/lib/a.so"), extra(2, id=3) + b"\x01\x00\x01\x07\x01f\x01g", allocate(0, 1), free(2, 0)],
]
HEADER = b"GLUSTRC\n" + struct.pack("<IIIIqQQQQQQII", 1, 4096, 7, 6, 0, 0, 4096, 0, 0, 0, 0, 1, 0)

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
    "trace": [
        b"\0" + HEADER.ljust(4096, b"\0"),
        b"\0" + HEADER.replace(b"\x01", b"\x09", 1),
        *(bytes([4]) + b"".join(entries) for entries in ENTRIES),
        bytes([1]) + b"".join(map(b"".join, ENTRIES)),
    ],
    "ipc_handles": [
        struct.pack("<8sIIQ", b"gplgIPC1", 4711, 1, 99) + struct.pack("<IQQ", 5, 1, 2 << 20),
        struct.pack("<8sIIQ", b"gplgIPC1", 4711, 2, 0) + struct.pack("<IQQ", 5, 1, 2 << 20) + struct.pack("<IQQ", 6, 2, 1 << 56),
        struct.pack("<8sIIQ", b"gplgIPC2", 1, 0xFFFFFFFF, 0),
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
