"""What a call stack costs: taken from Python at two depths, and on top of torch.empty. Nanoseconds of this thread's time.

    python bench/site_costs.py
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tracing" / "python"))

from gpuledger import _library  # noqa: E402

KINDS = {"none": (0, 0), "native": (1, 0), "python": (0, 1), "both": (1, 1)}


def at_depth(depth: int, call: Callable[[], float]) -> float:
    return call() if depth <= 1 else at_depth(depth - 1, call)


def cost(function: Callable[..., object], *arguments: object, times: int = 20000, rounds: int = 7) -> float:
    """The fastest of some rounds: what is slower was disturbed."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.thread_time_ns()
        for _ in range(times):
            function(*arguments)
        best = min(best, (time.thread_time_ns() - begin) / times)
    return best


def main() -> None:
    core = _library.core()
    site = ctypes.byref(ctypes.c_uint32())
    # The call itself, with an argument and nothing to do: what remains is the stack.
    idle = cost(core.gpuledger_set_stacks, 0, 0)
    for depth in (10, 30):
        for kind in ("native", "python", "both"):
            core.gpuledger_set_stacks(*KINDS[kind])
            taken = at_depth(depth - 2, lambda: cost(core.gpuledger_take_site, site))
            print(f"take_site, {depth} Python frames, {kind}: {taken - idle:.0f} ns")
    try:
        import torch

        import gpuledger.torch
    except ImportError:
        return
    gpuledger.torch.install_cpu()
    for depth in (10, 30):
        plain = 0.0
        for kind, which in KINDS.items():
            core.gpuledger_set_stacks(*which)
            taken = at_depth(depth - 2, lambda: cost(torch.empty, 64))
            plain = plain or taken
            print(f"torch.empty, {depth} Python frames, {kind}: {taken:.0f} ns ({taken - plain:+.0f})")


if __name__ == "__main__":
    main()
