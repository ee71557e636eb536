"""The names of a graph's tensors. States are paired by name here and in the manifest, never by position."""

from __future__ import annotations

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
