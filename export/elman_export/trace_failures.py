"""Why torch cannot export a module: the reason, the line of the user's code, and what to write instead."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from onnxscript import ir
from torch import Tensor, nn

from elman_export.export_error import ExportError
from elman_export.source_lines import SourceLine, at, causes, current_line, line_of_error, line_of_operator

# torch names no line for a size that became a fixed number, but this logger tells of it while the line runs.
_SIZES = logging.getLogger("torch.fx.experimental.symbolic_shapes")
_NEW_SIZE = re.compile(r"create_symbol (?P<size>s\d+) = \d+ for .*\.size\(\)\[(?P<axis>\d+)\]")
_FIXED_SIZE = re.compile(
    r"((eval|runtime_assert) Eq\(|set_replacement )(?P<size>s\d+)(, \d+\) \[guard added\]| = \d+ )"
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
_LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class Traced:
    """What torch is to export.

    Attributes:
        what: its name, for error messages.
        module: the module, whose `forward` takes all inputs one after the other.
        inputs: its arguments, by their names in the graph.
        sizes: the sizes that are not fixed, by the names of the inputs and the axes.
    """

    what: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    sizes: Mapping[str, Mapping[int, torch.export.Dim]]

    @property
    def dynamic_shapes(self) -> tuple[tuple[Mapping[int, torch.export.Dim], ...]]:
        """The sizes in torch's form."""
        return (tuple(self.sizes[name] for name in self.inputs),)

    def run(self) -> object:
        """Run it in torch."""
        return self.module(*self.inputs.values())


class _FixedSizes(logging.Handler):
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


def _fixing_lines(traced: Traced) -> dict[int, SourceLine]:
    """The lines at which sizes become fixed numbers, by axis. It traces the module once more, because the log of sizes
    makes it slower."""
    handler = _FixedSizes()
    level, propagate, handlers = _SIZES.level, _SIZES.propagate, _SIZES.handlers
    _SIZES.handlers, _SIZES.propagate = [handler], False
    _SIZES.setLevel(logging.INFO)
    try:
        with suppress(Exception):
            torch.export.export(
                traced.module, tuple(traced.inputs.values()), dynamic_shapes=traced.dynamic_shapes, strict=False
            )
    finally:
        _SIZES.handlers, _SIZES.propagate = handlers, propagate
        _SIZES.setLevel(level)
    return handler.lines


def check_sizes(model: ir.Model, traced: Traced) -> None:
    """Check that a graph takes any number of rows, positions and children.

    Args:
        model: the graph.
        traced: what it was made of.

    Raises:
        ExportError: one is fixed.
    """
    found: dict[int, tuple[str, int]] = {}
    for value in model.graph.inputs:
        for axis, size in traced.sizes.get(str(value.name), {}).items():
            number = None if value.shape is None else value.shape[axis]
            if isinstance(number, int):
                found[axis] = size.__name__, number
    if found:
        lines = _fixing_lines(traced)
        raise _fixed_sizes(
            traced.what, {size: f"{number}{at(lines.get(axis))}" for axis, (size, number) in found.items()}
        )


def explain(error: Exception, traced: Traced) -> ExportError:
    """The error to raise for one of torch's.

    Args:
        error: what torch raised.
        traced: what could not be exported.
    """
    what = traced.what
    *_, cause = causes(error)
    text, line = _COLOURS.sub("", str(cause)), line_of_error(error)
    if type(cause).__name__ == "GuardOnDataDependentSymNode":
        return ExportError(
            f"{what}: decides in Python by the value of a tensor{at(line)}; a graph is the same for all values. "
            "Choose for each row with torch.where(condition, one, other), and mask instead of looping up to a value"
        )
    if found := re.match(r"Constraints violated \((\w+)", text):
        return _fixed_sizes(what, {found[1]: f"one number{at(next(iter(_fixing_lines(traced).values()), None))}"})
    if (packed := line_of_operator(traced.run, {"_pack_padded_sequence"})) is not None:
        return ExportError(
            f"{what}: packs sequences{at(packed)}; packed sequences have no form in ONNX. Read the padded ones, and "
            "set to zero what follows their ends"
        )
    line = line or line_of_operator(traced.run, _untranslated(error))
    if found := _OPERATOR.search(text):
        return ExportError(
            f"{what}: torch cannot express the operator {found[1]} in ONNX{at(line)}. Write it with other operators"
        )
    reason = " ".join(text.strip().partition("\n\n")[0].split())[:_LONGEST_REASON]
    return ExportError(f"{what}: torch cannot export it to ONNX: {type(cause).__name__}: {reason}{at(line)}")


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
    for cause in causes(error):
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, torch.fx.Node):
                found |= {getattr(node.target, "__name__", "").partition(".")[0]}
                found |= {re.sub(r"_\d+$", "", name) for name in node.meta.get("torch_fn", ())[:1]}
    return found
