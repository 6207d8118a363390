"""An exception that is kept holds its traceback, that the frames, and those their locals.

    gpuledger run -- python examples/held_exception.py
"""

import torch

import gpuledger

failures = []


def decode(batch):
    with gpuledger.owner("decoder/activations", role="activation"):
        activations = torch.zeros(batch, 65536)
    if batch > 2:
        raise ValueError(f"a batch of {batch} is too large")
    return float(activations.sum())


for batch in (1, 2, 3):
    try:
        decode(batch)
    except ValueError as error:
        failures.append(error)  # str(error) would do
print(f"{len(failures)} failure: {gpuledger.usage('decoder/activations'):,} bytes of activations")
