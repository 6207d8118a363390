"""Names the holders of a tensor's storage as far as Python can see them: names in frames, containers, attributes.

Counts say how many, not who, so this looks: every tensor the garbage collector tracks that shares the storage, and
what refers to it. It costs time in proportion to the number of objects, and runs only when a holder was counted.
Tensors held by C++ alone (autograd, std::vector) have no name here.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections import defaultdict
from collections.abc import Iterator
from types import CellType, FrameType, GeneratorType

import torch

_LIMIT = 8


def _shares(candidate: object, storage: int) -> bool:
    # type(), not isinstance(): lazy proxies run code when they are asked for their class.
    if not issubclass(type(candidate), torch.Tensor):
        return False
    try:
        return candidate.untyped_storage()._cdata == storage  # type: ignore[attr-defined]
    except (RuntimeError, NotImplementedError):
        return False  # no storage


def _locals_of(frame: FrameType, suffix: str = "") -> Iterator[tuple[int, str]]:
    """The tensors among the frame's locals: id and phrase."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return  # a module's or class's names are entries of its dict
    snapshot = frame.f_locals
    found = [(id(value), name) for name, value in snapshot.items() if issubclass(type(value), torch.Tensor)]
    # Before Python 3.13 the frame keeps this dict, and with it every local of that moment: a leak, if it stays. It is
    # emptied unless someone else has it too (frame, `snapshot`, and the argument of getrefcount are three).
    if isinstance(snapshot, dict) and sys.getrefcount(snapshot) <= 3:
        snapshot.clear()
    for identity, name in found:
        yield identity, f"local '{name}' of {frame.f_code.co_name}(){suffix}"


def _in_container(container: object, tensor: torch.Tensor) -> Iterator[str]:
    if isinstance(container, dict):
        kind = "global" if "__name__" in container and "__builtins__" in container else "dict entry"
        for key, value in container.items():
            if value is tensor:
                yield f"{kind} '{key}'" if isinstance(key, str) else f"a {kind}"
    elif isinstance(container, (list, tuple, set, frozenset)):
        yield f"a {type(container).__name__} of {len(container)}"
    elif isinstance(container, GeneratorType):
        if container.gi_frame is not None:
            for identity, phrase in _locals_of(container.gi_frame, ", a suspended generator"):
                if identity == id(tensor):
                    yield phrase
    elif isinstance(container, CellType):
        yield "a closure"


def python_holders(tensor: torch.Tensor) -> list[str]:
    """A phrase for each tensor on the storage, with the references to it that Python can name; the caller's own is
    among them."""
    storage = tensor.untyped_storage()._cdata
    running: defaultdict[int, list[str]] = defaultdict(list)
    frame = sys._getframe(2)  # past this function and consume()
    while frame is not None:
        for identity, phrase in _locals_of(frame):
            running[identity].append(phrase)
        frame = frame.f_back
    sharing = [candidate for candidate in gc.get_objects() if _shares(candidate, storage)]
    phrases: list[str] = []
    for alias in sharing[:_LIMIT]:
        what = "" if alias is tensor else f"another {type(alias).__name__} {tuple(alias.shape)}"
        names = list(running[id(alias)])
        for referrer in gc.get_referrers(alias):
            if referrer is not sharing and not isinstance(referrer, FrameType):
                names += _in_container(referrer, alias)
        phrase = ": ".join(filter(None, [what, " and ".join(dict.fromkeys(names))]))
        if phrase:
            phrases.append(phrase)
    if len(sharing) > _LIMIT:
        phrases.append(f"{len(sharing) - _LIMIT} more tensors")
    return phrases
