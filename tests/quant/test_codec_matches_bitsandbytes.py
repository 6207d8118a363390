"""Our codec and the bitsandbytes wheel's CPU backend give the same bytes.

The library under test is the one that GPULEDGER_LIBRARY names, else build/release/lib/libgpuledger.so.
GPULEDGER_TEST_SEED repeats a run; each failure prints the seed. Where the wheel and its documentation differ, the wheel
decides.
"""

import itertools
import os
import secrets
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")

from codec_library import BITS, DTYPES, TYPES, Codec  # noqa: E402


@pytest.fixture(autouse=True)
def not_compiled():
    """bitsandbytes compiles some of its PyTorch code at the first call: seconds, and the same bytes."""
    with torch.compiler.set_stance("force_eager"):
        yield


CODEC = Codec()
BLOCKS = [32, 64, 128, 256, 512, 1024, 2048, 4096]
SIZES = [1, 2, 3, 31, 63, 64, 65, 66, 127, 128, 129, 7 * 63, 64 * 64, 64 * 64 + 1, 300 * 401]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
every_type = pytest.mark.parametrize("quant_type", TYPES)
every_block = pytest.mark.parametrize("block", BLOCKS)


@pytest.fixture
def generator():
    seed = int(os.environ.get("GPULEDGER_TEST_SEED", secrets.randbits(32)))
    print(f"GPULEDGER_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)


def assert_same_bits(what, ours, theirs):
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[ours.element_size()]
    ours, theirs = ours.flatten().view(width), theirs.flatten().view(width)
    assert ours.numel() == theirs.numel(), what
    differing = (ours != theirs).nonzero().flatten()
    if differing.numel() != 0:
        at, mask = int(differing[0]), (1 << (8 * ours.element_size())) - 1
        pytest.fail(f"{what} {at} of {ours.numel()}: {int(ours[at]) & mask:#x}, bitsandbytes has "
                    f"{int(theirs[at]) & mask:#x}; {differing.numel()} differ")


def assert_same_bytes(values, quant_type, block):
    packed, absmax = CODEC.quantize(values, quant_type, block)
    expected, state = functional.quantize_4bit(values, blocksize=block, quant_type=quant_type)
    name = f"{quant_type}, blocks of {block}, {values.numel()} x {values.dtype}"
    assert_same_bits(f"{name}: byte", packed, expected)
    assert_same_bits(f"{name}: absmax", absmax, state.absmax)


def from_bits(patterns, dtype):
    """Values with these bit patterns; a pattern is an int of the type's width."""
    width = 32 if dtype == torch.float32 else 16
    signed = [p - (1 << width) if p >> (width - 1) else p for p in patterns]
    return torch.tensor(signed, dtype=BITS[dtype]).view(dtype)


@every_type
def test_tables(quant_type):
    theirs = functional.get_4bit_type(quant_type, device="cpu")
    assert_same_bits("quant_map", CODEC.table(quant_type), theirs)


@every_dtype
@every_type
@pytest.mark.parametrize("size", SIZES)
def test_random_values_of_any_size(dtype, quant_type, size, generator):
    for scale in (1.0, 1e-3, 0.02, 50.0):
        assert_same_bytes((torch.randn(size, generator=generator) * scale).to(dtype), quant_type, 64)


@every_dtype
@every_type
@every_block
def test_random_values_in_every_block_size_with_partial_last_blocks(dtype, quant_type, block, generator):
    for size in (block - 1, block, block + 1, 5 * block, 5 * block + block // 2, 7 * (block - 1), 3 * block + 3):
        assert_same_bytes((torch.randn(size, generator=generator) * 0.02).to(dtype), quant_type, block)


@every_dtype
@every_type
@every_block
def test_random_bit_patterns_with_their_nans_infinities_and_subnormals(dtype, quant_type, block, generator):
    width = 32 if dtype == torch.float32 else 16
    for size in (16 * block, 4 * block + block - 1, block - 1, 5):
        for _ in range(5):
            bits = torch.randint(-(1 << (width - 1)), 1 << (width - 1), (size,), generator=generator)
            assert_same_bytes(bits.to(BITS[dtype]).view(dtype), quant_type, block)


@every_type
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern_beside_ordinary_values(dtype, quant_type, generator):
    patterns = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    values = torch.randn(1 << 16, 64, generator=generator).to(dtype)
    values[:, 17] = patterns
    assert_same_bytes(values.flatten(), quant_type, 64)
    # ... and in a partial last block, every 61st of them.
    for pattern in patterns[::61]:
        tail = torch.randn(5, generator=generator).to(dtype)
        tail[3] = pattern
        assert_same_bytes(tail, quant_type, 64)


def around_cut_points(quant_type, scale, ulps=4):
    """For each cut point c: c * scale, and the float32 values up to `ulps` away; the table, both signs of all."""
    table = torch.unique(functional.get_4bit_type(quant_type, device="cpu"))
    cuts = (table[1:] + table[:-1]) / 2
    steps = torch.arange(-ulps, ulps + 1, dtype=torch.int32)
    bits = (cuts * scale).view(torch.int32)[:, None] + steps[None, :]
    near = torch.cat([bits.flatten().view(torch.float32), table * scale])
    near = near[near.abs() <= scale]
    return torch.cat([near, -near])


@every_dtype
@every_type
@pytest.mark.parametrize("block", [32, 64, 256, 4096])
def test_cut_points_and_their_neighbours(dtype, quant_type, block, generator):
    scales = [1.0, 2.0, 0.5, 3.0, 1 / 3, 0.7, 123.456]
    scales += (torch.rand(20 if block > 64 else 100, generator=generator) * 10 + 0.01).tolist()
    for scale in scales:
        near = around_cut_points(quant_type, scale).to(dtype)
        parts = near.split(block - 1)
        for part in parts:  # as a full block, which multiplies, and as a partial one, which divides
            largest = torch.tensor([scale]).to(dtype)
            rest = torch.zeros(block - 1 - part.numel(), dtype=dtype)
            assert_same_bytes(torch.cat([largest, part, rest]), quant_type, block)
            assert_same_bytes(torch.cat([part[: block - 2], -largest]), quant_type, block)


@every_dtype
@every_type
def test_the_smallest_values_beside_one(dtype, quant_type):
    """FP4 has two zeros: which of them is told by the sign of the smallest values."""
    tiny = [0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 2e-38, -2e-38, 6e-8, -6e-8, 1e-6, -1e-6, 0.0026, -0.0026]
    for size in (64, 63, 32, 128):
        values = torch.zeros(size)
        values[: len(tiny)] = torch.tensor(tiny)
        values[20] = 1.0
        assert_same_bytes(values.to(dtype), quant_type, 64)


@every_dtype
@every_type
@pytest.mark.parametrize("block", [32, 64, 1024])
@pytest.mark.parametrize("size", [64, 128, 3, 4, 65, 100, 1024, 1500])
def test_blocks_of_zeros_and_of_one_value(dtype, quant_type, block, size):
    for value in (0.0, -0.0, 1.0, -1.0, 1e-40, 5e-39, 1e-38, -1e-38, 1.2e-38, 6e-8, 65504.0, 3e38):
        assert_same_bytes(torch.full((size,), value).to(dtype), quant_type, block)


NANS = {
    torch.float32: [0x7FC00000, 0xFFC00000, 0x7FC12345, 0x7F812345, 0xFFABCDEF, 0xFFFFFFFF],
    torch.float16: [0x7E00, 0xFE00, 0x7C01, 0xFD55, 0x7FFF],
    torch.bfloat16: [0x7FC0, 0xFFC0, 0x7F81, 0xFFAB, 0x7FFF],
}


@every_dtype
@every_type
@pytest.mark.parametrize("size", [64, 128, 3, 37, 63, 100])
def test_nans_and_infinities_at_every_position(dtype, quant_type, size, generator):
    infinity = float("inf")
    specials = list(from_bits(NANS[dtype], dtype)) + [torch.tensor(v).to(dtype) for v in (infinity, -infinity)]
    for first in range(size):
        values = torch.randn(size, generator=generator).to(dtype)
        values[first] = specials[first % len(specials)]
        assert_same_bytes(values, quant_type, 64)
        values[(first * 7 + 3) % size] = specials[(first + 1) % len(specials)]
        assert_same_bytes(values, quant_type, 64)


@every_dtype
@every_type
@every_block
def test_dequantized_values(dtype, quant_type, block, generator):
    # One row: of a matrix whose rows are no multiple of the block, bitsandbytes 0.50.2 dequantizes on the CPU with wrong
    # scales.
    for size in (block, 9 * block, 5 * block + block // 2, 2):
        values = torch.randn(size, generator=generator).to(dtype)
        packed, state = functional.quantize_4bit(values, blocksize=block, quant_type=quant_type)
        expected = functional.dequantize_4bit(packed, state)
        assert expected.dtype == dtype
        ours = CODEC.dequantize(packed, state.absmax, size, quant_type, block, dtype)
        if size == 2:
            # Too few for the wheel's vectors: what it does with single values gives FP4's code 8 the sign that it has.
            assert torch.equal(ours, expected.flatten())
        else:
            assert_same_bits(f"{quant_type}, blocks of {block}: value", ours, expected)


@every_dtype
@every_type
def test_dequantized_values_of_extreme_scales(dtype, quant_type):
    """Subnormal, overflowing and infinite products, every code, rounded to the type."""
    scales = [0.0, 1e-45, 1e-40, 1e-38, 6e-8, 3e-8, 1e-7, 6.1e-5, 5.9e-5, 65504.0, 65519.0, 65520.0, 1e5, 3.3e38, 3.4028e38,
              float("inf")]
    n = 64 * len(scales)
    packed = (torch.arange(32, dtype=torch.uint8) * 8 + 7).repeat(len(scales))
    absmax = torch.tensor(scales)
    state = functional.QuantState(absmax=absmax, shape=torch.Size([n]), dtype=dtype, blocksize=64, quant_type=quant_type)
    expected = functional.dequantize_4bit(packed.unsqueeze(1), state).flatten()
    ours = CODEC.dequantize(packed, absmax, n, quant_type, 64, dtype)
    # A NaN (infinity times zero) is one in both; its bits differ between PyTorch's own code paths.
    nan = expected.isnan()
    assert torch.equal(ours.isnan(), nan)
    if dtype == torch.bfloat16:
        # Subnormal bfloat16: the instruction of AVX512_BF16, which bitsandbytes uses where there is one, makes them
        # zero; elsewhere it rounds, as we do everywhere. Compared with PyTorch's own rounding instead.
        exact = CODEC.dequantize(packed, absmax, n, quant_type, 64, torch.float32)
        small = exact.abs() < 2.0**-126
        assert_same_bits("subnormal", ours[small], exact[small].to(dtype))
        assert bool((expected[small].abs() <= exact[small].abs().to(dtype)).all())
        nan = nan | small
    assert_same_bits("value", ours[~nan], expected[~nan])


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_table_of_double_quantization():
    assert_same_bits("nested_quant_map", CODEC.nested_table(), functional.create_dynamic_map())


SCALE_COUNTS = [*range(1, 70), 127, 128, 255, 256, 257, 511, 512, 513, 1000, 4096, 5000, 16384, 40000, 65536, 100003, 300001]


@pytest.mark.parametrize("capability", ["default", "avx2", None])
def test_offset_is_the_mean_in_the_order_of_one_thread_of_pytorch(capability, generator):
    """Whatever vector width PyTorch dispatches to; None is what it chooses itself."""
    counts = SCALE_COUNTS + [2**22 + 5, 2**25 - 1, 2**25 + 77]  # above 2^25 its levels grow
    seed = generator.initial_seed()
    script = f"""if 1:
        import torch
        torch.set_num_threads(1)
        for count in {counts}:
            for scale in {("0.1", "1.0", "3e4") if capability is None else ("0.1",)}:
                generator = torch.Generator().manual_seed({seed} + count)
                absmax = torch.rand(count, generator=generator) * float(scale)
                print(count, scale, int(absmax.mean().view(torch.int32)))
    """
    environment = dict(os.environ)
    environment.pop("ATEN_CPU_CAPABILITY", None)
    if capability:
        environment["ATEN_CPU_CAPABILITY"] = capability
    out = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in out.splitlines()]
    assert len(lines) >= len(counts)
    for count, scale, bits in lines:
        own = torch.Generator().manual_seed(seed + int(count))
        absmax = torch.rand(int(count), generator=own) * float(scale)
        ours = torch.tensor(CODEC.offset(absmax), dtype=torch.float32).view(torch.int32)
        assert int(ours) == int(bits), f"{count} scales up to {scale}, capability {capability}"


def assert_same_scales(absmax):
    """Double-quantizes scales with both."""
    offset = absmax.mean()
    assert_same_bits("offset", torch.tensor([CODEC.offset(absmax)], dtype=torch.float32), offset.reshape(1))
    expected, state = functional.quantize_blockwise(absmax - offset, blocksize=256)
    codes, nested = CODEC.quantize_absmax(absmax, float(offset))
    assert_same_bits("code of scale", codes, expected)
    assert_same_bits("nested absmax", nested, state.absmax)
    restored = functional.dequantize_blockwise(expected, state)
    restored += offset
    ours = CODEC.restore_absmax(codes, nested, float(offset))
    nan = restored.isnan()
    assert torch.equal(ours.isnan(), nan)
    assert_same_bits("restored scale", ours[~nan], restored[~nan])


@pytest.mark.parametrize("count", [1, 2, 7, 255, 256, 257, 1000, 256 * 40, 70001])
def test_double_quantization_of_random_scales(count, generator, one_thread):
    for scale in (1.0, 0.1, 1e-3, 1e-30, 1e30):
        assert_same_scales(torch.rand(count, generator=generator) * scale)
        assert_same_scales((torch.randn(count, generator=generator) * 0.1 + 1).abs() * scale)
        assert_same_scales(torch.randn(count, generator=generator) * scale)


def test_double_quantization_of_random_bit_patterns(generator, one_thread):
    for _ in range(50):
        bits = torch.randint(-(1 << 31), 1 << 31, (1000,), generator=generator).to(torch.int32)
        assert_same_nested_codes(bits.view(torch.float32))


def assert_same_nested_codes(relative):
    """The codes of values that are already relative to their mean."""
    expected, state = functional.quantize_blockwise(relative, blocksize=256)
    codes, nested = CODEC.quantize_absmax(relative, 0.0)
    assert_same_bits("code of scale", codes, expected)
    assert_same_bits("nested absmax", nested, state.absmax)


def test_double_quantization_where_its_codes_change(generator):
    """bitsandbytes' CPU backend finds a code by one of 65536 steps: around the bounds between all of them that matter."""
    table = functional.create_dynamic_map()
    steps = torch.round(((table[1:] + table[:-1]).double() / 2 + 1) * 32767.5)
    bounds = torch.cat([(steps + d + 0.5) / 32767.5 - 1 for d in (-1, 0, 1)])
    for scale in [1.0, 3.0, 0.7, 0.013, *(torch.rand(20, generator=generator) * 10 + 1e-3).tolist()]:
        bits = (bounds * scale).float().view(torch.int32)
        near = torch.cat([(bits + d).view(torch.float32) for d in range(-5, 6)])
        near = near[near.abs() <= scale]
        for block in near.split(255):
            assert_same_nested_codes(torch.cat([torch.tensor([scale]), block]))


def test_double_quantization_of_special_scales(one_thread):
    inf, nan = float("inf"), float("nan")
    for values in ([0.0] * 256, [0.0] * 10, [1.0] * 300, [inf, 1.0], [nan, 1.0, 2.0], [1.0, nan], [nan] * 256, [inf, -inf, 1.0],
                   [1e-40, 5e-41, 0.0, -5e-41], [3e-39, 1.5e-39, -3e-39], [3.4e38, 1e38, -1e38], [1e-38] * 256):
        assert_same_nested_codes(torch.tensor(values))
    assert_same_scales(torch.full((300,), 0.125))
    assert_same_scales(torch.zeros(300))


@every_dtype
@every_type
@every_block
def test_double_quantized_weights(dtype, quant_type, block, generator, one_thread):
    values = (torch.randn(300 * block + 17, generator=generator) * 0.02).to(dtype)
    packed, absmax = CODEC.quantize(values, quant_type, block)
    offset = CODEC.offset(absmax)
    codes, nested = CODEC.quantize_absmax(absmax, offset)
    expected, state = functional.quantize_4bit(values, blocksize=block, quant_type=quant_type, compress_statistics=True)
    assert_same_bits("byte", packed, expected)
    assert_same_bits("offset", torch.tensor([offset], dtype=torch.float32), state.offset.reshape(1))
    assert_same_bits("code of scale", codes, state.absmax)
    assert_same_bits("nested absmax", nested, state.state2.absmax)


def available_bytes():
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


@pytest.mark.stress
@every_type
def test_a_weight_of_more_than_2_to_the_31_elements(quant_type, generator):
    n = 2**31 + 2**20 + 77
    if available_bytes() < 8 * 10**9:
        pytest.skip(f"needs 8 GB of memory, {available_bytes()} B are available")
    pattern = (torch.randn(2**22 + 64 * 3, generator=generator) * 0.02).to(torch.bfloat16)
    values = torch.empty(n, dtype=torch.bfloat16)
    for begin in range(0, n, pattern.numel()):
        values[begin : begin + pattern.numel()] = pattern[: n - begin]
    packed, absmax = CODEC.quantize(values, quant_type, 64)
    side = 2**19
    for middle in (side, 2**30, 2**31 - side, 2**31, 2**31 + side, n // 64 * 64 - side):
        begin, end = middle - side, min(middle + side, n)
        expected, state = functional.quantize_4bit(values[begin:end].clone(), blocksize=64, quant_type=quant_type)
        assert_same_bits(f"from {begin}: byte", packed[begin // 2 : (end + 1) // 2], expected)
        assert_same_bits(f"from {begin}: absmax", absmax[begin // 64 : (end + 63) // 64], state.absmax)
    begin = n // 64 * 64 - 640
    expected, state = functional.quantize_4bit(values[begin:].clone(), blocksize=64, quant_type=quant_type)
    assert_same_bits("the end: byte", packed[begin // 2 :], expected)
    assert_same_bits("the end: absmax", absmax[begin // 64 :], state.absmax)


def test_no_elements():
    empty = torch.empty(0)
    for dtype, quant_type, block in itertools.product(DTYPES, TYPES, BLOCKS):
        packed, absmax = CODEC.quantize(empty.to(dtype), quant_type, block)
        assert packed.numel() == 0 and absmax.numel() == 0
