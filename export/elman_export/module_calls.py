"""Calls of a user's module, and what the contract says of their results."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from elman_export.contract import EncoderModule, StepModule, Tensors
from elman_export.export_error import ExportError
from elman_export.source_lines import line_of_error
from elman_protos.element_types import ELEMENT_TYPES

ELEMENT_TYPE_NAMES = tuple(f"torch.{row.name}" for row in ELEMENT_TYPES)


def call_initial_state(module: StepModule, rows: int) -> dict[str, Tensor]:
    """Call `initial_state`.

    Raises:
        ExportError: it fails, or does not return tensors by name with the rows in axis 0.
    """
    call = f"initial_state({rows})"
    try:
        with torch.no_grad():
            found = module.initial_state(rows)
    except Exception as error:
        raise failure(call, error) from error
    return _checked_tensors(found, call, rows, "the initial state by name: {'hidden': torch.zeros(rows, 64)}")


def call_step(
    module: StepModule, inputs: Tensors, constants: Tensors, state: Tensors, *, rows: int, outputs: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Call `step`. It may change the mappings that it is given, but not the tensors in them.

    Args:
        module: the module.
        inputs: the inputs by name.
        constants: the constants by name.
        state: the state by name.
        rows: the number of rows.
        outputs: the names of the outputs that are needed.

    Returns:
        These outputs and the next state, by name.

    Raises:
        ExportError: it fails, or returns something else.
    """
    try:
        with torch.no_grad():
            found = module.step(dict(inputs), dict(constants), dict(state))
    except Exception as error:
        raise failure(f"step() with {_shapes({**inputs, **constants, **state})}", error) from error
    of_step, after = _pair(found, "step()", "the outputs by name and the next state by name")
    if not isinstance(of_step, Mapping):
        raise ExportError(f"step(): the outputs: got {_kind(of_step)}; they must be a mapping, the outputs by name")
    for name in outputs:
        if name not in of_step:
            raise ExportError(f"step() returns the outputs {sorted(map(str, of_step))}; {name!r} is not among them")
    needed = {name: of_step[name] for name in outputs}
    return (
        _checked_tensors(needed, "step(): the outputs", rows, "the outputs by name"),
        _checked_tensors(after, "step(): the next state", rows, "the next state, under the names of the state"),
    )


def call_encode(module: EncoderModule, source: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Call `encode`.

    Returns:
        The constants and the initial states, by name.

    Raises:
        ExportError: it fails, or returns something else.
    """
    try:
        with torch.no_grad():
            found = module.encode(source, lengths)
    except Exception as error:
        raise failure(f"encode() with {_shapes({'source': source, 'lengths': lengths})}", error) from error
    constants, states = _pair(found, "encode()", "the constants by name and the initial states by name")
    rows = len(lengths)
    return (
        _checked_tensors(constants, "encode(): the constants", rows, "the constants by name"),
        _checked_tensors(states, "encode(): the states", rows, "the initial states by name"),
    )


def failure(call: str, error: Exception) -> ExportError:
    """The error for a call that raised another one: its reason, and the user's line that raised it."""
    line = line_of_error(error)
    return ExportError(f"{call} failed: {type(error).__name__}: {error}" + ("" if line is None else f" (at {line})"))


def count_rows(rows: int) -> str:
    """A number of rows, for people."""
    return "1 row" if rows == 1 else f"{rows} rows"


def _pair(found: Any, call: str, expected: str) -> Any:
    if not isinstance(found, tuple | list) or len(found) != 2:
        got = f"{len(found)} values" if isinstance(found, tuple | list) else _kind(found)
        raise ExportError(f"{call}: got {got}; it must return two values, {expected}")
    return found


def _checked_tensors(found: Any, what: str, rows: int, expected: str) -> dict[str, Tensor]:
    """Check that a result is tensors by name, each with the rows in axis 0 and of a type that can be served."""
    if not isinstance(found, Mapping):
        raise ExportError(f"{what}: got {_kind(found)}; it must be a mapping, {expected}")
    for name, value in found.items():
        if not isinstance(name, str) or not name:
            raise ExportError(f"{what}: got the name {name!r}; a name is a text that is not empty")
        if not isinstance(value, Tensor):
            raise ExportError(f"{what}: {name}: got {_kind(value)}; it must be a tensor with the rows in axis 0")
        if str(value.dtype) not in ELEMENT_TYPE_NAMES:
            raise ExportError(
                f"{what}: {name}: got {value.dtype}, which cannot be served; it must be one of "
                f"{', '.join(ELEMENT_TYPE_NAMES)}"
            )
        if value.shape[:1] != (rows,):
            raise ExportError(
                f"{what}: {name}: got shape {tuple(value.shape)} for {count_rows(rows)}; axis 0 must be the row: one "
                "sequence"
            )
    return dict(found)


def _kind(value: Any) -> str:
    return "None, as without a return" if value is None else f"a {type(value).__name__}"


def _shapes(tensors: Tensors) -> str:
    return ", ".join(f"{name} {value.dtype} {tuple(value.shape)}" for name, value in tensors.items())
