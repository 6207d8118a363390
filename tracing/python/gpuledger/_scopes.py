"""Who pays: scopes, and scopes carried into other threads."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from gpuledger._library import Payer, check_core, core, last_error, role_of

_F = TypeVar("_F", bound=Callable[..., Any])

# All scopes that were asked for, by what Python was given: names repeat. They stay: C knows a scope by where its path lies.
_scopes: dict[tuple[str, str, bool], OwnerScope] = {}
_enter: Callable[[bytes, int, int], int]
_leave: Callable[[bytes], int]


class OwnerScope:
    """A scope, made by :func:`owner`. Holds no state: it may be entered again, also while it is entered, by any thread."""

    __slots__ = ("_path", "_role", "_transient")

    def __init__(self, name: str, role: str, transient: bool) -> None:
        global _enter, _leave
        if not isinstance(name, str):
            raise TypeError(f"an owner's name is a str, not {type(name).__name__}")
        if "\0" in name:
            raise ValueError("an owner's name has no zero byte")
        self._path = name.encode()
        self._role = role_of(role)
        self._transient = int(transient)
        _enter, _leave = core().gpuledger_enter_scope, core().gpuledger_leave_scope

    def __enter__(self) -> None:
        if _enter(self._path, self._role, self._transient):
            raise ValueError(last_error())

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if _leave(self._path):
            raise ValueError(last_error())

    def __call__(self, function: _F) -> _F:
        @functools.wraps(function)
        def paying(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return paying  # type: ignore[return-value]


def owner(name: str, role: str = "other", transient: bool = False) -> OwnerScope:
    """Makes ``name`` pay for what this thread allocates inside the ``with`` block, or in the function it decorates.

    Blocks nest: ``owner("model")`` around ``owner("layers.3")`` pays as ``model/layers.3``. ``role`` says what the
    memory is to the owner: source, staging, quantized, scratch, activation, gradient, optimizer, cache or other.
    ``transient``: what is allocated inside should be gone at the end of the block, or be adopted by then; what is not
    is a scope escape in a leak report.

    A scope belongs to its thread. In a generator or coroutine, end it before ``yield`` or ``await``: what runs in between
    would pay with it.
    """
    try:
        return _scopes[name, role, transient]
    except (KeyError, TypeError):
        return _scopes.setdefault((name, role, transient), OwnerScope(name, role, transient))


class Scope:
    """The innermost scope of the thread that asked: entered in another one, that thread pays the same. See :func:`carry`."""

    __slots__ = ("_payer", "_tokens")

    def __init__(self) -> None:
        self._payer = Payer()
        check_core(core().gpuledger_current_payer(ctypes.byref(self._payer)))
        self._tokens: list[int] = []

    def __enter__(self) -> None:
        token = ctypes.c_uint64()
        check_core(core().gpuledger_adopt_payer(ctypes.byref(self._payer), ctypes.byref(token)))
        self._tokens.append(token.value)

    def __exit__(self, *raised: object) -> None:
        check_core(core().gpuledger_close_scope(self._tokens.pop()))


def current_scope() -> Scope:
    """The scope that this thread is in, to be entered in another thread."""
    return Scope()


def carry(function: _F) -> _F:
    """``function``, to be called in any thread: it pays as the thread that called :func:`carry` paid then.

    >>> with gpuledger.owner("loader"):
    ...     threading.Thread(target=gpuledger.carry(read_shards)).start()
    """
    payer = Scope()._payer

    @functools.wraps(function)
    def carried(*args: Any, **kwargs: Any) -> Any:
        token = ctypes.c_uint64()
        check_core(core().gpuledger_adopt_payer(ctypes.byref(payer), ctypes.byref(token)))
        try:
            return function(*args, **kwargs)
        finally:
            check_core(core().gpuledger_close_scope(token.value))

    return carried  # type: ignore[return-value]
