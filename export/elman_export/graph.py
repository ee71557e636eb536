"""From a step module to an ONNX graph.

The graph's inputs are named "token" (the module's own names), "constant.NAME" and "state.NAME", its outputs "NAME" and
"next.NAME"; states are paired by name here and in the manifest, never by position.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxscript import optimizer
from torch import Tensor, nn

from elman_export.contract import EncoderModule, Input, Source, StepModule, Tensors, Token, Tree, Values
from elman_export.export_error import ExportError
from elman_export.sums import CHILDREN, order_sums

OPSET = 20
_FOLDED_SIZE = 2**28
_TRACED_CHILDREN = 4  # not 1, which torch takes for a fixed size, and not the number of rows

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Example:
    """Tensors of the right shapes and types, to trace and to test with.

    Attributes:
        inputs: by name, [B, *shape].
        constants: by name, [B, *shape].
        state: by name, [B, *shape]; in a tree those of the children, [B, C, *shape].
        tree: what the step says of trees, if its rows are nodes.
    """

    inputs: dict[str, Tensor]
    constants: dict[str, Tensor]
    state: dict[str, Tensor]
    tree: Tree | None = None

    def graph_inputs(self) -> dict[str, Tensor]:
        """By the names they have in the graph."""
        named = dict(self.inputs)
        named |= {constant_name(name): value for name, value in self.constants.items()}
        named |= {state_input_name(name): value for name, value in self.state.items()}
        return named


def constant_name(name: str) -> str:
    return f"constant.{name}"


def state_input_name(name: str) -> str:
    return f"state.{name}"


def state_output_name(name: str) -> str:
    return f"next.{name}"


@dataclass(frozen=True)
class Sources:
    """Padded sources, [B, S] or [B, S, *shape], and their lengths, int64 [B]."""

    values: Tensor
    lengths: Tensor


def make_sources(source: Source, rows: int, seed: int, longest: int | None = None) -> Sources:
    """Random sources of different lengths; the first has `longest` positions.

    Args:
        source: what is read.
        rows: how many.
        seed: of the random numbers.
        longest: of them; without it no more than a dozen.
    """
    generator = torch.Generator().manual_seed(seed)
    most = min(source.longest, 12) if longest is None else longest
    lengths = torch.randint(1, most + 1, (rows,), generator=generator)
    lengths[0] = most
    kind = source.kind
    if isinstance(kind, Token):
        values = torch.randint(kind.vocabulary.size, (rows, most), generator=generator)
    else:
        values = torch.randn(rows, most, *kind.shape, generator=generator)
    behind = torch.arange(most) >= lengths[:, None]
    values[behind] = 0
    return Sources(values, lengths)


def run_encoder(module: EncoderModule, sources: Sources) -> dict[str, Tensor]:
    """What `encode` gives, by the names it has in the graphs.

    Raises:
        ExportError: it fails, or does not give one row for each source.
    """
    try:
        with torch.no_grad():
            constants, states = module.encode(sources.values, sources.lengths)
    except Exception as error:
        raise ExportError(
            f"encode() failed on source {sources.values.dtype} {tuple(sources.values.shape)}: {error}"
        ) from error
    found = {constant_name(name): value for name, value in constants.items()}
    found |= {state_input_name(name): value for name, value in states.items()}
    for name, value in found.items():
        if value.shape[:1] != sources.lengths.shape:
            raise ExportError(f"encode(): {name} has shape {tuple(value.shape)}; axis 0 must be the row")
    return found


def make_example(
    module: StepModule,
    inputs: Mapping[str, Input],
    constants: Mapping[str, Values],
    rows: int,
    seed: int,
    source: Source | None = None,
    tree: Tree | None = None,
    children: int = _TRACED_CHILDREN,
) -> Example:
    """Random inputs, and a random state that is none a sequence starts from.

    Args:
        module: whose step they are for.
        inputs: what its inputs are.
        constants: what its constants are.
        rows: how many sequences, or nodes.
        seed: of the random numbers.
        source: what its encoder reads, if it has one: then the constants are an encoder's.
        tree: what the step says of trees, if its rows are nodes; each then has children.
        children: how many, where it may have any number.
    """
    generator = torch.Generator().manual_seed(seed)

    def values(kind: Input) -> Tensor:
        if isinstance(kind, Token):
            return torch.randint(kind.vocabulary.size, (rows,), generator=generator)
        return torch.randn(rows, *kind.shape, generator=generator)

    encoded = None
    if source is not None:
        assert isinstance(module, EncoderModule)
        encoded = run_encoder(module, make_sources(source, rows, seed))
    if encoded is not None and encoded.keys() - map(state_input_name, module.initial_state(1)) != set(
        map(constant_name, constants)
    ):
        raise ExportError(f"encode() gives {sorted(encoded)}, but the constants are {sorted(constants)}")
    state = {}
    for name, initial in module.initial_state(rows).items():
        value = initial if encoded is None else encoded.get(state_input_name(name), initial)
        if value.shape[:1] != (rows,):
            raise ExportError(f"initial_state({rows}): {name} has shape {tuple(value.shape)}; axis 0 must be the row")
        if tree is not None:
            value = torch.stack([value] * (tree.children or children), dim=1)
        noise = torch.rand(value.shape, generator=generator) - 0.5
        state[name] = (value + noise).to(value.dtype) if value.dtype.is_floating_point else value
    return Example(
        {name: values(kind) for name, kind in inputs.items()},
        {name: values(kind) if encoded is None else encoded[constant_name(name)] for name, kind in constants.items()},
        state,
        tree,
    )


class _Traced(nn.Module):
    """A step with flat arguments and results, as ONNX has them."""

    def __init__(self, module: nn.Module, example: Example, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.input_names = tuple(example.inputs)
        self.constant_names = tuple(example.constants)
        self.state_names = tuple(example.state)
        self.output_names = outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        values = iter(tensors)
        inputs = {name: next(values) for name in self.input_names}
        constants = {name: next(values) for name in self.constant_names}
        state = {name: next(values) for name in self.state_names}
        outputs, after = self.module.step(inputs, constants, state)  # type: ignore[operator]
        return (*(outputs[name] for name in self.output_names), *(after[name] for name in self.state_names))


def run_step(module: StepModule, example: Example) -> tuple[Tensors, Tensors]:
    """One step in torch, its results checked against the contract.

    Raises:
        ExportError: the next state is not named or shaped as the state, or the module fails.
    """
    try:
        with torch.no_grad():
            outputs, after = module.step(example.inputs, example.constants, example.state)
    except Exception as error:
        raise ExportError(f"step() failed on {_shapes(example.graph_inputs())}: {error}") from error
    if set(after) != set(example.state):
        raise ExportError(f"step() returns the states {sorted(after)}, but initial_state() has {sorted(example.state)}")
    for name, before in example.state.items():
        own = before if example.tree is None else before[:, 0]
        if after[name].shape != own.shape or after[name].dtype != own.dtype:
            came = "it came as" if example.tree is None else "a node's is"
            raise ExportError(
                f"step() returns the state {name} as {after[name].dtype} {tuple(after[name].shape)}, "
                f"but {came} {own.dtype} {tuple(own.shape)}"
            )
    return outputs, after


def write_graph(
    module: nn.Module, example: Example, outputs: tuple[str, ...], path: Path, variable: frozenset[str] = frozenset()
) -> None:
    """Export one step to `path`, the number of rows left open, and that of the children where it may be any.

    Args:
        module: whose step it is.
        example: what to trace it with.
        outputs: which of its outputs are kept.
        path: the file to write.
        variable: the constants, by their names in the graph, whose number of positions is left open, too.

    Raises:
        ExportError: torch cannot express the step in ONNX.
    """
    named = example.graph_inputs()
    rows, positions = torch.export.Dim("rows"), torch.export.Dim("positions")
    sizes = {name: {0: rows, 1: positions} if name in variable else {0: rows} for name in named}
    if example.tree is not None and not example.tree.children:
        children = torch.export.Dim(CHILDREN)
        sizes |= {state_input_name(name): {0: rows, 1: children} for name in example.state}
    save_graph(
        _Traced(module, example, outputs).eval(),
        named,
        [*outputs, *map(state_output_name, example.state)],
        (tuple(sizes.values()),),
        path,
        what="the step",
    )


def save_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: list[str],
    dynamic_shapes: tuple[Any, ...],
    path: Path,
    *,
    what: str,
) -> None:
    """Export a module to `path`.

    Args:
        module: what to trace.
        inputs: its arguments, by the names they get.
        outputs: the names that its results get.
        dynamic_shapes: the sizes that are left open, as torch wants them.
        path: the file to write.
        what: what it is, for people.

    Raises:
        ExportError: torch cannot express it in ONNX.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            # Once more without the usual limits: what a graph computes from its weights alone, however large, is
            # computed here and not at every run.
            optimizer.optimize(program.model, input_size_limit=_FOLDED_SIZE, output_size_limit=_FOLDED_SIZE)
            order_sums(program.model)
            program.save(path, external_data=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"torch cannot export {what} to ONNX: {reason}") from error


def open_session(graph: Path | bytes) -> onnxruntime.InferenceSession:
    """onnxruntime on a graph, in a file or serialized, on the CPU.

    Raises:
        ExportError: onnxruntime rejects the graph.
    """
    try:
        return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime rejects the exported graph: {error}") from error


def run_graph(session: onnxruntime.InferenceSession, feeds: Arrays) -> Arrays:
    """All outputs by name. What the graph does not read is left out.

    Raises:
        ExportError: onnxruntime cannot run it.
    """
    known = {argument.name for argument in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    rows = len(next(iter(feeds.values())))
    try:
        found = session.run(names, {name: value for name, value in feeds.items() if name in known})
    except Exception as error:
        raise ExportError(
            f"the exported graph fails with {rows} rows: is the number of rows fixed somewhere in step()? ({error})"
        ) from error
    return dict(zip(names, found, strict=True))


def as_arrays(tensors: Tensors) -> Arrays:
    """The same values for onnxruntime."""
    return {name: value.detach().numpy() for name, value in tensors.items()}


def _shapes(tensors: Tensors) -> str:
    return ", ".join(f"{name} {value.dtype} {tuple(value.shape)}" for name, value in tensors.items())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own progress and deprecation notes out of our output; errors still rise."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
