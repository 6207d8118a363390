"""A cache that nobody empties: it grows with every step.

    gpuledger run -- python examples/growing_cache.py

`mark` says where a step ends; what rises between all marks after the first few is growth.
"""

import torch

import gpuledger

cache = {}


def attend(step):
    with gpuledger.owner("attention/cache", role="cache"):
        cache[step] = torch.zeros(64, 1024)  # should be keyed by layer, and replaced
    with gpuledger.owner("attention/scores", role="scratch"):
        scores = cache[step] @ torch.ones(1024, 64)
    return float(scores.sum())


for step in range(8):
    attend(step)
    gpuledger.mark(f"step {step}")
print(f"{len(cache)} entries: {gpuledger.usage('attention/cache'):,} bytes")
