"""Names for what a program allocated without owners: parameters, buffers, gradients, optimizer state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpuledger._library import core, role_of

if TYPE_CHECKING:
    import torch


def _tensors_in(state: object) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors_in(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors_in(value)


def adopt(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None, *, name: str = "model") -> int:
    """Makes each parameter, buffer, gradient and optimizer state pay under its name, ``model/layers.0.weight``; returns how
    many blocks were renamed. What it adopts is no longer of the transient scope it was made in. Gradients and optimizer
    state get their roles; what is held in 4 or 8 bits is *quantized*, the rest *other*. Tensors that are not in the ledger
    (made before it was attached, or on a device without a way in) are passed over. Call it again after the first step: what
    is not there yet gets no name."""
    import torch

    from gpuledger._tensors import address_of

    transfer = core().gpuledger_process_transfer
    adopted: set[int] = set()

    def give(tensor: torch.Tensor, owner: str, role: str) -> None:
        address = address_of(tensor)
        if address and address not in adopted and transfer(address, owner.encode(), role_of(role)) == 0:
            adopted.add(address)

    names = {}
    for path, parameter in model.named_parameters():
        owner = names[parameter] = f"{name}/{path}"
        small = parameter.dtype in (torch.uint8, torch.int8) or parameter.element_size() == 1
        give(parameter, owner, "quantized" if small else "other")
        if parameter.grad is not None:
            give(parameter.grad, owner, "gradient")
    for path, buffer in model.named_buffers():
        give(buffer, f"{name}/{path}", "other")
    if optimizer is not None:
        for parameter, state in optimizer.state.items():
            for tensor in _tensors_in(state):
                give(tensor, names.get(parameter, f"{name}/optimizer"), "optimizer")
    return len(adopted)
