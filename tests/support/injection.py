"""Defects at chosen points: a function raises in one of its calls, and does its work in all others."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class DefectError(Exception):
    """What is raised; no part of elman knows it."""


@dataclass
class Injection:
    """A defect.

    Attributes:
        calls: how many calls there were.
        raised: how many of them raised.
    """

    calls: int = 0
    raised: int = 0


@contextmanager
def raising(
    owner: Any, name: str, when: Callable[[Injection, tuple[Any, ...]], bool], *, threads: tuple[str, ...] = ("",)
) -> Iterator[Injection]:
    """Have an attribute raise.

    Args:
        owner: the class, object or module whose attribute it is: a function, a static method or a property.
        name: the attribute.
        when: whether a call raises, by what happened before and the call's arguments.
        threads: how the names of the threads begin whose calls count.
    """
    kept = inspect.getattr_static(owner, name)
    is_own = name in vars(owner)
    injection, lock = Injection(), threading.Lock()

    def wrapped(function: Any) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread().name.startswith(threads):
                with lock:
                    injection.calls += 1
                    raises = when(injection, arguments)
                    injection.raised += raises
                if raises:
                    raise DefectError(f"injected into {name}")
            return function(*arguments, **options)

        return call

    if isinstance(kept, property):
        replaced: Any = property(wrapped(kept.fget), kept.fset)
    elif isinstance(kept, staticmethod):
        replaced = staticmethod(wrapped(kept.__func__))
    else:
        replaced = wrapped(getattr(owner, name) if inspect.ismethod(getattr(owner, name)) else kept)
    setattr(owner, name, replaced)
    try:
        yield injection
    finally:
        if is_own:
            setattr(owner, name, kept)
        else:
            delattr(owner, name)


def nth(number: int) -> Callable[[Injection, tuple[Any, ...]], bool]:
    """Raise in one call, counted from 1."""
    return lambda injection, _: injection.calls == number


def points_of(*owners: type, leave_out: frozenset[str] = frozenset()) -> list[tuple[type, str]]:
    """All methods and properties that classes define themselves, without those of Python's protocols.

    Args:
        owners: the classes.
        leave_out: names of methods, or of classes and methods, that are no points.
    """
    return [
        (owner, name)
        for owner in owners
        for name, value in vars(owner).items()
        if inspect.isfunction(value) or isinstance(value, property | staticmethod)
        if not name.startswith("__") and not {name, f"{owner.__name__}.{name}"} & leave_out
    ]
