"""gpuledger under PyTorch: importing this puts the ledger under every CPU tensor made from then on, unless a way into CUDA
memory was switched on before, which has said whether CPU tensors are charged too.

:func:`install` puts it under CUDA memory. :func:`consume` is the last step of a weight's source.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from gpuledger._library import (
    INTERNAL,
    NOT_OURS,
    SHARED,
    Report,
    SharedStorageError,
    UnfreeableStorageError,
    check,
    last_error,
    torch_library,
)
from gpuledger._tensors import Holders, address_of, describe
from gpuledger._ways import _say, install, way_in

__all__ = [
    "ConsumeReport",
    "SharedStorageError",
    "UnfreeableStorageError",
    "consume",
    "cpu_installed",
    "install",
    "install_cpu",
    "uninstall_cpu",
    "way_in",
]

_POLICIES = {"refuse": 0, "poison": 1, "report": 2}
_KINDS = ("tensor_handles", "aliases", "python_references", "python_storages")


@dataclass(frozen=True)
class ConsumeReport:
    """What :func:`consume` found and did. Sizes are bytes."""

    weight: str
    bytes: int  # the storage's size
    charged: int  # the ledger's charge for it; 0 if it is not in the ledger
    holders: dict[str, int]  # references beyond the caller's, by kind
    known: tuple[str, ...]  # what Python can name of those, the caller's own reference among it
    freed: bool
    remaining: int  # source and staging bytes that its owner still pays for
    freeable: bool  # False: the bytes belong to something else (only under policy "report")


def install_cpu() -> None:
    """Puts gpuledger's allocator under every CPU tensor made from now on. A second call changes nothing."""
    check(torch_library().gpuledger_torch_install_cpu())


def uninstall_cpu() -> None:
    """Puts PyTorch's own CPU allocator back; tensors made in between keep their memory and stay charged."""
    check(torch_library().gpuledger_torch_uninstall_cpu())


def cpu_installed() -> bool:
    """Whether new CPU tensors are charged to the ledger."""
    return bool(torch_library().gpuledger_torch_cpu_installed())


@cache
def _own_references() -> int:
    """References to a tensor that belong to a call of :func:`consume`, in this interpreter: the caller's name and the
    argument. Measured on a fresh tensor that is passed in the same way."""

    def callee(tensor: torch.Tensor, policy: str = "", *, weight: str) -> int:
        report = Report()
        check(torch_library().gpuledger_torch_inspect(tensor._cdata, 0, ctypes.byref(report)))
        return int(report.python_references)

    fresh = torch.empty(0)
    return callee(fresh, weight="")


def _known_holders(tensor: torch.Tensor) -> tuple[str, ...]:
    address = address_of(tensor)
    if not address:
        return ()
    return tuple(path.text for path in Holders([(address, 1)]).paths(address))


def consume(
    tensor: torch.Tensor, policy: Literal["refuse", "poison", "report"] = "refuse", *, weight: str | None = None
) -> ConsumeReport:
    """Frees a weight's source now, if it is the caller's alone.

    One reference is the caller's own (a name, or an entry of a container); every other one is a holder: further names,
    views, ``detach()``, Parameters, tensors that autograd saved. With holders, ``refuse`` raises
    :class:`SharedStorageError`, ``poison`` frees the bytes all the same, and ``report`` leaves them. Once the bytes are
    freed, reading ``tensor`` or any alias raises a ``RuntimeError`` that names ``weight``. Bytes that belong to
    something else (NumPy exports, mapped files, blobs) raise :class:`UnfreeableStorageError`, except under ``report``.

    Raw pointers and DLPack exports held outside Python's tensors cannot be seen.
    """
    if policy not in _POLICIES:
        raise ValueError(f"policy is {policy!r}; it must be one of {', '.join(_POLICIES)}")
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"consume takes a torch.Tensor, not {type(tensor).__name__}")
    if weight is None:
        weight = describe(tensor)
    report = Report()
    own = _own_references()
    counts = Report()  # what is freed is not searched for afterwards: its address is gone
    torch_library().gpuledger_torch_inspect(tensor._cdata, own, ctypes.byref(counts))
    known = _known_holders(tensor) if any(getattr(counts, kind) for kind in _KINDS) else ()
    status = torch_library().gpuledger_torch_consume(
        tensor._cdata, weight.encode(), _POLICIES[policy], own, ctypes.byref(report)
    )
    message = last_error() if status else ""
    holders = {kind: int(getattr(report, kind)) for kind in _KINDS}
    if status not in (0, SHARED):
        known = ()
    del tensor  # an exception that is kept must not keep the weight through this frame
    if known:
        message += ". References that Python can name, the caller's own among them: " + "; ".join(known)
    if status == SHARED:
        raise SharedStorageError(message, weight, holders, known)
    if status == NOT_OURS:
        raise UnfreeableStorageError(message, weight, holders, known)
    if status == INTERNAL:
        raise RuntimeError(message)
    check(status)
    return ConsumeReport(
        weight=weight,
        bytes=report.bytes,
        charged=report.charged,
        holders=holders,
        known=known,
        freed=bool(report.freed),
        remaining=report.remaining,
        freeable=bool(report.freeable),
    )


if way_in() is None:
    try:
        install_cpu()
    except ImportError as error:  # not for this PyTorch; a way into CUDA memory may still be open
        _say(f"CPU tensors are not charged: {error}")
