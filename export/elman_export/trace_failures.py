"""Why torch cannot export a module: the reason, the line of the user's code, and what to write instead."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from onnxscript import ir

from elman_export.export_error import ExportError
from elman_export.source_lines import SourceLine, current_line, line_of_error, line_of_operator

# torch names no line for a size that became a fixed number, but this logger tells of it while the line runs.
_SIZES = logging.getLogger("torch.fx.experimental.symbolic_shapes")
_NEW_SIZE = re.compile(r"create_symbol (?P<size>s\d+) = \d+ for .*\.size\(\)\[(?P<axis>\d+)\]")
_FIXED_SIZE = re.compile(
    r"((eval|runtime_assert) Eq\(|set_replacement )(?P<size>s\d+)(, \d+\) \[guard added\]| = \d+ )"
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
_LONGEST_REASON = 300  # characters

Sizes = Mapping[str, Mapping[int, torch.export.Dim]]


class FixedSizes(logging.Handler):
    """Remembers, for each axis, the first line at which torch takes a size as a fixed number.

    Attributes:
        lines: the lines by axis.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: dict[int, SourceLine] = {}
        self._axes: dict[str, int] = {}  # by torch's name of a size

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if made := _NEW_SIZE.match(message):
            self._axes[made["size"]] = int(made["axis"])
        elif fixed := _FIXED_SIZE.match(message):
            axis, line = self._axes.get(fixed["size"]), current_line()
            if axis is not None and line is not None:
                self.lines.setdefault(axis, line)


@contextmanager
def fixed_sizes() -> Iterator[FixedSizes]:
    """Watch an export for sizes that it takes as fixed numbers; the logger prints nothing meanwhile."""
    handler = FixedSizes()
    level, propagate, handlers = _SIZES.level, _SIZES.propagate, _SIZES.handlers
    _SIZES.handlers, _SIZES.propagate = [handler], False
    _SIZES.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        _SIZES.handlers, _SIZES.propagate = handlers, propagate
        _SIZES.setLevel(level)


def check_sizes(model: ir.Model, sizes: Sizes, fixed: FixedSizes, what: str) -> None:
    """Check that a graph takes any number of rows, positions and children.

    Args:
        model: the graph.
        sizes: the sizes that must not be fixed, by the names of its inputs and the axes.
        fixed: what was noticed while it was made.
        what: what was exported, for error messages.

    Raises:
        ExportError: one is fixed.
    """
    found: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, size in sizes.get(str(value.name), {}).items():
            number = None if value.shape is None else value.shape[axis]
            if isinstance(number, int):
                found[size.__name__] = f"{number}{_at(fixed.lines.get(axis))}"
    if found:
        raise _fixed_sizes(what, found)


def explain(error: Exception, fixed: FixedSizes, what: str, call: Callable[[], object]) -> ExportError:
    """The error to raise for one of torch's.

    Args:
        error: what torch raised.
        fixed: what was noticed meanwhile.
        what: what could not be exported.
        call: runs it in torch.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text, line = _COLOURS.sub("", str(cause)), line_of_error(error)
    if type(cause).__name__ == "GuardOnDataDependentSymNode":
        return ExportError(
            f"{what}: decides in Python by the value of a tensor{_at(line)}; a graph is the same for all values. "
            "Choose for each row with torch.where(condition, one, other), and mask instead of looping up to a value"
        )
    if found := re.match(r"Constraints violated \((\w+)", text):
        return _fixed_sizes(what, {found[1]: f"one number{_at(next(iter(fixed.lines.values()), None))}"})
    if (packed := line_of_operator(call, {"_pack_padded_sequence"})) is not None:
        return ExportError(
            f"{what}: packs sequences{_at(packed)}; packed sequences have no form in ONNX. Read the padded ones, and "
            "set to zero what follows their ends"
        )
    line = line or line_of_operator(call, _untranslated(error))
    if found := _OPERATOR.search(text):
        return ExportError(
            f"{what}: torch cannot express the operator {found[1]} in ONNX{_at(line)}. Write it with other operators"
        )
    reason = " ".join(text.strip().partition("\n\n")[0].split())[:_LONGEST_REASON]
    return ExportError(f"{what}: torch cannot export it to ONNX: {type(cause).__name__}: {reason}{_at(line)}")


def _fixed_sizes(what: str, found: Mapping[str, str]) -> ExportError:
    """The error for sizes, by name, that are fixed to a number at a line."""
    which = ", and ".join(f"the number of {size} is fixed to {number}" for size, number in found.items())
    return ExportError(
        f"{what}: {which}; it may be any. Take it from the shape of a tensor, as in torch.zeros(x.shape[0], 1), "
        f"without len(), int() or tolist(), and compute all {' and '.join(found)} at once, not in a Python loop, of "
        "which a graph has the turns of one example"
    )


def _untranslated(error: BaseException) -> set[str]:
    """The names of the operator that torch was translating when an error was raised: its own, and that of the function
    from which torch has made it."""
    found: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, torch.fx.Node):
                found |= {getattr(node.target, "__name__", "").partition(".")[0]}
                found |= {re.sub(r"_\d+$", "", name) for name in node.meta.get("torch_fn", ())[:1]}
        cause = cause.__cause__
    return found


def _at(line: SourceLine | None) -> str:
    return "" if line is None else f" at {line}"
