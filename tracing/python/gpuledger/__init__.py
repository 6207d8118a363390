"""gpuledger: for every byte, who owns it, since when, and who still holds it.

>>> import gpuledger.torch
>>> gpuledger.torch.install_cpu()
>>> with gpuledger.owner("model/layers.3.mlp.up_proj.weight", role="source"):
...     weight = torch.empty(4096, 1024)
>>> gpuledger.usage("model/layers.3.mlp.up_proj.weight")
16777216
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from gpuledger._library import SharedStorageError, UnfreeableStorageError, Usage, check_core, library, role_of

__all__ = ["SharedStorageError", "UnfreeableStorageError", "owner", "usage"]


@contextmanager
def owner(name: str, role: str = "other") -> Iterator[None]:
    """Makes ``name`` pay for what this thread allocates inside the block; also a decorator.

    Blocks nest: ``owner("model")`` around ``owner("layers.3")`` pays as ``model/layers.3``. ``role`` says what the
    memory is to the owner: source, staging, quantized, scratch, activation, gradient, optimizer, cache or other.
    """
    loaded = library()
    token = ctypes.c_uint64()
    check_core(loaded.gpuledger_open_scope(name.encode(), role_of(role), 0, ctypes.byref(token)))
    try:
        yield
    finally:
        check_core(loaded.gpuledger_close_scope(token))


def usage(owner: str | None = None, role: str | None = None) -> int:
    """Bytes in use, rounding included: of all owners, one ``owner``, one ``role``, or one role of one owner."""
    found = Usage()
    check_core(
        library().gpuledger_process_usage(
            None if owner is None else owner.encode(), -1 if role is None else role_of(role), ctypes.byref(found)
        )
    )
    return int(found.in_use)
