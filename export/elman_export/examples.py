"""Random inputs of the right shapes and types, to trace a module with and to test it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from elman_export.contract import EncoderModule, Input, Source, StepInterface, StepModule, Token, Tree
from elman_export.export_error import ExportError
from elman_export.graph_names import constant_name, state_input_name
from elman_export.module_calls import call_encode, call_initial_state, call_step

_TRACED_CHILDREN = 4  # not 1, which torch takes as a fixed size, and not the number of rows
_RANDOM_SOURCE_LENGTH = 12  # positions, at most


@dataclass(frozen=True)
class Example:
    """The arguments of one step.

    Attributes:
        inputs: by name, [B, *shape].
        constants: by name, [B, *shape].
        state: by name, [B, *shape]; in a tree those of the children, [B, C, *shape].
        rows: B.
        tree: the declaration of trees, if rows are nodes.
    """

    inputs: dict[str, Tensor]
    constants: dict[str, Tensor]
    state: dict[str, Tensor]
    rows: int
    tree: Tree | None = None

    def graph_inputs(self) -> dict[str, Tensor]:
        """The tensors by their names in the graph."""
        named = dict(self.inputs)
        named |= {constant_name(name): value for name, value in self.constants.items()}
        named |= {state_input_name(name): value for name, value in self.state.items()}
        return named


@dataclass(frozen=True)
class Sources:
    """Padded sources, [B, S] or [B, S, *shape], and their lengths, int64 [B]."""

    values: Tensor
    lengths: Tensor


def make_sources(source: Source, rows: int, seed: int, longest: int | None = None) -> Sources:
    """Make random sources of different lengths; the first one has `longest` positions.

    Args:
        source: what an encoder reads.
        rows: the number of sources.
        seed: of the random numbers.
        longest: the largest length; by default at most 12.
    """
    generator = torch.Generator().manual_seed(seed)
    most = min(source.longest, _RANDOM_SOURCE_LENGTH) if longest is None else longest
    lengths = torch.randint(1, most + 1, (rows,), generator=generator)
    lengths[0] = most
    kind = source.kind
    if isinstance(kind, Token):
        values = torch.randint(kind.vocabulary.size, (rows, most), generator=generator)
    else:
        values = torch.randn(rows, most, *kind.shape, generator=generator)
    padding = torch.arange(most) >= lengths[:, None]
    values[padding] = 0
    return Sources(values, lengths)


def run_encoder(module: EncoderModule, sources: Sources) -> dict[str, Tensor]:
    """Run `encode`.

    Returns:
        The constants and states by their names in the graphs.

    Raises:
        ExportError: `encode` fails or does not return one row for each source.
    """
    constants, states = call_encode(module, sources.values, sources.lengths)
    found = {constant_name(name): value for name, value in constants.items()}
    return found | {state_input_name(name): value for name, value in states.items()}


def make_example(
    module: StepModule, interface: StepInterface, rows: int, seed: int, children: int = _TRACED_CHILDREN
) -> Example:
    """Make random arguments of a step, with a state that differs from the initial one.

    Args:
        module: the module.
        interface: what its step reads.
        rows: the number of sequences or nodes.
        seed: of the random numbers.
        children: the number of children of each node, if a tree may have any number.

    Raises:
        ExportError: `initial_state` or `encode` does not satisfy the contract.
    """
    generator = torch.Generator().manual_seed(seed)

    def values(kind: Input) -> Tensor:
        if isinstance(kind, Token):
            return torch.randint(kind.vocabulary.size, (rows,), generator=generator)
        return torch.randn(rows, *kind.shape, generator=generator)

    encoded = _encoded(module, interface, rows, seed)
    state = {}
    for name, initial in call_initial_state(module, rows).items():
        value = initial if encoded is None else encoded.get(state_input_name(name), initial)
        if interface.tree is not None:
            value = torch.stack([value] * (interface.tree.children or children), dim=1)
        noise = torch.rand(value.shape, generator=generator) - 0.5
        state[name] = (value + noise).to(value.dtype) if value.dtype.is_floating_point else value
    return Example(
        {name: values(kind) for name, kind in interface.inputs.items()},
        {
            name: values(kind) if encoded is None else encoded[constant_name(name)]
            for name, kind in interface.constants.items()
        },
        state,
        rows,
        interface.tree,
    )


def _encoded(module: StepModule, interface: StepInterface, rows: int, seed: int) -> Mapping[str, Tensor] | None:
    """The result of `encode` on random sources; None for a module without an encoder."""
    if interface.source is None:
        return None
    assert isinstance(module, EncoderModule)
    sources = make_sources(interface.source, rows, seed)
    encoded = run_encoder(module, sources)
    states = {state_input_name(name): value for name, value in call_initial_state(module, rows).items()}
    if encoded.keys() - states.keys() != set(map(constant_name, interface.constants)):
        raise ExportError(f"encode() returns {sorted(encoded)}, but the constants are {sorted(interface.constants)}")
    expected = {name: (value.dtype, tuple(value.shape)) for name, value in states.items()}
    for name, kind in interface.constants.items():
        value = encoded[constant_name(name)]
        positions = (sources.values.shape[1],) if kind.variable_length else ()
        expected[constant_name(name)] = value.dtype, (rows, *positions, *kind.shape)
    for name, value in encoded.items():
        if (value.dtype, tuple(value.shape)) != expected[name]:
            dtype, shape = expected[name]
            raise ExportError(
                f"encode(): {name} is {value.dtype} {tuple(value.shape)} for a source of shape "
                f"{tuple(sources.values.shape)}; it must be {dtype} {shape}, as initial_state() and the constants say"
            )
    return encoded


def run_step(
    module: StepModule, example: Example, outputs: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run one step in torch and check its results against the contract.

    Args:
        module: the module.
        example: the arguments.
        outputs: the names of the outputs that are needed.

    Returns:
        These outputs and the next state, by name.

    Raises:
        ExportError: the module fails, an output is missing, or the next state has other names or shapes than the state.
    """
    found, after = call_step(
        module, example.inputs, example.constants, example.state, rows=example.rows, outputs=outputs
    )
    if set(after) != set(example.state):
        raise ExportError(f"step() returns the states {sorted(after)}, but initial_state() has {sorted(example.state)}")
    for name, before in example.state.items():
        own = before if example.tree is None else before[:, 0]
        if after[name].shape != own.shape or after[name].dtype != own.dtype:
            expected = "its input has" if example.tree is None else "a node has"
            raise ExportError(
                f"step() returns the state {name} as {after[name].dtype} {tuple(after[name].shape)}, "
                f"but {expected} {own.dtype} {tuple(own.shape)}"
            )
    return found, after
