"""The way of one weight: source, staging, quantized; and who still holds the source when it is over."""

from __future__ import annotations

import ctypes
import sys
from types import TracebackType

from gpuledger._library import LineageUsage, check_core, core, role_of

_STATES = ("none", "open", "closed")
# Weights whose blocks have holders noted at the moment their lineage closed: a settle leaves those as they are.
_noted: set[str] = set()


def blocks_of(owner: str, role: str | None = None) -> list[tuple[int, int]]:
    """Addresses and sizes of the blocks in use that ``owner`` pays for."""
    number = -1 if role is None else role_of(role)
    count, room = ctypes.c_uint64(), 0
    while True:
        addresses, sizes = (ctypes.c_uint64 * room)(), (ctypes.c_uint64 * room)()
        check_core(core().gpuledger_process_blocks(owner.encode(), number, addresses, sizes, room, ctypes.byref(count)))
        if count.value <= room:
            return list(zip(addresses, sizes))[: count.value]
        room = count.value


def explained() -> set[int]:
    """Addresses of the blocks whose holders were noted when their lineage closed."""
    found: set[int] = set()
    for weight in list(_noted):
        blocks = [start for role in ("source", "staging") for start, _ in blocks_of(weight, role)]
        found.update(blocks)
        if not blocks:
            _noted.discard(weight)
    return found


class lineage:
    """The lineage of ``weight``, read when it is made; as a ``with`` block, its conversion.

    >>> with gpuledger.lineage("layers.3.up_proj.weight"):
    ...     ...  # read the source, quantize it, drop it

    At the end of the block the source should be gone. If it is not, its holders are noted as they are at that moment, inside
    the function that converts: a report names them, long after their frames are gone.
    """

    __slots__ = ("weight", "state", "source_bytes", "staging_bytes", "quantized_bytes")

    def __init__(self, weight: str) -> None:
        found = LineageUsage()
        check_core(core().gpuledger_process_lineage(weight.encode(), ctypes.byref(found)))
        self.weight = weight
        self.state: str = _STATES[found.state]  # "none", "open" or "closed"
        self.source_bytes: int = found.source.in_use
        self.staging_bytes: int = found.staging.in_use
        self.quantized_bytes: int = found.quantized.in_use

    def __enter__(self) -> lineage:
        open_lineage(self.weight)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After an exception the conversion is not over: it stays open, and without a verdict.
        if kind is None:
            close_lineage(self.weight)

    def __repr__(self) -> str:
        return (
            f"lineage({self.weight!r}: {self.state}, source {self.source_bytes}, staging {self.staging_bytes}, "
            f"quantized {self.quantized_bytes} bytes)"
        )


def open_lineage(weight: str) -> None:
    """The conversion of ``weight`` begins. What it allocates as source and staging should be gone when it ends."""
    check_core(core().gpuledger_process_open_lineage(weight.encode()))


def close_lineage(weight: str) -> None:
    """The conversion is over. Source and staging bytes that are still there are *superseded*; who holds them is noted now."""
    check_core(core().gpuledger_process_close_lineage(weight.encode()))
    if "gpuledger.torch" not in sys.modules:
        return
    left = blocks_of(weight, "source") + blocks_of(weight, "staging")
    if left:
        from gpuledger._tensors import note_facts

        note_facts(left, decisive=False)
        _noted.add(weight)
