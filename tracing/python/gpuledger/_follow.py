"""Names for what a training loop makes as it goes: gradients and optimizer state, the moment they appear."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpuledger._adopt import adopt, giver, owner_of, role_of_weight, tensors_in, unwrapped
from gpuledger._library import check, torch_library

if TYPE_CHECKING:
    import torch
    from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary


class Following:
    """What :func:`follow` set up. :meth:`remove`, or the end of its ``with`` block, takes it away; names that were given stay.
    Keeps neither the model nor the optimizer alive."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """No new names from now on."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *raised: object) -> None:
        self.remove()


class _Gradients:
    """The hooks of parameters. Of gradients that share a block (DDP's buckets) the first one's name counts as long as it is there."""

    def __init__(self) -> None:
        from gpuledger._tensors import address_of
        from torch.utils.weak import TensorWeakRef

        self._give, self._address_of, self._reference = giver("gradient"), address_of, TensorWeakRef
        self._first: dict[int, TensorWeakRef] = {}  # the parameter that a block is named after

    def namer(self, owner: bytes) -> Callable[[torch.Tensor], None]:
        last = 0

        def name_gradient(parameter: torch.Tensor) -> None:
            nonlocal last
            gradient = parameter.grad
            if gradient is None:
                return
            address = self._address_of(gradient)
            first = self._first[address]() if address in self._first else None
            if first is not parameter:
                if first is not None and first.grad is not None and self._address_of(first.grad) == address:
                    return
                if last in self._first and self._first[last]() is parameter:
                    del self._first[last]
                if address:
                    self._first[address] = self._reference(parameter)
                last = address
            self._give(gradient, owner)

        return name_gradient


class _State:
    """The hooks of an optimizer, which may outlive parameters that it does not have. Of tensors that share a block the first
    one's name counts, as with adopt()."""

    def __init__(self, names: WeakTensorKeyDictionary, fallback: bytes) -> None:
        from gpuledger._tensors import address_of
        from torch.nn.parameter import is_lazy

        self._address_of, self._is_lazy = address_of, is_lazy
        self._names = names
        self._fallback = fallback
        self._give = giver("optimizer")
        self._give_weight = {role: giver(role) for role in ("other", "quantized")}

    def name(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        give, names = self._first_only(self._give), self._names
        for parameter, state in optimizer.state.items():
            owner = names.get(parameter, self._fallback)
            for tensor in tensors_in(state):
                give(tensor, owner)

    def _first_only(self, give: Callable[[torch.Tensor, bytes], None]) -> Callable[[torch.Tensor, bytes], None]:
        address_of, seen = self._address_of, set()

        def give_once(tensor: torch.Tensor, owner: bytes) -> None:
            address = address_of(tensor)
            if address not in seen:
                give(tensor, owner)
            if address:
                seen.add(address)

        return give_once

    def after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self.name(optimizer)
        give = self._first_only(lambda parameter, owner: self._give_weight[role_of_weight(parameter)](parameter, owner))
        for parameter, owner in self._names.items():  # one that was moved or loaded has another block
            if not self._is_lazy(parameter):
                give(parameter, owner)
        check(torch_library().gpuledger_torch_name_workspaces())


def follow(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None, *, name: str = "model") -> Following:
    """:func:`gpuledger.adopt` now, and for whatever the training loop makes later: each gradient gets its name when it has been
    accumulated, optimizer state at the end of each ``optimizer.step()`` and when it is loaded. One call before the loop:

    >>> gpuledger.follow(model, optimizer)
    >>> for batch in batches:
    ...     model(batch).sum().backward()
    ...     optimizer.step()

    A gradient that autograd makes is paid by the scope it is made in until its hook runs. The workspaces of cuBLAS are named too
    (``cublas/workspace``). Parameters that require no gradient now, and those added later, are not followed. Measured on a busy
    two-core server: 5 µs for each gradient, 6 µs for each parameter and step (AdamW).
    """
    import torch
    from torch.utils.weak import WeakTensorKeyDictionary

    model = unwrapped(model)
    adopt(model, optimizer, name=name)
    handles: list[Any] = []
    names = WeakTensorKeyDictionary()
    gradients = _Gradients()
    with torch._C.DisableTorchFunctionSubclass():  # a lazy parameter refuses hooks
        for path, parameter in model.named_parameters():
            owner = names[parameter] = owner_of(name, path).encode()
            if parameter.requires_grad and parameter.is_leaf:
                handles.append(parameter.register_post_accumulate_grad_hook(gradients.namer(owner)))
    if optimizer is not None:
        state = _State(names, owner_of(name, "optimizer").encode())
        handles.append(optimizer.register_step_post_hook(state.after_step))
        handles.append(optimizer.register_load_state_dict_post_hook(state.name))
    return Following(handles)
