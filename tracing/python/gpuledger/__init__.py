"""gpuledger: for every byte, who owns it, since when, and who still holds it.

>>> import gpuledger.torch
>>> gpuledger.torch.install_cpu()
>>> with gpuledger.owner("model/layers.3.mlp.up_proj.weight", role="source"):
...     weight = torch.empty(4096, 1024)
>>> gpuledger.usage("model/layers.3.mlp.up_proj.weight")
16777216
>>> print(gpuledger.leaks())

Needs no PyTorch; ``import gpuledger.torch`` puts the ledger under one. Sizes are bytes. All functions may be called from
any thread.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from gpuledger._adopt import adopt
from gpuledger._balance import Balance, OwnerShare, balance
from gpuledger._follow import Following, follow
from gpuledger._library import (
    SharedStorageError,
    UndecidedError,
    UnfreeableStorageError,
    Usage,
    check_core,
    core,
    role_of,
    waiting,
)
from gpuledger._lineage import close_lineage, lineage, open_lineage
from gpuledger._modules import ModuleScopes, module_scopes
from gpuledger._report import Frame, Growth, Leak, LeakReport, Share, Total
from gpuledger._scopes import OwnerScope, Scope, carry, current_scope, owner
from gpuledger._settle import leaks, settle

if TYPE_CHECKING:
    from gpuledger.torch import consume

__all__ = [
    "Balance",
    "Following",
    "Frame",
    "Growth",
    "Leak",
    "LeakReport",
    "ModuleScopes",
    "OwnerScope",
    "OwnerShare",
    "Scope",
    "Share",
    "SharedStorageError",
    "Total",
    "UndecidedError",
    "UnfreeableStorageError",
    "adopt",
    "balance",
    "carry",
    "close_lineage",
    "consume",
    "current_scope",
    "follow",
    "leaks",
    "lineage",
    "mark",
    "module_scopes",
    "open_lineage",
    "owner",
    "peak",
    "reset_peak",
    "residual",
    "settle",
    "start_recording",
    "trace_path",
    "usage",
]


def _usage(owner: str | None, role: str | None) -> Usage:
    found = Usage()
    name, number = None if owner is None else owner.encode(), -1 if role is None else role_of(role)
    check_core(core().gpuledger_process_usage(name, number, ctypes.byref(found)))
    return found


def usage(owner: str | None = None, role: str | None = None) -> int:
    """Bytes in use, rounding included: of all owners, one ``owner``, one ``role``, or one role of one owner."""
    return int(_usage(owner, role).in_use)


def peak(owner: str | None = None, role: str | None = None) -> int:
    """The most that was in use since the start or :func:`reset_peak`; selects like :func:`usage`."""
    return int(_usage(owner, role).peak)


def reset_peak() -> None:
    """All peaks start again from what is in use now."""
    check_core(core().gpuledger_process_reset_peak())


def residual(glob: str) -> int:
    """Source and staging bytes that outlived the lineages of all weights that match ``glob`` (``*`` stays within one name,
    ``**`` crosses ``.`` and ``/``). 0 proves that nothing was left behind. :class:`UndecidedError` if no closed lineage
    matches, or one that matches is still open."""
    found = ctypes.c_uint64()
    check_core(waiting().gpuledger_process_residual(glob.encode(), ctypes.byref(found), None))
    return found.value


def mark(text: str) -> None:
    """Names this moment in the trace, such as ``mark("step 3")``: growth is judged between marks. Without a recording it
    does nothing."""
    check_core(core().gpuledger_mark(text.encode()))


def start_recording(path: str, limit: int = 0) -> None:
    """Writes a trace from now on; what is alive already is its beginning. ``%p`` in ``path`` is the process id; an existing
    file is never written over. ``limit``: bytes the file may take, 0 for the default. RuntimeError if a recording runs."""
    check_core(waiting().gpuledger_trace_start(path.encode(), limit))


def trace_path() -> str | None:
    """The trace that is being written, if any."""
    return core().gpuledger_trace_path().decode() or None


def __getattr__(name: str) -> object:
    if name == "consume":  # needs torch, which is not imported for the rest
        from gpuledger.torch import consume

        return consume
    raise AttributeError(f"module 'gpuledger' has no attribute '{name}'")
