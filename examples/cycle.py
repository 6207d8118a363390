"""Objects that refer to each other keep their tensors until the garbage collector comes by, which may be long.

    gpuledger run -- python examples/cycle.py
"""

import gc

import torch

import gpuledger


class Layer:
    def __init__(self, model):
        self.model = model  # a weakref.ref would do
        with gpuledger.owner("layer/buffer"):
            self.buffer = torch.zeros(65536)


class Model:
    def __init__(self):
        self.layers = [Layer(self) for _ in range(4)]


gc.disable()  # as programs do that cannot afford its pauses
for _ in range(3):
    Model()
print(f"no model is left, but {gpuledger.usage('layer/buffer'):,} bytes of buffers")
