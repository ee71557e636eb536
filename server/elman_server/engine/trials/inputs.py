"""Random inputs of trial runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_protos import v1
from elman_protos.element_types import element_type

_POSITIONS = 3  # of constants of variable length
_CHILDREN = 2  # of a node, where it may have any number


def step_feeds(bundle: Bundle, rows: int, generator: np.random.Generator, *, scale: float) -> dict[str, NDArray[Any]]:
    """Random inputs of a step.

    Args:
        bundle: the model.
        rows: the number of rows.
        generator: of the random numbers.
        scale: the standard deviation of numbers; with 0 everything, tokens included, is zero.

    Returns:
        By input name: any tokens, normally distributed numbers, and zeros or ones for integers that are no tokens.
    """
    step = bundle.spec.step

    def values(spec: v1.InputSpec | v1.ConstantSpec | v1.StateSpec, shape: list[int]) -> NDArray[Any]:
        whole = [*shape[: spec.row_axis], rows, *shape[spec.row_axis :]]
        return random_values(bundle, spec, whole, generator, scale=scale)

    feeds: dict[str, NDArray[Any]] = {}
    for given in step.inputs:
        feeds[given.name] = values(given, list(given.shape))
    for constant in step.constants:
        shape = [_POSITIONS, *constant.shape[1:]] if constant.variable_length else list(constant.shape)
        feeds[constant.name] = values(constant, shape)
    for state in step.states:
        children = [step.tree.child_count or _CHILDREN] if step.HasField("tree") else []
        feeds[state.input_name] = values(state, [*children, *state.shape])
    return feeds


def random_values(
    bundle: Bundle,
    spec: v1.InputSpec | v1.ConstantSpec | v1.StateSpec,
    shape: Sequence[int],
    generator: np.random.Generator,
    *,
    scale: float = 1.0,
) -> NDArray[Any]:
    """Random values of an input of a graph.

    Args:
        bundle: the model.
        spec: what the manifest says of the input.
        shape: of the result, the row axis included.
        generator: of the random numbers.
        scale: the standard deviation of numbers; with 0 everything, tokens included, is zero.

    Returns:
        Any tokens, normally distributed numbers, or zeros and ones for integers that are no tokens.
    """
    kind = element_type(spec.data_type)
    if not kind.is_integer:
        return (scale * generator.standard_normal(shape)).astype(kind.dtype)
    below = 2
    if isinstance(spec, v1.InputSpec) and spec.HasField("token"):
        below = bundle.vocabulary_spec(spec.token.vocabulary).size
    return generator.integers(below if scale else 1, size=shape).astype(kind.dtype)
