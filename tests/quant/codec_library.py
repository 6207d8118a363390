"""The C interface of the codec, over tensors, for the tests beside this file."""

import ctypes
import os
import pathlib

import torch

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
TYPES = {"nf4": 0, "fp4": 1}
DIALECTS = {"cpu": 0, "cuda": 1}


def load_library():
    default = pathlib.Path(__file__).parents[2] / "build/release/lib/libgpuledger.so"
    return ctypes.CDLL(os.environ.get("GPULEDGER_LIBRARY", str(default)))


class Codec:
    """Each call checks that the status is 0."""

    def __init__(self):
        self.library = library = load_library()
        i, u32, u64, p, f = ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_float
        library.gpuledger_quantize_4bit.argtypes = [i, u32, i, i, p, u64, p, p]
        library.gpuledger_dequantize_4bit.argtypes = [i, u32, p, p, u64, i, p]
        library.gpuledger_absmax_offset.argtypes = [p, u64, p]
        library.gpuledger_quantize_absmax.argtypes = [i, p, u64, f, p, p]
        library.gpuledger_restore_absmax.argtypes = [p, p, u64, f, p]
        library.gpuledger_code_table.argtypes = [i, p]
        library.gpuledger_nested_table.argtypes = [p]

    def quantize(self, values, quant_type, block, dialect="cpu"):
        n = values.numel()
        assert values.is_contiguous()
        packed = torch.empty((n + 1) // 2, dtype=torch.uint8)
        absmax = torch.empty((n + block - 1) // block, dtype=torch.float32)
        assert 0 == self.library.gpuledger_quantize_4bit(
            TYPES[quant_type], block, DIALECTS[dialect], DTYPES[values.dtype], values.data_ptr(), n, packed.data_ptr(),
            absmax.data_ptr())
        return packed, absmax

    def dequantize(self, packed, absmax, n, quant_type, block, dtype):
        out = torch.empty(n, dtype=dtype)
        assert 0 == self.library.gpuledger_dequantize_4bit(
            TYPES[quant_type], block, packed.data_ptr(), absmax.data_ptr(), n, DTYPES[dtype], out.data_ptr())
        return out

    def offset(self, absmax):
        offset = ctypes.c_float()
        assert 0 == self.library.gpuledger_absmax_offset(absmax.data_ptr(), absmax.numel(), ctypes.byref(offset))
        return offset.value

    def quantize_absmax(self, absmax, offset, dialect="cpu"):
        n = absmax.numel()
        codes = torch.empty(n, dtype=torch.uint8)
        nested = torch.empty((n + 255) // 256, dtype=torch.float32)
        assert 0 == self.library.gpuledger_quantize_absmax(
            DIALECTS[dialect], absmax.data_ptr(), n, offset, codes.data_ptr(), nested.data_ptr())
        return codes, nested

    def restore_absmax(self, codes, nested, offset):
        absmax = torch.empty(codes.numel(), dtype=torch.float32)
        assert 0 == self.library.gpuledger_restore_absmax(
            codes.data_ptr(), nested.data_ptr(), codes.numel(), offset, absmax.data_ptr())
        return absmax

    def table(self, quant_type):
        table = torch.empty(16)
        assert 0 == self.library.gpuledger_code_table(TYPES[quant_type], table.data_ptr())
        return table

    def nested_table(self):
        table = torch.empty(256)
        assert 0 == self.library.gpuledger_nested_table(table.data_ptr())
        return table
