"""Every module's forward pass as a scope."""

from __future__ import annotations

import re
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from gpuledger._adopt import owner_of, unwrapped
from gpuledger._library import last_error, torch_library

if TYPE_CHECKING:
    import torch


# PyTorch says that a compiled module's hooks run twice: once more around the whole of it is what is wanted here.
_RUNS_TWICE = r"Using `torch\.compile\(module\)` when there are global hooks"


def _ignore_runs_twice() -> None:
    known = ("ignore", re.compile(_RUNS_TWICE, re.IGNORECASE), Warning, None, 0)
    if known not in warnings.filters:
        warnings.filterwarnings("ignore", message=_RUNS_TWICE)


class ModuleScopes:
    """What :func:`module_scopes` set up. :meth:`remove`, or the end of its ``with`` block, takes it away. Keeps no module alive."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        import torch
        from torch.nn.modules import module as modules

        # Each module's number, as long as it lives. Hooks of the process, not of the modules: copied, pickled and scripted modules
        # have none of ours.
        owners: dict[int, int] = {}
        number_of, enter, leave = self._functions()
        self._finalizers = []
        for path, module in unwrapped(model).named_modules():
            owners[id(module)] = number_of(owner_of(name, path).encode())
            finalizer = weakref.finalize(module, owners.pop, id(module), None)
            finalizer.atexit = False
            self._finalizers.append(finalizer)
        is_compiling = torch.compiler.is_compiling

        def before(module: torch.nn.Module, args: Any) -> None:
            if is_compiling():  # what is compiled runs as one, in the scope around it
                return
            owner = owners.get(id(module))
            if owner is not None and enter(owner):
                raise RuntimeError(last_error())

        def after(module: torch.nn.Module, args: Any, result: Any) -> None:
            if is_compiling():
                return
            owner = owners.get(id(module))
            if owner is not None and leave(owner):
                raise RuntimeError(last_error())

        _ignore_runs_twice()
        self._handles = [
            modules.register_module_forward_pre_hook(before),
            modules.register_module_forward_hook(after, always_call=True),
        ]

    @staticmethod
    def _functions() -> tuple[Any, Any, Any]:
        library = torch_library()
        return library.gpuledger_torch_module, library.gpuledger_torch_enter_module, library.gpuledger_torch_leave_module

    def remove(self) -> None:
        """No scopes from the next call of a module on."""
        while self._handles:
            self._handles.pop().remove()
        while self._finalizers:
            self._finalizers.pop().detach()

    def __enter__(self) -> ModuleScopes:
        return self

    def __exit__(self, *raised: object) -> None:
        self.remove()


def module_scopes(model: torch.nn.Module, name: str = "model") -> ModuleScopes:
    """Makes each module of ``model`` pay for what its own forward pass allocates, under its path, ``model/layers.3.mlp``, role
    *activation*, as far as no module inside it does; and for what autograd allocates for these operations in the backward pass, role
    *gradient*, where the thread that runs it has entered no scope itself (for a GPU it never has; on the CPU it is the thread that calls
    ``backward()``).

    Paths are absolute, as those of :func:`gpuledger.adopt`: a scope around the call is not before them. An exception out of a forward
    pass ends its scopes. One that is no ``Exception`` (``KeyboardInterrupt``) leaves them to the next call of a module. Compiled
    and scripted modules pay as one. ``DataParallel`` runs replicas, which are other modules: on more than one device it has no
    scopes. Nothing is hooked into the graph, and copies and pickles of the model carry nothing.
    Measured on a busy two-core server: 2.5 µs for each call of a module, 1.5 µs for one of another model's (what a hook costs in
    PyTorch).
    """
    return ModuleScopes(model, name)
