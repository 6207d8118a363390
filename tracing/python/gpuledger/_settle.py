"""A settle from Python: wait for streams, collect cycles, drop known workspaces, say who holds what is left; then verdicts."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gpuledger import _lineage
from gpuledger._library import check_core, core, torch_library, waiting
from gpuledger._report import LeakReport, report_of


def _blocks(state: ctypes.c_void_p) -> list[tuple[int, int]]:
    count = ctypes.c_uint64()
    check_core(core().gpuledger_settle_blocks(state, None, None, 0, ctypes.byref(count)))
    addresses, sizes = (ctypes.c_uint64 * count.value)(), (ctypes.c_uint64 * count.value)()
    check_core(core().gpuledger_settle_blocks(state, addresses, sizes, len(addresses), ctypes.byref(count)))
    return list(zip(addresses, sizes))[: count.value]


def _drop_workspaces() -> None:
    """What libraries are known to keep for themselves."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()
    torch.backends.cuda.cufft_plan_cache.clear()


def _torch_is_attached() -> bool:
    # The part over LibTorch is never loaded just to settle; under another PyTorch than it was built for there are no facts.
    if "torch" not in sys.modules or not {"gpuledger.torch", "gpuledger._ways"} & sys.modules.keys():
        return False
    try:
        torch_library()
    except ImportError:
        return False
    return True


@contextmanager
def settled() -> Iterator[ctypes.c_void_p]:
    """The steps, one after the other; inside the block the verdict can be asked for."""
    state = ctypes.c_void_p()
    check_core(waiting().gpuledger_settle_begin(ctypes.byref(state)))
    try:
        status = waiting().gpuledger_settle_complete(state)
        if status not in (0, 4, 5):  # a stream that could not be waited for: undecided, and the report says so
            check_core(status)
        gc.collect()
        check_core(waiting().gpuledger_settle_collected(state))
        _drop_workspaces()
        check_core(waiting().gpuledger_settle_released(state))
        if _torch_is_attached():
            from gpuledger._tensors import note_facts

            blocks = _blocks(state)
            explained = _lineage.explained()
            note_facts(blocks, [start for start, _ in blocks if start not in explained])
        check_core(waiting().gpuledger_settle_end(state))
        yield state
    finally:
        core().gpuledger_settle_free(state)


def settle() -> None:
    """Decides what is leaked and what is kept, for a trace that is being written: waits for all streams, runs the garbage
    collector, drops workspaces that libraries keep, and notes who holds each block that is left."""
    with settled():
        pass


def leaks(suppressions: str | None = None) -> LeakReport:
    """Settles, and reports what is alive, by class; ``str()`` of the result is the text.

    ``suppressions``: rules, one a line: ``leak:PATTERN`` of a frame as LeakSanitizer has it, or ``owner:GLOB``.
    """
    with settled() as state:
        rules = None if suppressions is None else suppressions.encode()

        def text_of(as_json: int) -> tuple[str, bool]:
            needed, found = ctypes.c_size_t(), ctypes.c_int()
            check_core(waiting().gpuledger_settle_report(state, rules, as_json, None, 0, ctypes.byref(needed), ctypes.byref(found)))
            while True:
                buffer = ctypes.create_string_buffer(needed.value)
                check_core(waiting().gpuledger_settle_report(state, rules, as_json, buffer, len(buffer), ctypes.byref(needed), None))
                if needed.value <= len(buffer):
                    return buffer.value.decode(errors="replace"), bool(found.value)

        text, found = text_of(0)
        return report_of(json.loads(text_of(1)[0]), text, found)


