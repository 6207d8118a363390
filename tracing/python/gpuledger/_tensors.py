"""Which tensors lie on which blocks, and facts about those blocks: what they are, who holds them, how much a view sees.

Imported only where torch is. Looks at tensors through their C++ side: a subclass's own code is not run, a copy-on-write
storage stays shared, one whose bytes are gone raises nothing.
"""

from __future__ import annotations

import bisect
import ctypes
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from gpuledger._library import Place, Report, core, torch_library
from gpuledger._paths import Path, Search

HOLDER, TRACEBACK, ALIASES, LARGEST_VIEW, _UNREACHABLE, TENSOR = range(6)  # gpuledger_fact_kind
_LIMIT = 8
_GRADIENT = "gradient of "


@dataclass
class _Seen:
    """A Python object that keeps a storage alive."""

    object: object
    what: str  # "float16 [4096, 1024]", "" for a storage object
    prefix: str  # before the path: which alias it is
    covered: int
    is_view: bool


@dataclass
class _Block:
    seen: list[_Seen] = field(default_factory=list)


class _Blocks:
    """Blocks by the addresses within them."""

    def __init__(self, places: Iterable[tuple[int, int]]) -> None:
        self._places = sorted(places)
        self._starts = [address for address, _ in self._places]

    def start_of(self, address: int) -> int | None:
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0 or not address:
            return None
        start, size = self._places[at]
        return start if address < start + max(size, 1) else None


def describe(tensor: torch.Tensor) -> str:
    """``float16 [4096, 1024]``"""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _place(tensor: torch.Tensor) -> Place | None:
    place = Place()
    return None if torch_library().gpuledger_torch_locate(tensor._cdata, ctypes.byref(place)) else place


def address_of(tensor: torch.Tensor) -> int:
    """Where its storage lies; 0 if it has none."""
    with torch._C.DisableTorchFunctionSubclass():
        place = _place(tensor)
    return place.address if place is not None else 0


def _seen_of(tensor: torch.Tensor, place: Place) -> _Seen:
    what = describe(tensor)
    kind = type(tensor).__name__
    is_view = bool(tensor._is_view())
    prefix = f"view {what}: " if is_view else "" if kind == "Tensor" else f"{kind} {what}: "
    return _Seen(tensor, what, prefix, place.covered, is_view)


def _has(holder: _Seen, tensor: object) -> bool:
    """Whether it is what keeps that tensor, in C++: its view, or the parameter whose gradient it is."""
    if holder.prefix.startswith(_GRADIENT):
        return holder.object.grad is tensor  # type: ignore[attr-defined]
    return holder.is_view and holder.object._base is tensor  # type: ignore[attr-defined]


class Holders:
    """The holders of the storages on some blocks. Drop it after use: it keeps them alive."""

    def __init__(self, places: Iterable[tuple[int, int]]) -> None:
        self._blocks = _Blocks(places)
        self.found: defaultdict[int, _Block] = defaultdict(_Block)
        with torch._C.DisableTorchFunctionSubclass():
            self._search = Search(self._choose)

    def _choose(self, everything: list[object]) -> list[object]:
        kinds = set(map(type, everything))
        tensors = {kind for kind in kinds if issubclass(kind, torch.Tensor)}
        storages = {kind for kind in kinds if issubclass(kind, (torch.UntypedStorage, torch.TypedStorage))}
        chosen: dict[int, object] = {}
        grads: list[tuple[int, torch.Tensor, Place]] = []
        for candidate in everything:
            if type(candidate) in tensors:
                place = _place(candidate)  # type: ignore[arg-type]
                start = None if place is None else self._blocks.start_of(place.address)
                if start is not None:
                    self.found[start].seen.append(_seen_of(candidate, place))  # type: ignore[arg-type]
                    chosen[id(candidate)] = candidate
                if candidate.is_leaf and (grad := candidate.grad) is not None:  # type: ignore[attr-defined]
                    place = _place(grad)
                    start = None if place is None else self._blocks.start_of(place.address)
                    if start is not None:
                        grads.append((start, candidate, place))  # type: ignore[arg-type]
            elif type(candidate) in storages:
                place = Place()
                untyped = candidate if isinstance(candidate, torch.UntypedStorage) else candidate._untyped_storage  # type: ignore[attr-defined]
                if torch_library().gpuledger_torch_locate_storage(untyped._cdata, ctypes.byref(place)) == 0:
                    start = self._blocks.start_of(place.address)
                    if start is not None:
                        self.found[start].seen.append(_Seen(candidate, "", "storage object: ", place.bytes, False))
                        chosen[id(candidate)] = candidate
        for start, parameter, place in grads:
            prefix = f"{_GRADIENT}{type(parameter).__name__} {describe(parameter)}: "
            self.found[start].seen.append(_Seen(parameter, describe(parameter), prefix, place.covered, False))
            chosen[id(parameter)] = parameter
        return list(chosen.values())

    def paths(self, start: int) -> list[Path]:
        """The paths that keep the block's storage alive."""
        found: list[Path] = []
        for seen in sorted(self.found[start].seen, key=lambda s: (s.prefix != "", s.is_view)):
            ways = self._search.paths(seen.object, _LIMIT)
            if not ways and any(_has(other, seen.object) for other in self.found[start].seen):
                continue
            if not ways:
                # A tensor of Python that nothing of Python's refers to: an array made of it, or C++.
                found.append(Path(f"{seen.prefix}a reference that Python does not show (a NumPy array, C++)"))
            found += [Path(seen.prefix + way.text, way.through_traceback) for way in ways]
        if len(found) > _LIMIT:
            found[_LIMIT:] = [Path(f"{len(found) - _LIMIT} more")]
        return found

    def hidden(self, start: int) -> str:
        """Aliases that Python does not see, counted: "" if there is none."""
        seen = self.found[start].seen
        if not seen:
            return "held by C++ alone: no object of Python refers to it"
        tensors = [s.object for s in seen if isinstance(s.object, torch.Tensor) and not s.prefix.startswith(_GRADIENT)]
        if not tensors:
            return ""
        report = Report()
        handles = aliases = 0
        bases = [id(t._base) for t in tensors if t._is_view()]
        for tensor in tensors:
            if torch_library().gpuledger_torch_inspect(tensor._cdata, 0, ctypes.byref(report)) == 0:
                known = bases.count(id(tensor)) + sum(_has(s, tensor) for s in seen if not s.is_view)
                handles += max(0, report.tensor_handles - known)
                aliases = max(aliases, report.aliases)
        storages = sum(1 for s in seen if not s.what)
        aliases = max(0, aliases - (len(tensors) - 1) - storages)
        parts = []
        if handles:
            parts.append(f"{handles} handle{'s' * (handles > 1)} in C++ (autograd, bases of views)")
        if aliases:
            parts.append(f"{aliases} other tensor{'s' * (aliases > 1)} on the storage that Python does not see")
        return ", ".join(parts)

    def tensor(self, start: int) -> str:
        """What lies there: the largest of its tensors."""
        seen = [s for s in self.found[start].seen if s.what]
        return max(seen, key=lambda s: (s.covered, not s.is_view)).what if seen else ""

    def largest_view(self, start: int) -> int | None:
        """How many bytes the largest view sees, if Python sees one."""
        seen = self.found[start].seen
        # The base of a view that nobody else has sees it whole, but nobody sees that.
        shown = [s for s in seen if not any(_has(other, s.object) for other in seen) or self._search.paths(s.object)]
        return max((s.covered for s in shown), default=None)


def note_facts(places: list[tuple[int, int]], with_holders: Iterable[int] | None = None, decisive: bool = True) -> None:
    """Writes the facts of the blocks: holders of ``with_holders`` (default: of all). ``decisive``: also what a verdict
    hangs on, for a settle."""
    if not places:
        return
    holders = Holders(places)
    wanted = None if with_holders is None else set(with_holders)
    note = core().gpuledger_fact
    for start, _ in places:
        paths = holders.paths(start) if start in holders.found else []
        kept_by_traceback = bool(paths) and all(path.through_traceback for path in paths)
        for path in paths:
            if decisive and kept_by_traceback:
                note(start, TRACEBACK, 0, path.text.encode())
            elif wanted is None or start in wanted:
                note(start, HOLDER, 0, path.text.encode())
        if wanted is None or start in wanted:
            hidden = holders.hidden(start)
            if hidden:
                note(start, ALIASES, 0, hidden.encode())
        what = holders.tensor(start)
        if what:
            note(start, TENSOR, 0, what.encode())
        view = holders.largest_view(start)
        if decisive and view is not None and not holders.hidden(start):
            note(start, LARGEST_VIEW, view, None)
