"""leaky_load.py without its bug: every reference to a source goes before the next weight is read.

    gpuledger run --check -- python examples/fixed_load.py
"""

import torch

import gpuledger
from leaky_load import SHAPES, quantize, read


def convert(input_dict, name):
    with gpuledger.lineage(name):
        value = input_dict.pop(name).pop()
        quantized = quantize(value, name)
        del value
    return quantized


def load():
    input_dict = {}
    model = {}
    for name, shape in SHAPES.items():
        input_dict[name] = [read(name, shape)]
        model[name] = convert(input_dict, name)
    return model


if __name__ == "__main__":
    torch.manual_seed(0)
    model = load()
    assert gpuledger.residual("model.**") == 0
    print(f"{len(model)} weights are quantized: {gpuledger.usage(role='quantized'):,} bytes; "
          f"their sources: {gpuledger.usage(role='source'):,} bytes")
