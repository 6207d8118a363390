"""A link between an object and what refers to it, as words. Looks at types alone, never at a class that an object claims."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import (
    AsyncGeneratorType,
    CellType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MemberDescriptorType,
    MethodType,
    TracebackType,
)
from typing import Any

_PLAIN = (str, bytes, int, float, bool, type(None))


@dataclass
class Link:
    """``holder`` refers to ``held``."""

    held: object
    holder: Any


def _is(value: object, *kinds: type) -> bool:
    return issubclass(type(value), kinds)


def _key(key: object) -> str | None:
    if type(key) in _PLAIN:
        text = repr(key)
    elif type(key) is tuple and all(type(part) in _PLAIN for part in key):
        text = repr(key)
    else:
        return None
    return text if len(text) <= 120 else text[:117] + "..."


def _in_dict(container: dict, held: object) -> str:
    for key, value in dict.items(container):
        if value is held:
            name = _key(key)
            return f"under a key of {type(key).__name__} of" if name is None else f"under key {name} of"
    return "a key of"


def _position(container: Iterable[object], held: object) -> str:
    for i, value in enumerate(container):
        if value is held:
            return f"element {i} of"
    return "an element of"


def attributes_of(instance: object) -> dict[str, object]:
    """The instance's own attributes, without asking it."""
    found: dict[str, object] = {}
    for kind in type(instance).__mro__:
        for name, member in type.__getattribute__(kind, "__dict__").items():
            if type(member) is MemberDescriptorType:
                try:
                    found[name] = member.__get__(instance)
                except AttributeError:
                    pass
    own = own_dict(instance)
    if own is not None:
        found.update(own)
    return found


def own_dict(instance: object) -> dict | None:
    try:
        found = object.__getattribute__(instance, "__dict__")
    except AttributeError:
        return None
    return found if type(found) is dict else None


def _attribute(instance: object, held: object) -> str | None:
    for name, value in attributes_of(instance).items():
        if value is held:
            return f"attribute '{name}' of"
    return None


def frame_of(holder: object) -> FrameType | None:
    """The frame that it is, or that it suspends."""
    if type(holder) is FrameType:
        return holder
    for kind, attribute in ((GeneratorType, "gi_frame"), (CoroutineType, "cr_frame"), (AsyncGeneratorType, "ag_frame")):
        if type(holder) is kind:
            return getattr(holder, attribute)
    return None


def locals_that_are(frame: FrameType, held: object) -> list[str]:
    """The names of the frame's locals that are the object."""
    snapshot = frame.f_locals
    names = [name for name, value in snapshot.items() if value is held]
    if isinstance(snapshot, dict) and sys.getrefcount(snapshot) <= 3:
        snapshot.clear()  # _paths.locals_of says why
    return names


def _local(frame: FrameType, held: object) -> str:
    code = frame.f_code
    where = f"{code.co_name}() in {os.path.basename(code.co_filename)}:{frame.f_lineno}"
    names = locals_that_are(frame, held)
    return f"local '{names[0]}' of {where}" if names else f"a value of {where}"


def _function(function: FunctionType) -> str:
    return f"{function.__qualname__}() in {os.path.basename(function.__code__.co_filename)}:{function.__code__.co_firstlineno}"


class _Words:
    """Words of a path, joined; a word that ends a clause is followed by a comma if anything comes after it."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, *words: str) -> None:
        for word in filter(None, words):
            self.text += (" " if self.text else "") + word

    def clause(self, word: str) -> None:
        self.text += ("" if not self.text else ", ") + word


def phrase_of(links: list[Link], root: str, root_is_module: bool) -> str:
    """``links`` lead from the object to the last holder, which is named ``root`` ("": it has no name)."""
    words = _Words()
    i = 0
    while i < len(links):
        held, holder = links[i].held, links[i].holder
        last = i == len(links) - 1
        if last and root_is_module:
            name = next((k for k, v in dict.items(holder) if v is held and type(k) is str), None)
            words.add("" if i else "module attribute", f"{root}.{name}" if name else f"a global of {root}")
            return _notebook(words.text)
        following = None if last else links[i + 1].holder
        i += 1
        if _is(holder, dict) and following is not None and (owner := _of_instance(holder, held, following)):
            words.add(owner)
            i += 1
        elif _is(holder, dict):
            if following is not None and (place := _of_module(holder, held, links[i - 1 :])):
                words.add(place[0])
                i += place[1]
            else:
                words.add(_in_dict(holder, held), type(holder).__name__)
        elif _is(holder, list, tuple, deque):
            words.add(_position(holder, held), type(holder).__name__)
        elif _is(holder, set, frozenset):
            words.add("an element of", type(holder).__name__)
        elif type(holder) is FrameType:
            words.add(_local(holder, held))
            if type(following) in (GeneratorType, CoroutineType, AsyncGeneratorType):  # before Python 3.11
                words.clause(f"a suspended {_generator(following)}")
                words.text += "," if i + 1 < len(links) or root else ""
                i += 1
        elif type(holder) in (GeneratorType, CoroutineType, AsyncGeneratorType):
            frame = frame_of(holder)
            words.add(_local(frame, held) if frame is not None else "")
            words.clause(f"a suspended {_generator(holder)}")
            words.text += "," if not last or root else ""
        elif type(holder) is TracebackType:
            while i < len(links) and type(links[i].holder) in (TracebackType, FrameType):
                i += 1
            words.clause("held by the traceback")
            if i < len(links) and _is(links[i].holder, BaseException):
                words.add(f"of {type(links[i].holder).__name__}")
                i += 1
        elif type(holder) is CellType:
            i += _closure(words, links, i)
        elif type(holder) is FunctionType:
            words.add("a default of" if _is(held, tuple, dict) else "held by", _function(holder))
        elif type(holder) is MethodType:
            words.add(f"bound to method {holder.__func__.__name__}()")
        elif _is(holder, type):
            words.add(f"attribute of class {holder.__module__}.{holder.__qualname__}")
        elif _is(holder, BaseException) and type(held) is not TracebackType and _attribute(holder, held) is None:
            words.add(f"an argument or the context of {type(holder).__name__}")
        elif (name := _attribute(holder, held)) is not None:
            words.add(name, type(holder).__name__)
        elif type(holder).__name__ == "_lru_cache_wrapper":
            words.add(f"in the cache of {getattr(holder, '__qualname__', 'a function')}()")
        else:
            words.add(f"held by {type(holder).__module__}.{type(holder).__name__}")
    words.add(root)
    return words.text


def _generator(generator: object) -> str:
    return {GeneratorType: "generator", CoroutineType: "coroutine"}.get(type(generator), "asynchronous generator")


def _of_instance(container: dict, held: object, owner: object) -> str:
    """The dict is the attributes of an instance or a class: its words, "" if it is not."""
    if _is(owner, type):
        for name, value in type.__getattribute__(owner, "__dict__").items():
            if value is held:
                return f"attribute '{name}' of class {owner.__module__}.{owner.__qualname__}"  # type: ignore[attr-defined]
        return ""
    if own_dict(owner) is not container:
        return ""
    name = next((k for k, v in container.items() if v is held), None)
    return f"attribute '{name}' of {type(owner).__name__}"


_OF_MODULE = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "submodule"}


def _of_module(container: dict, held: object, links: list[Link]) -> tuple[str, int] | None:
    """The dict is `_parameters` or the like of a torch module: its words, and how many more links they cover."""
    for skip, link in enumerate(links[1:3], start=1):
        attributes = attributes_of(link.holder) if type(link.holder) is not dict else {}
        for attribute, what in _OF_MODULE.items():
            if attributes.get(attribute) is container:
                name = next((k for k, v in dict.items(container) if v is held), None)
                return f"{what} '{name}' of {type(link.holder).__name__}", skip
    return None


def _closure(words: _Words, links: list[Link], i: int) -> int:
    """A cell, the function's tuple of cells, the function: one phrase. How many links beyond the cell it covers."""
    cell = links[i - 1].holder
    for covered, link in enumerate(links[i : i + 2], start=1):
        if type(link.holder) is FunctionType and link.holder.__closure__ is not None:
            for name, candidate in zip(link.holder.__code__.co_freevars, link.holder.__closure__):
                if candidate is cell:
                    words.add(f"variable '{name}' of closure {_function(link.holder)}")
                    return covered
    words.add("variable of a closure")
    return 0


def _notebook(text: str) -> str:
    """A notebook keeps every result in ``Out``."""
    start, _, key = text.partition("under key ")
    number, _, rest = key.partition(" of dict ")
    return f"{start}the notebook's Out[{number}]" if rest == "__main__.Out" else text
