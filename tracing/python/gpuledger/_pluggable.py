"""The way in for any PyTorch from 2.1 on: gpuledger behind PyTorch's own ``CUDAPluggableAllocator``.

It charges every CUDA tensor, and works with streams and graphs. Running out raises ``torch.OutOfMemoryError`` where
``libgpuledger_torch.so`` was built for the PyTorch that runs, and a plain ``RuntimeError`` elsewhere. What PyTorch itself does not offer under a pluggable allocator
stays away: ``torch.cuda.memory_stats`` and ``memory_allocated`` raise (ask ``gpuledger.usage``), as do the snapshot, ``MemPool``
and sharing tensors between processes. PyTorch notes the address of every block, so that a leak report finds none of them lost.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

from gpuledger._library import check_core, core, torch_library

# By the setter of PyTorch's object that takes it. PyTorch before 2.2 or so lacks some of them.
_HOOKS = {
    "set_init_fn": "init",
    "set_reset_fn": "empty_cache",
    "set_memory_fraction_fn": "memory_fraction",
    "set_base_alloc_fn": "base_allocation",
    "set_record_stream_fn": "record_stream",
    "set_begin_allocate_to_pool": "begin_allocate_to_pool",
    "set_end_allocate_to_pool_fn": "end_allocate_to_pool",
    "set_release_pool": "release_pool",
}


def _address(name: str) -> int:
    address = ctypes.cast(getattr(core(), f"gpuledger_torch_{name}"), ctypes.c_void_p).value
    assert address is not None
    return address


@cache
def _allocator() -> Any:
    """PyTorch's object around our functions, one for the process."""
    allocator = torch._C._cuda_customAllocator(_address("malloc"), _address("free"))
    for setter, hook in _HOOKS.items():
        if hasattr(allocator, setter):
            getattr(allocator, setter)(_address(hook))
    return allocator


_installed = False


def pluggable_installed() -> bool:
    """Whether CUDA tensors are charged this way."""
    return _installed


def install_pluggable() -> None:
    """Puts gpuledger under every CUDA tensor of this process, for good. A second call changes nothing.

    It must come before the first use of CUDA (``RuntimeError`` otherwise). ``ValueError`` if a ``GPULEDGER_`` variable is wrong.
    """
    global _installed
    if _installed:
        return
    if not hasattr(torch._C, "_cuda_customAllocator"):
        raise RuntimeError(f"PyTorch {torch.__version__} has no pluggable CUDA allocators: it needs 2.1 or later, built with CUDA")
    if torch.cuda.is_initialized():
        raise RuntimeError(
            "CUDA has started already, and PyTorch does not change its allocator after that: install gpuledger before the first "
            "use of CUDA"
        )
    check_core(core().gpuledger_torch_prepare_pluggable())
    try:
        torch._C._cuda_changeCurrentAllocator(_allocator())
    except RuntimeError as error:
        raise RuntimeError(
            f"PyTorch does not change its CUDA allocator any more ({error}): another one was installed, or CUDA memory was used; "
            "install gpuledger before that"
        ) from error
    _installed = True
    try:
        torch_library().gpuledger_torch_throw_torch_errors()
    except ImportError:
        pass  # not built for this PyTorch: std::runtime_error is what any can take
