"""The ways into PyTorch's CUDA memory: which one is in force, and how it is switched on.

Importing this switches nothing on, and CPU tensors stay PyTorch's: that is what ``gpuledger.torch`` is imported for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import torch

from gpuledger._library import check, check_torch_cuda, torch_cuda_library, torch_library

Way = Literal["allocator", "pluggable", "observe"]

_asked: str | None = None  # what install() was called with
_in_force: Way | None = None


def _say(text: str) -> None:
    try:
        print("gpuledger: " + " ".join(text.split()), file=sys.stderr)
    except Exception:  # a stderr that is closed is no reason to break the program
        pass


def way_in() -> Way | None:
    """The way into CUDA memory that is in force. ``observe`` attaches when CUDA is first used."""
    return _in_force


def _refuse_after_start(way: Way) -> None:
    if torch.cuda.is_initialized():
        raise RuntimeError(
            f"CUDA is in use already, and its memory is PyTorch's own for the rest of the process: call "
            f"gpuledger.torch.install({way!r}) before anything asks for a device, or set GPULEDGER_TORCH={way}; "
            f"'observe' can still be installed"
        )


def _allocator() -> Way:
    _refuse_after_start("allocator")
    try:
        library = torch_cuda_library()
    except ImportError as error:  # built for another PyTorch, or left out of the build
        way = _pluggable()
        _say(f"{error}: CUDA memory is recorded the pluggable way, without PyTorch's memory statistics; build gpuledger for this PyTorch")
        return way
    check_torch_cuda(library.gpuledger_torch_cuda_install())
    return "allocator"


def _pluggable() -> Way:
    _refuse_after_start("pluggable")
    from gpuledger._pluggable import install_pluggable

    install_pluggable()
    return "pluggable"


def _observe() -> Way:
    library = torch_cuda_library()
    if torch.cuda.is_initialized():
        check_torch_cuda(library.gpuledger_torch_cuda_observe())
        return "observe"

    def attach() -> None:  # inside PyTorch's initialisation, which an exception would end
        global _in_force
        try:
            check_torch_cuda(library.gpuledger_torch_cuda_observe())
        except Exception as error:
            _in_force = None
            _say(f"CUDA memory is not recorded: {error}")

    torch.cuda._lazy_call(attach)
    return "observe"


_WAYS: dict[str, Callable[[], Way]] = {"allocator": _allocator, "pluggable": _pluggable, "observe": _observe}


def _decide_about_cpu(charged: bool) -> None:
    try:
        if charged:
            check(torch_library().gpuledger_torch_install_cpu())
        elif torch_library.cache_info().currsize:
            check(torch_library().gpuledger_torch_uninstall_cpu())
    except ImportError as error:
        if _in_force is None:
            raise
        _say(f"CPU tensors are not charged: {error}")


def install(way: Way = "allocator", *, cpu: bool | None = None) -> Way | None:
    """Puts the ledger under all CUDA memory of PyTorch, before CUDA is first used; returns the way that is in force.

    ``allocator``
        gpuledger's own allocator; ``torch.cuda.memory_*`` works as ever. At a PyTorch version that it was not built for,
        or where it was left out of the build, it is ``pluggable`` instead, and a line on stderr says so.
    ``pluggable``
        gpuledger's allocator through PyTorch's plug-in interface, which has no statistics, snapshots and pools.
    ``observe``
        PyTorch's own allocator goes on, and gpuledger keeps the ledger. May be called at any time: what is alive by then is
        ``unattributed``.

    CPU tensors made from now on are charged if ``cpu`` is true, and not if it is false. Without ``cpu`` they are not once this
    call has put a way in force, and stay as they are if one was before. Returns None, with a line on stderr, if PyTorch was
    built without CUDA. A second call with the same way, or the one in force, only decides about the CPU; another way is a
    RuntimeError, and so is a call that comes too late.
    """
    global _asked, _in_force
    if way not in _WAYS:
        raise ValueError(f"way is {way!r}; it must be one of {', '.join(_WAYS)}")
    if _in_force is not None and way not in (_asked, _in_force):
        raise RuntimeError(
            f"CUDA memory is recorded by way of {_in_force!r} already, and a process has one way in: install {way!r} first, "
            f"or set GPULEDGER_TORCH={way}"
        )
    if torch.version.cuda is None:
        _say(f"PyTorch {torch.__version__} was built without CUDA: there is no CUDA memory to record")
    elif _in_force is None:
        _in_force = _WAYS[way]()
        _asked = way
        cpu = bool(cpu)
        with suppress(ImportError):  # not for this PyTorch, which the way may not need
            torch_library()  # carries the payer of backward() to its threads
    if cpu is not None:
        _decide_about_cpu(cpu)
    return _in_force


def install_from_environment(default: str = "off", *, cpu: bool | None = None) -> None:
    """``install`` with the way that ``GPULEDGER_TORCH`` names. Never an exception: a line on stderr says what was wrong."""
    way = os.environ.get("GPULEDGER_TORCH") or default
    try:
        if way in _WAYS:
            install(way, cpu=cpu)  # type: ignore[arg-type]
        elif way != "off":
            _say(f"GPULEDGER_TORCH={way} is none of {', '.join(_WAYS)} and off: CUDA memory is not recorded")
    except Exception as error:
        _say(f"CUDA memory is not recorded: {type(error).__name__}: {error}")


def outlook() -> tuple[bool, str, str]:
    """For ``gpuledger doctor``: whether the allocator way is open here, what there is, and what to do if it is not."""
    if torch.version.cuda is None:
        return False, f"PyTorch {torch.__version__} was built without CUDA", "install a PyTorch with CUDA to record a GPU's memory"
    chosen = os.environ.get("GPULEDGER_TORCH") or "off"
    built = f"PyTorch {torch.__version__} for CUDA {torch.version.cuda}, GPULEDGER_TORCH={chosen}"
    try:
        torch_cuda_library()
    except ImportError as error:
        return False, f"{built}: pluggable alone ({error})", "pip install gpuledger again, into the environment of this torch"
    if chosen not in (*_WAYS, "off"):
        return False, f"{built}, which is no way in", f"set it to {', '.join(_WAYS)} or off"
    return True, f"{built}: {', '.join(_WAYS)}", ""
