"""The names of a graph's tensors. States are paired by name here and in the manifest, never by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from elman_export.export_error import ExportError

# Of an encoder's graph.
SOURCE, LENGTHS = "source", "lengths"
# The axis that counts the children of a node.
CHILDREN = "children"


def constant_name(name: str) -> str:
    return f"constant.{name}"


def state_input_name(name: str) -> str:
    return f"state.{name}"


def state_output_name(name: str) -> str:
    return f"next.{name}"


def check_names(inputs: Iterable[str], constants: Iterable[str], states: Iterable[str], outputs: Iterable[str]) -> None:
    """Check that no two tensors of a step have the same name in its graph.

    Args:
        inputs: the module's names of its inputs, and so on.
        constants: of its constants.
        states: of its states.
        outputs: of its outputs.

    Raises:
        ExportError: names the tensors.
    """
    places = [
        *((name, f"the input {name!r}") for name in inputs),
        *((constant_name(name), f"the constant {name!r}") for name in constants),
        *((state_input_name(name), f"the state {name!r}") for name in states),
        *((state_output_name(name), f"the next value of the state {name!r}") for name in states),
        *((name, f"the output {name!r}") for name in outputs),
    ]
    for name, count in Counter(name for name, _ in places).items():
        if count > 1:
            which = " and ".join(what for taken, what in places if taken == name)
            raise ExportError(f"{which} would both be {name!r} in the graph; names must differ. Rename one of them")
