"""From a step module to an ONNX graph.

The graph's inputs have the module's own names, "constant.NAME" and "state.NAME", its outputs "NAME" and "next.NAME".
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from onnxscript import optimizer
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config

from elman_export.child_sums import order_sums
from elman_export.examples import Example
from elman_export.export_error import ExportError
from elman_export.graph_names import CHILDREN, state_input_name, state_output_name
from elman_export.trace_failures import Traced, check_sizes, explain

OPSET = 20
_FOLDED_BYTES = 2**28


class _FlatStep(nn.Module):
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


def write_step(
    module: nn.Module, example: Example, outputs: tuple[str, ...], path: Path, variable: frozenset[str] = frozenset()
) -> None:
    """Export one step, with any number of rows and, if the tree allows it, of children.

    Args:
        module: the module.
        example: the arguments to trace it with.
        outputs: the outputs to keep.
        path: the file to write.
        variable: the constants with any number of positions, by their names in the graph.

    Raises:
        ExportError: torch cannot express the step in ONNX.
    """
    rows, positions = torch.export.Dim("rows"), torch.export.Dim("positions")
    named = example.graph_inputs()
    sizes = {name: {0: rows, 1: positions} if name in variable else {0: rows} for name in named}
    if example.tree is not None and not example.tree.children:
        children = torch.export.Dim(CHILDREN)
        sizes |= {state_input_name(name): {0: rows, 1: children} for name in example.state}
    traced = Traced("step()", _FlatStep(module, example, outputs).eval(), named, sizes)
    save_graph(traced, [*outputs, *map(state_output_name, example.state)], path)


def save_graph(traced: Traced, outputs: list[str], path: Path) -> None:
    """Export a module.

    Args:
        traced: the module, its arguments and the sizes that are not fixed.
        outputs: the names of its results in the graph.
        path: the file to write.

    Raises:
        ExportError: torch cannot express the module in ONNX, or not with any sizes.
    """
    # An export takes a third less time without torch's cache of fake tensors, which pays only where operators repeat.
    with _quiet(), dynamo_config.patch(fake_tensor_cache_enabled=False):
        try:
            program = torch.onnx.export(
                traced.module,
                tuple(traced.inputs.values()),
                input_names=list(traced.inputs),
                output_names=outputs,
                dynamic_shapes=traced.dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            check_sizes(program.model, traced)
            # Not by torch, because of its limits: what depends on the weights alone, however large, is computed once
            # here and not at every run.
            optimizer.optimize(program.model, input_size_limit=_FOLDED_BYTES, output_size_limit=_FOLDED_BYTES)
            order_sums(program.model)
            program.save(path, external_data=False)
        except (ExportError, OSError):
            raise
        except Exception as error:
            raise explain(error, traced) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress, deprecation notes and dumps of graphs; errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        nothing = io.StringIO()
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
