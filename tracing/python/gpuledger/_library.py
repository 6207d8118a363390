"""Finds and loads the libraries, and turns their status codes into exceptions.

``libgpuledger.so`` needs no PyTorch; ``libgpuledger_torch.so`` and ``libgpuledger_torch_cuda.so`` are loaded into one. Calls that may wait for a device, or read
much, let other Python threads run (``waiting``); all others keep the GIL, which is faster.
"""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path

OK, INTERNAL, INVALID_ARGUMENT, SHARED, NOT_OURS, OUT_OF_MEMORY = range(6)  # of gpuledger_torch_status


class UndecidedError(RuntimeError):
    """A verdict was asked for that nobody can give yet: a lineage is open, nothing was settled, no way in is attached."""


class SharedStorageError(RuntimeError):
    """A weight's storage is held by more than the caller: the message names weight, owner, count and holders.

    ``weight`` is the name given to :func:`gpuledger.torch.consume`; ``holders`` has the counts by kind, ``known`` a
    path for each holder that Python itself can see.
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


_U64 = ctypes.c_uint64
_USAGE = "in_use requested pending peak at_device_peak charged_ever count pending_count"


class Usage(ctypes.Structure):
    """``gpuledger_usage``."""

    _fields_ = [(name, _U64) for name in _USAGE.split()]


class LineageUsage(ctypes.Structure):
    """``gpuledger_lineage``."""

    _fields_ = [("state", ctypes.c_int), ("source", Usage), ("staging", Usage), ("quantized", Usage)]


class Payer(ctypes.Structure):
    """``gpuledger_payer``."""

    _fields_ = [("owner", ctypes.c_uint32), ("scope", ctypes.c_uint32), ("role", ctypes.c_int)]


class Device(ctypes.Structure):
    """``gpuledger_device``."""

    _fields_ = [
        ("upstream", ctypes.c_char_p),
        ("number", ctypes.c_int32),
        *[(name, _U64) for name in "total free reserved in_use pending cached external".split()],
    ]


class OwnerUsage(ctypes.Structure):
    """``gpuledger_owner_usage``."""

    _fields_ = [("owner", ctypes.c_char_p), ("role", ctypes.c_int), ("usage", Usage)]


class Report(ctypes.Structure):
    """``gpuledger_torch_report``."""

    _fields_ = [
        *[(name, _U64) for name in "tensor_handles aliases python_references python_storages bytes charged remaining".split()],
        ("freed", ctypes.c_int32),
        ("freeable", ctypes.c_int32),
    ]


class Place(ctypes.Structure):
    """``gpuledger_torch_place``."""

    _fields_ = [("address", _U64), ("bytes", _U64), ("covered", _U64)]


def _find(name: str, variable: str) -> Path:
    named = os.environ.get(variable)
    if named:
        return Path(named)
    package = Path(__file__).resolve().parent
    candidates = [package / "lib" / name, package / name]
    for other in ("GPULEDGER_TORCH_CUDA_LIBRARY", "GPULEDGER_TORCH_LIBRARY", "GPULEDGER_LIBRARY"):
        if beside := os.environ.get(other):
            candidates.insert(0, Path(beside).parent / name)
    if len(package.parents) > 2:  # a checkout: <root>/tracing/python/gpuledger
        candidates.append(package.parents[2] / "build" / "release" / "lib" / name)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    places = ", ".join(str(candidate) for candidate in candidates)
    raise ImportError(f"{name} not found (looked at {places}); build gpuledger or set {variable}")


def _declare(loaded: ctypes.CDLL) -> ctypes.CDLL:
    text, number, pointer = ctypes.c_char_p, ctypes.c_int, ctypes.POINTER
    for name, arguments in {
        # enter_scope and leave_scope have none: bytes and small integers are passed as they are, which is faster.
        "close_scope": [_U64],
        "current_payer": [pointer(Payer)],
        "adopt_payer": [pointer(Payer), pointer(_U64)],
        "process_usage": [text, number, pointer(Usage)],
        "process_reset_peak": [],
        "process_transfer": [_U64, text, number],
        "process_blocks": [text, number, ctypes.c_void_p, ctypes.c_void_p, _U64, pointer(_U64)],
        "process_lineage": [text, pointer(LineageUsage)],
        "process_open_lineage": [text],
        "process_close_lineage": [text],
        "process_residual": [text, pointer(_U64), pointer(_U64)],
        "process_devices": [pointer(Device), _U64, pointer(_U64)],
        "process_owners": [text, ctypes.c_int32, pointer(OwnerUsage), _U64, pointer(_U64)],
        "trace_start": [text, _U64],
        "mark": [text],
        "set_stacks": [number, number],
        "take_site": [pointer(ctypes.c_uint32)],
        "site_text": [ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t, pointer(ctypes.c_size_t)],
        "fact": [_U64, number, _U64, text],
        "settle_begin": [pointer(ctypes.c_void_p)],
        "settle_complete": [ctypes.c_void_p],
        "settle_collected": [ctypes.c_void_p],
        "settle_released": [ctypes.c_void_p],
        "settle_end": [ctypes.c_void_p],
        "settle_blocks": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, _U64, pointer(_U64)],
        "settle_report": [ctypes.c_void_p, text, number, ctypes.c_void_p, ctypes.c_size_t, pointer(ctypes.c_size_t), pointer(number)],
    }.items():
        function = getattr(loaded, f"gpuledger_{name}", None)
        if function is not None:
            function.argtypes = arguments
    for name in ("last_error", "role_name", "version", "trace_path"):
        getattr(loaded, f"gpuledger_{name}").restype = text
    loaded.gpuledger_settle_free.argtypes = [ctypes.c_void_p]
    loaded.gpuledger_settle_free.restype = None
    return loaded


@cache
def core() -> ctypes.PyDLL:
    """``libgpuledger.so``, for calls that never wait: the GIL is kept."""
    path = _find("libgpuledger.so", "GPULEDGER_LIBRARY")
    try:
        return _declare(ctypes.PyDLL(str(path)))  # type: ignore[return-value]
    except OSError as error:
        raise ImportError(f"{path} does not load: {error}") from error


@cache
def waiting() -> ctypes.CDLL:
    """The same library, for calls that take long: other Python threads run meanwhile."""
    core()
    return _declare(ctypes.CDLL(str(_find("libgpuledger.so", "GPULEDGER_LIBRARY"))))


@cache
def torch_library() -> ctypes.PyDLL:
    """``libgpuledger_torch.so``. Imports torch first, so that both use one LibTorch."""
    import torch

    core()
    path = _find("libgpuledger_torch.so", "GPULEDGER_TORCH_LIBRARY")
    try:
        # PyDLL keeps the GIL: calls count Python references and may free Python objects.
        loaded = ctypes.PyDLL(str(path))
    except OSError as error:
        raise ImportError(f"{path} does not load into PyTorch {torch.__version__}: {error}") from error
    loaded.gpuledger_torch_built_for.restype = ctypes.c_char_p
    loaded.gpuledger_torch_inspect.argtypes = [ctypes.c_void_p, _U64, ctypes.POINTER(Report)]
    loaded.gpuledger_torch_locate.argtypes = [ctypes.c_void_p, ctypes.POINTER(Place)]
    loaded.gpuledger_torch_locate_storage.argtypes = [ctypes.c_void_p, ctypes.POINTER(Place)]
    loaded.gpuledger_torch_consume.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, _U64, ctypes.POINTER(Report)]
    loaded.gpuledger_torch_adopt.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
    loaded.gpuledger_torch_module.argtypes = [ctypes.c_char_p]
    loaded.gpuledger_torch_module.restype = ctypes.c_uint32
    # enter_module and leave_module have none: small integers are passed as they are, which is faster.
    built_for = loaded.gpuledger_torch_built_for().decode()
    if not torch.__version__.startswith(built_for + "."):
        raise ImportError(f"{path} was built for PyTorch {built_for}, but this is {torch.__version__}: build it again")
    check(loaded.gpuledger_torch_carry_payers())
    return loaded


@cache
def torch_cuda_library() -> ctypes.PyDLL:
    """``libgpuledger_torch_cuda.so``. ImportError if it is not for this PyTorch: it is not even loaded then."""
    import torch

    core()
    path = _find("libgpuledger_torch_cuda.so", "GPULEDGER_TORCH_CUDA_LIBRARY")
    built_for = _built_for(path)
    if not torch.__version__.startswith(built_for + "."):
        raise ImportError(f"{path.name} was built for PyTorch {built_for}, but this is {torch.__version__}")
    try:
        return ctypes.PyDLL(str(path))
    except OSError as error:
        raise ImportError(f"{path} does not load into PyTorch {torch.__version__}: {error}") from error


def _built_for(path: Path) -> str:
    """The PyTorch that ``libgpuledger_torch_cuda.so`` was built for, read from the file (gpuledger_torch_cuda.h)."""
    try:
        found = re.search(rb"gpuledger_torch_cuda built for PyTorch ([0-9.]+)\0", path.read_bytes())
    except OSError as error:
        raise ImportError(f"{path} cannot be read: {error}") from error
    if found is None:
        raise ImportError(f"{path} is not gpuledger's library for PyTorch's CUDA memory: build gpuledger again")
    return found[1].decode()


@cache
def roles() -> dict[str, int]:
    """The roles, in the order of their numbers."""
    found: dict[str, int] = {}
    while (role := core().gpuledger_role_name(len(found))) is not None:
        found[role.decode()] = len(found)
    return found


def role_of(name: str) -> int:
    """The number of a role. ValueError names all there are."""
    try:
        return roles()[name]
    except KeyError:
        raise ValueError(f"'{name}' is not a role; roles are {', '.join(roles())}") from None


def last_error() -> str:
    """What the last failed call of this thread says."""
    return core().gpuledger_last_error().decode(errors="replace")


_CORE_ERRORS: dict[int, type[Exception]] = {1: ValueError, 2: MemoryError, 3: LookupError, 4: UndecidedError}


def check_core(status: int) -> None:
    """Raises what a ``gpuledger_status`` other than OK stands for."""
    if status != OK:
        raise _CORE_ERRORS.get(status, RuntimeError)(last_error())


def check_torch_cuda(status: int) -> None:
    """Raises what a failure of ``libgpuledger_torch_cuda.so`` stands for."""
    if status != OK:
        raise (ValueError if status == 1 else RuntimeError)(last_error())


def check(status: int) -> None:
    """Raises what a ``gpuledger_torch_status`` other than OK stands for."""
    if status == OK:
        return
    message = last_error()
    if status == INVALID_ARGUMENT:
        raise ValueError(message)
    if status == OUT_OF_MEMORY:
        raise MemoryError(message)
    raise RuntimeError(message)
