"""Finds and loads ``libgpuledger_torch.so``, and turns its status codes into exceptions."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

_NAME = "libgpuledger_torch.so"

OK, INTERNAL, INVALID_ARGUMENT, SHARED, NOT_OURS, OUT_OF_MEMORY = range(6)


class SharedStorageError(RuntimeError):
    """A weight's storage is held by more than the caller: the message names weight, owner, count and holders.

    ``weight`` is the name given to :func:`gpuledger.torch.consume`; ``holders`` has the counts by kind, ``known`` a
    phrase for each holder that Python itself can see.
    """

    def __init__(
        self, message: str, weight: str = "", holders: dict[str, int] | None = None, known: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.weight = weight
        self.holders = holders or {}
        self.known = known


class UnfreeableStorageError(SharedStorageError):
    """A weight's bytes belong to something else (NumPy export, mapped file, blob) and cannot be freed through it."""


class Report(ctypes.Structure):
    """``gpuledger_torch_report``."""

    _fields_ = [
        ("tensor_handles", ctypes.c_uint64),
        ("aliases", ctypes.c_uint64),
        ("python_references", ctypes.c_uint64),
        ("python_storages", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("charged", ctypes.c_uint64),
        ("remaining", ctypes.c_uint64),
        ("freed", ctypes.c_int32),
        ("freeable", ctypes.c_int32),
    ]


class Usage(ctypes.Structure):
    """``gpuledger_usage``."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "in_use",
            "requested",
            "pending",
            "peak",
            "at_device_peak",
            "charged_ever",
            "count",
            "pending_count",
        )
    ]


def _path() -> Path:
    named = os.environ.get("GPULEDGER_TORCH_LIBRARY")
    if named:
        return Path(named)
    package = Path(__file__).resolve().parent
    candidates = [package / _NAME]
    if len(package.parents) > 2:  # a checkout: <root>/tracing/python/gpuledger
        candidates.append(package.parents[2] / "build" / "release" / "lib" / _NAME)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    places = ", ".join(str(candidate) for candidate in candidates)
    raise ImportError(f"{_NAME} not found (looked at {places}); build gpuledger or set GPULEDGER_TORCH_LIBRARY")


@cache
def library() -> ctypes.PyDLL:
    """The library. Imports torch first, so that both use one LibTorch."""
    import torch

    path = _path()
    try:
        # PyDLL keeps the GIL: calls count Python references and may free Python objects.
        loaded = ctypes.PyDLL(str(path))
    except OSError as error:
        raise ImportError(f"{path} does not load into PyTorch {torch.__version__}: {error}") from error
    loaded.gpuledger_last_error.restype = ctypes.c_char_p
    loaded.gpuledger_role_name.restype = ctypes.c_char_p
    loaded.gpuledger_torch_built_for.restype = ctypes.c_char_p
    u64, text = ctypes.c_uint64, ctypes.c_char_p
    loaded.gpuledger_open_scope.argtypes = [text, ctypes.c_int, ctypes.c_int, ctypes.POINTER(u64)]
    loaded.gpuledger_close_scope.argtypes = [u64]
    loaded.gpuledger_process_usage.argtypes = [text, ctypes.c_int, ctypes.POINTER(Usage)]
    loaded.gpuledger_torch_inspect.argtypes = [ctypes.c_void_p, u64, ctypes.POINTER(Report)]
    loaded.gpuledger_torch_consume.argtypes = [ctypes.c_void_p, text, ctypes.c_int, u64, ctypes.POINTER(Report)]
    built_for = loaded.gpuledger_torch_built_for().decode()
    if not torch.__version__.startswith(built_for + "."):
        raise ImportError(f"{path} was built for PyTorch {built_for}, but this is {torch.__version__}: build it again")
    return loaded


@cache
def role_of(name: str) -> int:
    """The number of a role. ValueError names all there are."""
    roles = []
    while (role := library().gpuledger_role_name(len(roles))) is not None:
        roles.append(role.decode())
    if name not in roles:
        raise ValueError(f"'{name}' is not a role; roles are {', '.join(roles)}")
    return roles.index(name)


def check_core(status: int) -> None:
    """Raises what a ``gpuledger_status`` other than OK stands for."""
    if status == OK:
        return
    raise ValueError(last_error()) if status == 1 else RuntimeError(last_error())


def last_error() -> str:
    """What the last failed call of this thread says."""
    return library().gpuledger_last_error().decode(errors="replace")


def check(status: int) -> None:
    """Raises what a status other than OK stands for."""
    if status == OK:
        return
    message = last_error()
    if status == INVALID_ARGUMENT:
        raise ValueError(message)
    if status == OUT_OF_MEMORY:
        raise MemoryError(message)
    raise RuntimeError(message)
