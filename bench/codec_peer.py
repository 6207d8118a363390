"""bitsandbytes' CPU backend on the weights that bench/codec_bench.cc measures ours on."""

import statistics
import time

import torch


def gigabytes_per_second(quant_type, dtype, block, elements, repeats=5, threads=1):
    """Medians (quantize, dequantize), in GB of unquantized elements a second; dtype: "bfloat16", "float16", "float32"."""
    from bitsandbytes import functional

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values = (torch.randn(elements, generator=torch.Generator().manual_seed(1)) * 0.02).to(getattr(torch, dtype))
        size = values.numel() * values.element_size()
        quantize, dequantize = [], []
        for repeat in range(repeats + 1):
            started = time.perf_counter()
            packed, state = functional.quantize_4bit(values, blocksize=block, quant_type=quant_type)
            between = time.perf_counter()
            functional.dequantize_4bit(packed, state)
            ended = time.perf_counter()
            if repeat > 0:  # the first warms up
                quantize.append(size / (between - started) / 1e9)
                dequantize.append(size / (ended - between) / 1e9)
        return statistics.median(quantize), statistics.median(dequantize)
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    print("type  dtype     block  quantize GB/s  dequantize GB/s   (bitsandbytes, CPU, one thread)")
    for quant_type in ("nf4", "fp4"):
        for dtype in ("bfloat16", "float16", "float32"):
            for block in (64, 1024):
                rates = gigabytes_per_second(quant_type, dtype, block, 4096 * 4096)
                print(f"{quant_type}   {dtype:9s} {block:5d}  {rates[0]:13.3f}  {rates[1]:15.3f}")
