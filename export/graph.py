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

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxscript import optimizer
from torch import Tensor, nn

from export.contract import Input, StepModule, Tensors, Token, Tree, Values
from export.errors import ExportError
from export.sums import CHILDREN, order_sums

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


def make_example(
    module: StepModule,
    inputs: Mapping[str, Input],
    constants: Mapping[str, Values],
    rows: int,
    seed: int,
    tree: Tree | None = None,
    children: int = _TRACED_CHILDREN,
) -> Example:
    """Random inputs, and a random state that is none a sequence starts from.

    Args:
        module: whose step it is for.
        inputs: what each input is.
        constants: what each constant is.
        rows: B.
        seed: of the random numbers.
        tree: what the step says of trees, if its rows are nodes; each then has children.
        children: how many, where it may have any number.
    """
    generator = torch.Generator().manual_seed(seed)

    def values(kind: Input) -> Tensor:
        if isinstance(kind, Token):
            return torch.randint(kind.vocabulary.size, (rows,), generator=generator)
        return torch.randn(rows, *kind.shape, generator=generator)

    state = {}
    for name, value in module.initial_state(rows).items():
        if value.shape[:1] != (rows,):
            raise ExportError(f"initial_state({rows}): {name} has shape {tuple(value.shape)}; axis 0 must be the row")
        if tree is not None:
            value = torch.stack([value] * (tree.children or children), dim=1)
        noise = torch.rand(value.shape, generator=generator) - 0.5
        state[name] = (value + noise).to(value.dtype) if value.dtype.is_floating_point else value
    return Example(
        {name: values(kind) for name, kind in inputs.items()},
        {name: values(kind) for name, kind in constants.items()},
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


def write_graph(module: nn.Module, example: Example, outputs: tuple[str, ...], path: Path) -> None:
    """Export one step to `path`, the number of rows left open, and that of the children where it may be any.

    Raises:
        ExportError: torch cannot express the step in ONNX.
    """
    traced = _Traced(module, example, outputs).eval()
    named = example.graph_inputs()
    rows, children = torch.export.Dim("rows"), torch.export.Dim(CHILDREN)
    any_children = example.tree is not None and not example.tree.children
    of_states = {0: rows, 1: children} if any_children else {0: rows}
    other = len(named) - len(example.state)
    try:
        with _quiet():
            program = torch.onnx.export(
                traced,
                tuple(named.values()),
                input_names=list(named),
                output_names=[*outputs, *map(state_output_name, example.state)],
                dynamic_shapes=((*({0: rows} for _ in range(other)), *(of_states for _ in example.state)),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            # Once more without the usual limits: what a step computes from its weights alone, however large, is
            # computed here and not at every step.
            optimizer.optimize(program.model, input_size_limit=_FOLDED_SIZE, output_size_limit=_FOLDED_SIZE)
            order_sums(program.model)
            program.save(path, external_data=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"torch cannot export the step to ONNX: {reason}") from error


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
