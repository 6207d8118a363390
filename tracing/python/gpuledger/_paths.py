"""Who keeps an object alive, as a path of names: ``element 0 of list under key 'w' of dict local 'sources' of load()``.

A search goes backwards from the objects: what refers to them, what refers to that, until something with a name of its own
is met: a module's attribute, a local of a running function, a class. It costs a few passes over all objects that the
garbage collector tracks (tens of milliseconds each), keeps nothing alive after it returns, runs none of the program's
code, and leaves itself out: it works on a list of the objects that were there before it began.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType, ModuleType, TracebackType

from gpuledger._hops import Link, frame_of, locals_that_are, phrase_of

_DEPTH = 16  # links from an object to the name at the end
_NODES = 50_000
_FEW = 24  # up to so many objects the collector's own search is faster than a pass of ours
_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep


@dataclass(frozen=True)
class Path:
    """One way in which an object is kept alive. ``through_traceback``: only because a traceback is kept."""

    text: str
    through_traceback: bool = False


def place_of(frame: FrameType) -> str:
    """``convert() in leaky_load.py:31``"""
    code = frame.f_code
    return f"{code.co_name}() in {os.path.basename(code.co_filename)}:{frame.f_lineno}"


def locals_of(frame: FrameType) -> list[tuple[int, str]]:
    """Ids and names of a function's locals; of a module or class none: its names are entries of a dict."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return []
    snapshot = frame.f_locals
    found = [(id(value), name) for name, value in snapshot.items()]
    # Before Python 3.13 the frame keeps this dict, and with it every local of that moment: a leak, if it stays. It is
    # emptied unless someone else has it too (frame, `snapshot`, and the argument of getrefcount are three).
    if isinstance(snapshot, dict) and sys.getrefcount(snapshot) <= 3:
        snapshot.clear()
    return found


class _Running:
    """The frames that run now, of all threads, but for this package's own."""

    def __init__(self) -> None:
        self.frames: set[int] = set()
        self.locals: defaultdict[int, list[str]] = defaultdict(list)  # by the id of the value, the outermost frame first
        stack: list[FrameType] = []
        frame: FrameType | None = None
        for frame in sys._current_frames().values():
            stack.clear()
            while frame is not None:
                stack.append(frame)
                frame = frame.f_back
            for frame in reversed(stack):
                self.frames.add(id(frame))
                if frame.f_code.co_filename.startswith(_OWN):
                    continue
                for identity, name in locals_of(frame):
                    self.locals[identity].append(f"local '{name}' of {place_of(frame)}")
        # This very frame is among them: a frame whose locals lead to itself outlives its call, and with it all it sees.
        stack.clear()
        del frame


def _module_dicts() -> dict[int, str]:
    names: dict[int, str] = {}
    for name, module in list(sys.modules.items()):
        if issubclass(type(module), ModuleType):  # a lazy one must not be asked for anything
            names.setdefault(id(object.__getattribute__(module, "__dict__")), name)
    return names


class Search:
    """What refers to some objects, and what to that. Made, asked, and dropped: it holds on to all it has found."""

    def __init__(self, choose: Callable[[list[object]], list[object]]) -> None:
        """``choose`` picks the objects to search for out of all that the collector tracks."""
        self._running = _Running()  # first: what holds a frame's snapshot of its locals keeps it from being emptied
        self._modules = _module_dicts()
        # It holds this object too, so it is not kept: that would be a cycle.
        everything = gc.get_objects()
        self._nodes: dict[int, object] = {}
        self._referrers: defaultdict[int, list[int]] = defaultdict(list)
        self._complete = False
        self._towards: dict[int, int | None] = {}  # the next link on the shortest way to a name; None: it has one itself
        self._look(choose(everything), everything)
        self._find_names()

    def _is_root(self, node: object) -> bool:
        return id(node) in self._modules or id(node) in self._running.locals or issubclass(type(node), type)

    @staticmethod
    def _holders_among(frontier: dict[int, object], everything: list[object], known: set[int]) -> Iterable[object]:
        if len(frontier) <= _FEW:
            return [r for r in gc.get_referrers(*frontier.values()) if id(r) in known]
        missing = frontier.keys().isdisjoint
        return [r for r in everything if not missing(map(id, gc.get_referents(r)))]

    def _is_passed_over(self, referrer: object) -> bool:
        if type(referrer) is FrameType:
            return id(referrer) in self._running.frames or referrer.f_code.co_filename.startswith(_OWN)
        frame = frame_of(referrer)
        return frame is not None and id(frame) in self._running.frames

    def _look(self, targets: list[object], everything: list[object]) -> None:
        known = set(map(id, everything))
        frontier = {id(target): target for target in targets}
        self._nodes.update(frontier)
        for _ in range(_DEPTH):
            if not frontier or len(self._nodes) > _NODES:
                break
            beyond: dict[int, object] = {}
            for referrer in self._holders_among(frontier, everything, known):
                if self._is_passed_over(referrer):
                    continue
                for referent in set(map(id, gc.get_referents(referrer))) & frontier.keys():
                    self._referrers[referent].append(id(referrer))
                if id(referrer) not in self._nodes:
                    self._nodes[id(referrer)] = referrer
                    if not self._is_root(referrer):
                        beyond[id(referrer)] = referrer
            frontier = beyond
        self._complete = not frontier

    def _find_names(self) -> None:
        referents: defaultdict[int, list[int]] = defaultdict(list)
        for referent, referrers in self._referrers.items():
            for referrer in referrers:
                referents[referrer].append(referent)
        reached = [i for i, node in self._nodes.items() if self._is_root(node)]
        self._towards = dict.fromkeys(reached)
        while reached:
            following = []
            for referrer in reached:
                for referent in referents[referrer]:
                    if referent not in self._towards:
                        self._towards[referent] = referrer
                        following.append(referent)
            reached = following

    def _is_cyclic(self, start: int) -> bool:
        """Whether a cycle is among what refers to it: what is left once all that nothing refers to is taken away."""
        above: set[int] = set()
        ahead = [start]
        while ahead:
            for referrer in self._referrers[ahead.pop()]:
                if referrer not in above:
                    above.add(referrer)
                    ahead.append(referrer)
        left = {node: sum(r in above for r in set(self._referrers[node])) for node in above}
        referents: defaultdict[int, list[int]] = defaultdict(list)
        for node in above:
            for referrer in set(self._referrers[node]):
                referents[referrer].append(node)
        free = [node for node, count in left.items() if count == 0]
        while free:
            node = free.pop()
            del left[node]
            for referent in referents[node]:
                left[referent] -= 1
                if left[referent] == 0:
                    free.append(referent)
        return bool(left)

    def _chain(self, target: int, first: int) -> tuple[list[object], str]:
        """From the object over its referrer to what has a name, and that name ("": none was found)."""
        chain = [self._nodes[target], self._nodes[first]]
        at = first
        met = {target, first}
        while True:
            if id(chain[-1]) in self._modules:
                return chain, self._modules[at]
            if at in self._running.locals:
                return chain, self._running.locals[at][0]
            following = self._towards.get(at)
            if following is None and at not in self._towards:  # nothing has a name: as far as it goes
                following = next((r for r in self._referrers[at] if r not in met), None)
            if following is None or following in met:
                return chain, ""
            at = following
            met.add(at)
            chain.append(self._nodes[at])

    def paths(self, target: object, limit: int = 8) -> list[Path]:
        """The ways in which the object is kept alive: one for each reference to it."""
        found = [Path(phrase) for phrase in self._running.locals.get(id(target), [])]
        for referrer in dict.fromkeys(self._referrers[id(target)]):
            chain, root = self._chain(id(target), referrer)
            text = phrase_of([Link(a, b) for a, b in zip(chain, chain[1:])], root, id(chain[-1]) in self._modules)
            if not root and not issubclass(type(chain[-1]), type):
                if self._complete and self._is_cyclic(id(target)):
                    text += ", a cycle that nothing else refers to"
            through = any(type(node) is TracebackType for node in chain)
            found.append(Path(text, through))
            frame = frame_of(chain[1])
            names = locals_that_are(frame, target) if frame is not None else []
            found += [Path(text.replace(f"'{names[0]}'", f"'{name}'", 1), through) for name in names[1:]]
        unique = list(dict.fromkeys(found))
        return unique[:limit] + ([Path(f"{len(unique) - limit} more")] if len(unique) > limit else [])

