"""One measurement of PyTorch on a CUDA under whichever allocator its environment chose; prints JSON. torch_path.py starts it.

    torch_workloads.py empty|train|generate --size tiny|1b [--history none|records|stacks] [--install LIBRARY]
"""

import argparse
import ctypes
import dataclasses
import json
import os
import random
import statistics
import threading
import time

import torch
from torch import nn
from torch.nn import functional

MIB = 1 << 20
THREADS = (1, 2, 4, 16)


@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    layers: int
    heads: int
    vocabulary: int
    batch: int
    length: int
    generated: int
    steps: int
    dtype: torch.dtype


SIZES = {
    # 4 million parameters: for the fake CUDA, where kernels do nothing and all time is the host's.
    "tiny": Size(width=256, layers=4, heads=4, vocabulary=1000, batch=4, length=128, generated=64, steps=30, dtype=torch.float32),
    # 1.03 billion parameters, in bfloat16 with optimizer state in the same.
    "1b": Size(width=2048, layers=18, heads=16, vocabulary=32000, batch=4, length=1024, generated=256, steps=30, dtype=torch.bfloat16),
}


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm; `cache` is the keys and values so far."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x, cache=None):
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1))
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.second(x)))), (k, v)


class Transformer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)

    def forward(self, tokens, caches=None):
        x, kept = self.embedding(tokens), []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, caches[i] if caches else None)
            kept.append(cache)
        return self.norm(x) @ self.embedding.weight.T, kept


def make(size):
    with torch.device("cuda"):
        torch.set_default_dtype(size.dtype)
        return Transformer(size)


def figures(model, seconds, warm):
    """`seconds` of each step; the first `warm` are not counted, but their memory is."""
    counted = seconds[warm:]
    return {"parameters": sum(p.numel() for p in model.parameters()), "ms": statistics.median(counted) * 1e3,
            "ms_90_percent": sorted(counted)[len(counted) * 9 // 10] * 1e3, "peak_reserved": torch.cuda.max_memory_reserved(),
            "peak_allocated": torch.cuda.max_memory_allocated()}


def train(size):
    """Steps of AdamW on batches whose length differs from step to step, as those of a text data set do."""
    model = make(size)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    dice, seconds = random.Random(1), []
    for _ in range(size.steps + 5):
        tokens = torch.zeros(size.batch, dice.randrange(size.length // 2, size.length + 1), dtype=torch.long).cuda()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        logits, _ = model(tokens)
        functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        del logits
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return figures(model, seconds, 5)


@torch.inference_mode()
def generate(size):
    """Token by token, with a cache of keys and values that grows by one each time; four prompts of different length."""
    model, dice, seconds = make(size), random.Random(2), []
    for _ in range(4):
        tokens, caches = torch.zeros(size.batch, dice.randrange(size.length // 4, size.length // 2), dtype=torch.long).cuda(), None
        for _ in range(size.generated):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            logits, caches = model(tokens, caches)
            tokens = torch.zeros_like(logits[:, -1:].argmax(-1))
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    return figures(model, seconds, size.generated // 2)


def nanoseconds(function, calls=20_000, batches=9):
    """Of one call: the median of batches."""
    found = []
    for _ in range(batches):
        begin = time.perf_counter_ns()
        for _ in range(calls):
            function()
        found.append((time.perf_counter_ns() - begin) / calls)
    return statistics.median(found)


def deeper(function, depth):
    """Calls function below so many Python frames: what a stack costs depends on it."""
    return function() if depth == 0 else deeper(function, depth - 1)


def pairs_per_second(threads, seconds=0.5):
    """torch.empty and its free in so many threads, each on a stream of its own: pairs of all of them."""
    ready, stop, counts = threading.Barrier(threads + 1), threading.Event(), []

    def work():
        with torch.cuda.stream(torch.cuda.Stream()):
            held = [torch.empty(65536, dtype=torch.uint8, device="cuda") for _ in range(64)]
            ready.wait()
            pairs = 0
            while not stop.is_set():
                for i in range(64):
                    held[i] = torch.empty(65536, dtype=torch.uint8, device="cuda")
                pairs += 64
            counts.append(pairs)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    begin = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begin)


def empty(library):
    """What single calls cost from Python, and several threads at once."""
    device = torch.device("cuda", 0)
    found = {f"empty/{size}": nanoseconds(lambda size=size: torch.empty(size, dtype=torch.uint8, device=device))
             for size in (512, 65536, 3 * MIB)}
    found["empty/65536/deep"] = deeper(lambda: nanoseconds(lambda: torch.empty(65536, dtype=torch.uint8, device=device), 5000), 30)
    found["empty_meta"] = nanoseconds(lambda: torch.empty(65536, dtype=torch.uint8, device="meta"))
    found |= {f"threads/{count}": pairs_per_second(count) for count in THREADS}
    found["memory_allocated"] = nanoseconds(torch.cuda.memory_allocated, calls=300)
    if library is not None:

        class Usage(ctypes.Structure):  # gpuledger_usage
            _fields_ = [(name, ctypes.c_uint64) for name in
                        ("in_use", "requested", "pending", "peak", "at_device_peak", "charged_ever", "count", "pending_count")]

        usage, into = library.gpuledger_process_usage, Usage()
        usage.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(Usage)]
        pointer = ctypes.byref(into)
        found["usage"] = nanoseconds(lambda: usage(b"unattributed", -1, pointer))
    return found


def install(path):
    library = ctypes.PyDLL(path)
    if library.gpuledger_torch_cuda_install() != 0:
        library.gpuledger_last_error.restype = ctypes.c_char_p
        raise SystemExit(library.gpuledger_last_error().decode())
    return library


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=("empty", "train", "generate"))
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--history", choices=("none", "records", "stacks"), default="none", help="PyTorch's own")
    parser.add_argument("--install", help="libgpuledger_torch_cuda.so")
    options = parser.parse_args()
    library = install(options.install) if options.install else None
    torch.manual_seed(1)
    torch.empty(1, device="cuda")
    if options.history != "none":
        torch.cuda.memory._record_memory_history(
            context="all" if options.history == "stacks" else None, stacks="all", max_entries=100_000)
    size = SIZES[options.size]
    found = {"empty": lambda: empty(library), "train": lambda: train(size), "generate": lambda: generate(size)}[options.workload]()
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "figures": found}), flush=True)
    if options.history != "none":
        os._exit(0)  # what was recorded need not be taken down


if __name__ == "__main__":
    main()
