"""The lines of the user's own code that an error, a trace or a change comes from."""

from __future__ import annotations

import gc
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import onnx_ir
import onnxscript
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_FRAMEWORKS = tuple(
    f"{Path(file).parent}/" for file in (torch.__file__, onnxscript.__file__, onnx_ir.__file__, __file__)
)
_STANDARD_LIBRARY = f"{sysconfig.get_paths()['stdlib']}/"


@dataclass(frozen=True)
class SourceLine:
    """A line of a source file.

    Attributes:
        path: the file.
        number: the number of the line, from 1.
        text: the line, without white space around it.
    """

    path: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.text}"


def at(line: SourceLine | None) -> str:
    """A line as a part of a sentence; empty if it is not known."""
    return "" if line is None else f" at {line}"


def line_of_error(error: BaseException) -> SourceLine | None:
    """The innermost line of the user's code that an error passed, or the errors that caused it; None if it passed
    none."""
    for cause in reversed(list(causes(error))):
        frames = [(frame, number) for frame, number in traceback.walk_tb(cause.__traceback__) if _is_of_user(frame)]
        if frames:
            return _line(*frames[-1])
    return None


def current_line() -> SourceLine | None:
    """The innermost line of the user's code that is running; None if there is none above the caller's package."""
    for frame, number in traceback.walk_stack(sys._getframe(1)):
        if _is_of_user(frame):
            return _line(frame, number)
    return None


def line_that_changes(call: Callable[[], object], changed: Callable[[], bool]) -> SourceLine | None:
    """Run a call once more to find the line of the user's code that makes a change.

    Args:
        call: the call; its errors are ignored.
        changed: returns whether the change has been made.
    """
    last: tuple[FrameType, int] | None = None
    found: SourceLine | None = None

    def check(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal last, found
        if found is None and last is not None and changed():
            found = _line(*last)
        if event == "line":
            last = frame, frame.f_lineno
        return check

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        return check if _is_of_user(frame) else None

    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()  # a collection would run lines of other packages in the middle of the user's
    sys.settrace(enter)
    try:
        with suppress(Exception):
            call()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return found


def line_of_operator(call: Callable[[], object], names: Container[str]) -> SourceLine | None:
    """Run a call once more to find the line of the user's code that uses one of torch's operators.

    Args:
        call: the call; its errors are ignored.
        names: the names of the operators, such as "linalg_svd".
    """
    found = _OperatorLine(names)
    with suppress(Exception), found:
        call()
    return found.line


class _OperatorLine(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the first line that uses one of some operators."""

    def __init__(self, names: Container[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.line: SourceLine | None = None
        self._names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.line is None and func.overloadpacket.__name__ in self._names:
            self.line = current_line()
        return func(*args, **(kwargs or {}))


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and the errors that caused it, the first one last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _is_of_user(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    if path.startswith(_STANDARD_LIBRARY):
        return "site-packages" in path and not path.startswith(_FRAMEWORKS)
    return not path.startswith((*_FRAMEWORKS, "<frozen"))


def _line(frame: FrameType, number: int) -> SourceLine:
    path = frame.f_code.co_filename
    return SourceLine(path, number, linecache.getline(path, number, frame.f_globals).strip())
