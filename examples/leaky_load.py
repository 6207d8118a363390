"""A 4-bit load with the bug of transformers PR #44728, and who holds each weight's source.

    gpuledger run -- python examples/leaky_load.py

As in that report, three references keep a weight's 16-bit source alive while it is quantized: the local `value` in
`convert`, the list in the caller's dict, and a Parameter that `_make_subclass` put on the same storage. Conversions stay
under way while further weights are read, so the sources pile up. fixed_load.py beside it is the same without the bug.
"""

import torch

import gpuledger

SHAPES = {f"model.layers.{layer}.mlp.{name}.weight": (512, 256) for layer in range(3) for name in ("up_proj", "down_proj")}
BLOCK = 64
NF4 = torch.tensor([-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
                    0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0])

conversions = []  # under way: they end when the load is complete


def quantize(weight, name):
    """Codes of 4 bits, two a byte, and the largest magnitude of each block."""
    with gpuledger.owner(name, role="quantized"):
        packed = torch.empty(weight.numel() // 2, dtype=torch.uint8)
        absmax = torch.empty(weight.numel() // BLOCK)
    blocks = weight.detach().float().reshape(-1, BLOCK)
    torch.amax(blocks.abs(), dim=1, out=absmax)
    codes = torch.bucketize(blocks / absmax[:, None], (NF4[1:] + NF4[:-1]) / 2).to(torch.uint8).reshape(-1, 2)
    torch.add(codes[:, 0] * 16, codes[:, 1], out=packed)
    return packed, absmax


def convert(input_dict, name):
    value = input_dict[name][0]
    parameter = torch.Tensor._make_subclass(torch.nn.Parameter, value, False)
    quantized = quantize(parameter, name)
    gpuledger.close_lineage(name)  # the source should be gone by here
    yield quantized


def read(name, shape):
    with gpuledger.owner(name, role="source"):
        return torch.randn(shape).half()


def load():
    input_dict = {}
    model = {}
    for name, shape in SHAPES.items():
        gpuledger.open_lineage(name)
        input_dict[name] = [read(name, shape)]
        conversions.append(convert(input_dict, name))
        model[name] = next(conversions[-1])
    return model


if __name__ == "__main__":
    torch.manual_seed(0)
    model = load()
    print(f"{len(model)} weights are quantized: {gpuledger.usage(role='quantized'):,} bytes; "
          f"their sources: {gpuledger.usage(role='source'):,} bytes")
