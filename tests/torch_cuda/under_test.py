"""Which allocator of PyTorch's CUDA tensors a session tests: GPULEDGER_TEST_ALLOCATOR=native, expandable or ours.

*native* is PyTorch's own, *expandable* the same with expandable_segments:True, *ours* gpuledger's, out of the library
GPULEDGER_TORCH_CUDA_LIBRARY. What a user relies on is the same under all three. What differs is geometry: which sizes are
reserved for the same tensors, and how the cache is cut up; it stands in the table here. Imports no torch.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHOICES = ("native", "expandable", "ours")
# Files whose tests say themselves which way in they are about: run once.
OWN_WAY = ("test_observe.py", "test_owners.py", "test_pluggable.py", "test_ways_in.py")
# Files that say little of PyTorch's own allocator: parity compares it with itself.
OF_OURS = ("test_ends.py", "test_parity.py")
MIB = 1 << 20


def chosen() -> str:
    choice = os.environ.get("GPULEDGER_TEST_ALLOCATOR") or "native"
    if choice not in CHOICES:
        raise RuntimeError(f"GPULEDGER_TEST_ALLOCATOR={choice}: it is one of {', '.join(CHOICES)}")
    return choice


def library() -> Path:
    return Path(os.environ.get("GPULEDGER_TORCH_CUDA_LIBRARY") or HERE.parents[1] / "build/release/lib/libgpuledger_torch_cuda.so")


def sessions(file: str) -> list[str]:
    """The allocators under which `pytest tests` runs a file: the one that was asked for, or PyTorch's own and ours. Ours is left
    out where it was not built, which run.sh refuses."""
    if file in OWN_WAY:
        return ["native"]
    if "GPULEDGER_TEST_ALLOCATOR" in os.environ:
        return [chosen()]
    ours = ["ours"] if library().exists() else []
    return ours if ours and file in OF_OURS else ["native", *ours]


def environment(choice: str) -> dict[str, str]:
    """This process's environment, for one that tests `choice`."""
    made = {name: value for name, value in os.environ.items() if name not in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")}
    paths = [path for path in made.pop("PYTHONPATH", "").split(os.pathsep) if path and path != str(HERE / "ours")]
    if choice == "expandable":
        made["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if choice == "ours":
        if not library().exists():
            raise RuntimeError(f"{library()}: not built (cmake --build --preset release --target gpuledger_torch_cuda)")
        made["GPULEDGER_TORCH_CUDA_LIBRARY"] = str(library())
        paths.insert(0, str(HERE / "ours"))
    if paths:
        made["PYTHONPATH"] = os.pathsep.join(paths)
    return made | {"GPULEDGER_TEST_ALLOCATOR": choice}


def switch_on() -> None:
    """For this process, before torch is imported, and for those that it starts."""
    if "torch" in sys.modules:
        raise RuntimeError("the allocator has to be chosen before torch is imported")
    made = environment(chosen())
    for name in set(os.environ) - set(made):
        del os.environ[name]
    os.environ.update(made)
    if chosen() == "ours":
        sys.path.insert(0, str(HERE / "ours"))


@dataclass(frozen=True)
class Geometry:
    """What an allocator reserves for tensors: those of up to `small_limit` bytes together in units of `small`, larger ones
    of less than `own_segment` together in units of `large`, and from there on each by itself, rounded to `own_unit`."""

    small_limit: int
    small: int
    large: int
    own_segment: int
    own_unit: int
    one_range: bool  # free neighbours merge whatever they were allocated as, and a free tail goes back on its own
    segments_by_size: bool  # a segment of the small pool holds what counts as small (up to 1 MiB), and nothing else does

    def reserved(self, *sizes: int) -> int:
        def up(size: int, unit: int) -> int:
            return -(-size // unit) * unit

        small = sum(up(size, 512) for size in sizes if size <= self.small_limit)
        large = sum(up(size, 512) for size in sizes if self.small_limit < size < self.own_segment)
        own = [up(size, self.own_unit) for size in sizes if size > self.small_limit and size >= self.own_segment]
        return up(small, self.small) + up(large, self.large) + sum(own)


NEVER = 1 << 62
GEOMETRY = {
    "native": Geometry(1 * MIB, 2 * MIB, 20 * MIB, 10 * MIB, 2 * MIB, one_range=False, segments_by_size=True),
    "expandable": Geometry(1 * MIB, 2 * MIB, 20 * MIB, NEVER, 2 * MIB, one_range=True, segments_by_size=True),
    "ours": Geometry(256 << 10, 2 * MIB, 2 * MIB, NEVER, 2 * MIB, one_range=True, segments_by_size=False),
}


def geometry() -> Geometry:
    return GEOMETRY[chosen()]
