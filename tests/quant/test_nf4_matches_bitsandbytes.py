"""Our NF4 codec and the bitsandbytes wheel's CPU backend give the same bytes.

The library under test is the one that GPULEDGER_LIBRARY names, else build/release/lib/libgpuledger.so.
GPULEDGER_TEST_SEED repeats a run; each failure prints the seed.
"""

import ctypes
import os
import pathlib
import secrets

import pytest

torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")

BLOCK = 64
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
SIZES = [1, 2, 3, 31, 63, 64, 65, 66, 127, 128, 129, 7 * 63, 64 * 64, 64 * 64 + 1, 300 * 401]


def load_library():
    default = pathlib.Path(__file__).parents[2] / "build/release/lib/libgpuledger.so"
    library = ctypes.CDLL(os.environ.get("GPULEDGER_LIBRARY", str(default)))
    pointer, count = ctypes.c_void_p, ctypes.c_uint64
    library.gpuledger_quantize_nf4.argtypes = [ctypes.c_int, pointer, count, pointer, pointer]
    library.gpuledger_dequantize_nf4.argtypes = [pointer, pointer, count, pointer]
    return library


LIBRARY = load_library()


@pytest.fixture
def generator():
    seed = int(os.environ.get("GPULEDGER_TEST_SEED", secrets.randbits(32)))
    print(f"GPULEDGER_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)


def ours(values):
    n = values.numel()
    packed = torch.empty((n + 1) // 2, dtype=torch.uint8)
    absmax = torch.empty((n + BLOCK - 1) // BLOCK, dtype=torch.float32)
    status = LIBRARY.gpuledger_quantize_nf4(
        DTYPES[values.dtype], values.data_ptr(), n, packed.data_ptr(), absmax.data_ptr()
    )
    assert status == 0
    return packed, absmax


def theirs(values):
    packed, state = functional.quantize_4bit(values, blocksize=BLOCK, quant_type="nf4")
    return packed.flatten(), state.absmax


def assert_same_bytes(values):
    packed, absmax = ours(values)
    expected_packed, expected_absmax = theirs(values)
    differing = (packed != expected_packed).nonzero().flatten()
    assert differing.numel() == 0, (
        f"byte {int(differing[0])} of {packed.numel()}: {int(packed[differing[0]]):#04x}, "
        f"bitsandbytes has {int(expected_packed[differing[0]]):#04x}"
    )
    bits, expected_bits = absmax.view(torch.int32), expected_absmax.view(torch.int32)
    differing = (bits != expected_bits).nonzero().flatten()
    assert differing.numel() == 0, (
        f"absmax {int(differing[0])} of {absmax.numel()}: {int(bits[differing[0]]) & 0xFFFFFFFF:#x}, "
        f"bitsandbytes has {int(expected_bits[differing[0]]) & 0xFFFFFFFF:#x}"
    )


def from_bits(patterns, dtype):
    """Values with these bit patterns; a pattern is an int of the type's width."""
    width = 32 if dtype == torch.float32 else 16
    signed = [p - (1 << width) if p >> (width - 1) else p for p in patterns]
    return torch.tensor(signed, dtype=BITS[dtype]).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_random_values_of_any_size(dtype, size, generator):
    for scale in (1.0, 1e-3, 0.02, 50.0):
        assert_same_bytes((torch.randn(size, generator=generator) * scale).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [4096, 4096 + 63, 63, 5])
def test_random_bit_patterns_with_their_nans_infinities_and_subnormals(dtype, size, generator):
    width = 32 if dtype == torch.float32 else 16
    for _ in range(20):
        bits = torch.randint(-(1 << (width - 1)), 1 << (width - 1), (size,), generator=generator)
        assert_same_bytes(bits.to(BITS[dtype]).view(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern_beside_ordinary_values(dtype, generator):
    patterns = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    values = torch.randn(1 << 16, BLOCK, generator=generator).to(dtype)
    values[:, 17] = patterns
    assert_same_bytes(values.flatten())
    # ... and in a partial last block, every 61st of them.
    for pattern in patterns[::61]:
        tail = torch.randn(5, generator=generator).to(dtype)
        tail[3] = pattern
        assert_same_bytes(tail)


def around_cut_points(scale):
    """For each cut point c: c * scale, and the float32 values up to three ulp away."""
    table = torch.tensor([float(v) for v in functional.get_4bit_type("nf4", device="cpu")])
    cuts = (table[1:] + table[:-1]) / 2
    steps = torch.arange(-3, 4, dtype=torch.int32)
    bits = (cuts * scale).view(torch.int32)[:, None] + steps[None, :]
    return torch.cat([bits.flatten().view(torch.float32), table * scale])


@pytest.mark.parametrize("dtype", DTYPES)
def test_cut_points_and_their_neighbours(dtype, generator):
    scales = [1.0, 2.0, 0.5, 3.0, 1 / 3, 0.7, 123.456]
    scales += (torch.rand(200, generator=generator) * 10 + 0.01).tolist()
    for scale in scales:
        candidates = around_cut_points(scale).to(dtype)
        for block in candidates.split(BLOCK - 1):  # the last one is partial, and divides
            assert_same_bytes(torch.cat([torch.tensor([scale]).to(dtype), block]))
            assert_same_bytes(torch.cat([block, torch.tensor([-scale]).to(dtype)]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128, 3, 4, 65, 100])
def test_blocks_of_zeros_and_of_one_value(dtype, size):
    for value in (0.0, -0.0, 1.0, -1.0, 1e-40, 5e-39, 1e-38, -1e-38, 1.2e-38, 6e-8, 65504.0, 3e38):
        assert_same_bytes(torch.full((size,), value).to(dtype))


NANS = {
    torch.float32: [0x7FC00000, 0xFFC00000, 0x7FC12345, 0x7F812345, 0xFFABCDEF, 0xFFFFFFFF],
    torch.float16: [0x7E00, 0xFE00, 0x7C01, 0xFD55, 0x7FFF],
    torch.bfloat16: [0x7FC0, 0xFFC0, 0x7F81, 0xFFAB, 0x7FFF],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128, 3, 37, 63, 100])
def test_nans_and_infinities_at_every_position(dtype, size, generator):
    infinity = float("inf")
    specials = list(from_bits(NANS[dtype], dtype)) + [torch.tensor(v).to(dtype) for v in (infinity, -infinity)]
    for first in range(size):
        values = torch.randn(size, generator=generator).to(dtype)
        values[first] = specials[first % len(specials)]
        assert_same_bytes(values)
        values[(first * 7 + 3) % size] = specials[(first + 1) % len(specials)]
        assert_same_bytes(values)


def test_no_elements():
    assert LIBRARY.gpuledger_quantize_nf4(0, None, 0, None, None) == 0


def test_bad_arguments_have_a_status():
    byte, value = (ctypes.c_uint8 * 8)(), (ctypes.c_float * 8)()
    assert LIBRARY.gpuledger_quantize_nf4(3, value, 1, byte, value) == 1
    assert LIBRARY.gpuledger_quantize_nf4(0, None, 1, byte, value) == 2
    assert LIBRARY.gpuledger_quantize_nf4(0, value, 2**64 - 1, byte, value) == 3
    assert LIBRARY.gpuledger_dequantize_nf4(byte, value, 1, None) == 2


@pytest.mark.parametrize("size", [64, 7 * 63, 300 * 400, 5 * 129])
def test_dequantized_values(size, generator):
    # One row: of a matrix whose rows are no multiple of 64, bitsandbytes 0.50.2 dequantizes on the CPU with wrong scales.
    values = torch.randn(size, generator=generator)
    packed, state = functional.quantize_4bit(values, blocksize=BLOCK, quant_type="nf4")
    expected = functional.dequantize_4bit(packed, state)
    out = torch.empty(size, dtype=torch.float32)
    assert LIBRARY.gpuledger_dequantize_nf4(packed.data_ptr(), state.absmax.data_ptr(), size, out.data_ptr()) == 0
    assert torch.equal(out.view(torch.int32), expected.flatten().view(torch.int32))
