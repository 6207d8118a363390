"""Names for what a program allocated without owners: parameters, buffers, gradients, optimizer state."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gpuledger._library import role_of, torch_library

if TYPE_CHECKING:
    import torch

# What wraps a module puts a name into the paths of all it holds.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def owner_of(name: str, path: str) -> str:
    """``model/layers.0.weight``, whatever the module is wrapped in."""
    own = ".".join(part for part in path.split(".") if part and part not in _WRAPPERS)
    return f"{name}/{own}" if own else name


def tensors_in(state: object) -> Iterator[torch.Tensor]:
    """The tensors of a value, a list, a dictionary, and so on."""
    import torch

    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_in(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from tensors_in(value)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """What PyTorch's data-parallel wrappers are around: their ``module`` is in no name."""
    import torch

    while isinstance(model, (torch.nn.parallel.DistributedDataParallel, torch.nn.parallel.DataParallel)):
        model = model.module
    return model


def parts_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that have the bytes: itself, or those that a sparse one or one of a wrapping subclass (DTensor) is made of."""
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from parts_of(getattr(tensor, name))
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout is torch.strided:
        yield tensor


def role_of_weight(parameter: torch.Tensor) -> str:
    """What is held in 4 or 8 bits is quantized."""
    return "quantized" if parameter.element_size() == 1 else "other"


def giver(role: str) -> Callable[[torch.Tensor, bytes], None]:
    """What makes a tensor's blocks pay under a name in that role: for loops, where each microsecond counts."""
    import torch

    adopt_block, number, strided = torch_library().gpuledger_torch_adopt, role_of(role), torch.strided
    plain = {torch.Tensor, torch.nn.Parameter}

    def give(tensor: torch.Tensor, owner: bytes) -> None:
        if type(tensor) in plain and tensor.layout is strided:
            adopt_block(tensor._cdata, owner, number, None)
            return
        with torch._C.DisableTorchFunctionSubclass():
            for part in parts_of(tensor):
                adopt_block(part._cdata, owner, number, None)

    return give


class _Names:
    """Names given once: of tensors that share a block the first one's counts."""

    def __init__(self) -> None:
        self._named: set[int] = set()
        self._adopt_block = torch_library().gpuledger_torch_adopt

    def give(self, tensor: torch.Tensor, owner: str, role: str) -> None:
        import torch

        from gpuledger._tensors import address_of

        address = ctypes.c_uint64()
        with torch._C.DisableTorchFunctionSubclass():
            for part in parts_of(tensor):
                if address_of(part) not in self._named:
                    self._adopt_block(part._cdata, owner.encode(), role_of(role), ctypes.byref(address))
                    if address.value:
                        self._named.add(address.value)

    def __len__(self) -> int:
        return len(self._named)


def adopt(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None, *, name: str = "model") -> int:
    """Makes each parameter, buffer, gradient and optimizer state pay under its name, ``model/layers.0.weight``; returns how
    many blocks have their name now. What it adopts is no longer of the transient scope it was made in. Gradients and optimizer
    state get their roles; what is held in 4 or 8 bits is *quantized*, the rest *other*. Of tensors that share a block the first
    one's name counts. Tensors that are not in the ledger (made before it was attached, or on a device without a way in) are
    passed over. What is not there yet gets no name: call it again after the first step, or :func:`gpuledger.follow` once."""
    from torch.nn.parameter import is_lazy

    model = unwrapped(model)
    named, names = _Names(), {}
    for path, parameter in model.named_parameters():
        owner = names[parameter] = owner_of(name, path)
        if is_lazy(parameter):  # has no bytes yet
            continue
        named.give(parameter, owner, role_of_weight(parameter))
        if parameter.grad is not None:
            named.give(parameter.grad, owner, "gradient")
    for path, buffer in model.named_buffers():
        if is_lazy(buffer):
            continue
        named.give(buffer, owner_of(name, path), "other")
    if optimizer is not None:
        for parameter, state in optimizer.state.items():
            for tensor in tensors_in(state):
                named.give(tensor, names.get(parameter, owner_of(name, "optimizer")), "optimizer")
    return len(named)
