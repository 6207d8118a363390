"""Puts gpuledger under a Python program that does not know of it, and settles when the program ends.

Nothing is imported until the program imports torch. Children are Pythons of their own that find this file the same way; a
forked one goes on with what its parent has attached.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_attach_to_cuda = os.environ.get("GPULEDGER_ATTACH") == "torch"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _say(what: str, error: BaseException) -> None:
    print(f"gpuledger: {what}: {type(error).__name__}: {error}", file=sys.stderr)


class _Loading(Loader):
    """The module's own loader, and a call when it is done."""

    def __init__(self, loader: Loader, finder: _AfterImport, then: Callable[[], None]) -> None:
        self._loader = loader
        self._finder = finder
        self._then = then

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is to have the loader it would have had.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
            self._then()


class _AfterImport(MetaPathFinder):
    """Calls `then` once module `name` was imported, whoever finds it. Stays until then: many look for a module without importing it."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then
        self._asking = _thread._local()  # other finders may ask all finders in their turn

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            for finder in [finder for finder in sys.meta_path if finder is not self]:
                find = getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find is not None else None
                if spec is not None:
                    if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                        spec.loader = _Loading(spec.loader, self, self._then)
                    return spec
        finally:
            self._asking.now = False
        return None


def _import_package() -> None:
    """The package this file is in, wherever it is: it need not be installed."""
    parent = os.path.dirname(_PACKAGE)
    if parent not in sys.path:
        sys.path.append(parent)


def _attach_to_torch() -> None:
    try:
        _import_package()
        import torch

        import gpuledger.torch
        from gpuledger._ways import install_from_environment

        with contextlib.suppress(ImportError):  # the import has said so; CUDA memory can be recorded all the same
            gpuledger.torch.install_cpu()
        # Without CUDA there is nothing to say, unless a way in was asked for.
        if _attach_to_cuda and (torch.version.cuda is not None or os.environ.get("GPULEDGER_TORCH")):
            install_from_environment("allocator", cpu=True)
    except Exception as error:
        _say("PyTorch is not recorded", error)


def _settle() -> None:
    if "gpuledger" not in sys.modules:  # there was no torch, and the program itself did not ask for the package
        return
    try:
        import gpuledger

        if gpuledger.trace_path() is not None:
            gpuledger.settle()
    except Exception as error:
        _say("nothing was settled at the end of the program", error)


def _settle_in_a_worker(charged_before: int) -> None:
    """At the end of a multiprocessing worker, which runs no exit handlers; only if it has allocated something itself."""
    from gpuledger._library import Usage, core
    import ctypes

    found = Usage()
    core().gpuledger_process_usage(None, -1, ctypes.byref(found))
    if found.charged_ever != charged_before:
        _settle()


def _in_a_forked_worker(_: object) -> None:
    if "gpuledger" not in sys.modules:
        return
    import ctypes
    from multiprocessing import util

    from gpuledger._library import Usage, core

    found = Usage()
    core().gpuledger_process_usage(None, -1, ctypes.byref(found))
    util.Finalize(None, _settle_in_a_worker, args=(found.charged_ever,), exitpriority=0)


def _attach_to_multiprocessing() -> None:
    from multiprocessing import util

    util.register_after_fork(_anchor, _in_a_forked_worker)


class _Anchor:
    pass


_anchor = _Anchor()  # register_after_fork forgets what it is registered for when that is gone


def attach() -> None:
    if os.environ.get("GPULEDGER_ATTACH") not in ("torch", "torch-cpu"):
        return
    atexit.register(_settle)  # the first to be registered is the last to run
    for name, then in {"torch": _attach_to_torch, "multiprocessing.util": _attach_to_multiprocessing}.items():
        if name in sys.modules:
            then()
        else:
            sys.meta_path.insert(0, _AfterImport(name, then))
