"""The reference graphs: the plain step as torch exports it, and its matrix products alone.

Neither uses `export/` or the network's own step, because the reference must not change when those are improved.

Axes: B rows, V tokens, E embedding features, H hidden units; an LSTM has 4 gates.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from elman_training.language.recurrent_network import RecurrentNetwork

_OPSET = 20


@dataclass(frozen=True)
class Sizes:
    """The sizes of a two-layer LSTM.

    Attributes:
        vocabulary: V.
        embedding: E.
        hidden: H.
    """

    vocabulary: int = 96
    embedding: int = 128
    hidden: int = 512

    @property
    def name(self) -> str:
        return f"lstm-v{self.vocabulary}-e{self.embedding}-h{self.hidden}"

    @property
    def products(self) -> list[tuple[int, int]]:
        """The matrix products that a step requires, [inputs, outputs] each. The embedding's part of the first layer is
        not among them: it is a lookup in a table of V rows. The second layer's two parts are one product with the
        concatenated outputs of both layers."""
        gates = 4 * self.hidden
        return [(self.hidden, gates), (2 * self.hidden, gates), (self.hidden, self.vocabulary)]


class _PlainStep(nn.Module):
    """A network's step in textbook form: separate products for the input and the state of each layer."""

    def __init__(self, network: RecurrentNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Token ids [B] and each layer's hidden and cell state [B, H] to logits [B, V] and the next states."""
        features = self.network.embedding(token)
        after: list[Tensor] = []
        for cell, hidden, memory in zip(self.network.cells, state[::2], state[1::2], strict=True):
            bias = cell.input_bias + cell.hidden_bias
            gates = functional.linear(features, cell.input_weight, bias)
            gates = gates + functional.linear(hidden, cell.hidden_weight)  # [B, 4H]
            entered, kept, candidate, shown = gates.chunk(4, dim=1)
            memory = torch.sigmoid(kept) * memory + torch.sigmoid(entered) * torch.tanh(candidate)
            features = torch.sigmoid(shown) * torch.tanh(memory)
            after += [features, memory]
        return (self.network.head(features), *after)


def write_plain_step(network: RecurrentNetwork, path: Path) -> None:
    """Write U in fp32: the step as exported by torch, with plain Gemm, Sigmoid and Tanh nodes, and the embedding looked
    up and multiplied.

    The graph's inputs are "token" and the states, its outputs "logits" and the next states in the same order.
    """
    step = _PlainStep(network).eval()
    states = network.initial_state(3)
    example = (torch.zeros(3, dtype=torch.int64), *states.values())
    rows = torch.export.Dim("rows")
    with _quiet():
        torch.onnx.export(
            step,
            example,
            path,
            input_names=["token", *states],
            output_names=["logits", *(f"next.{name}" for name in states)],
            dynamic_shapes=({0: rows}, tuple({0: rows} for _ in states)),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    # onnxruntime's quantizer transposes weights in place and then rejects their recorded shapes.
    graph = onnx.load(path)
    del graph.graph.value_info[:]
    onnx.save(graph, path)


def write_int8(source: Path, path: Path) -> None:
    """Write U in int8: the plain step, dynamically quantized by onnxruntime with its default options."""
    from onnxruntime.quantization import quantize_dynamic

    with _quiet():
        quantize_dynamic(source, path)


def write_products(sizes: Sizes, precision: str, path: Path) -> None:
    """Write the limit: only the matrix products of one step, each with a separate input.

    fp32 takes float rows; int8 takes rows that are already quantized, with zero point 128.
    """
    generator = np.random.default_rng(0)
    nodes, inputs, outputs, weights = [], [], [], []
    if precision == "int8":
        weights.append(numpy_helper.from_array(np.array(128, np.uint8), "zero"))
    for index, (before, after) in enumerate(sizes.products):
        weight, rows, product = f"weight{index}", f"rows{index}", f"product{index}"
        if precision == "int8":
            values: Any = generator.integers(-127, 128, (before, after), dtype=np.int8)
            nodes.append(helper.make_node("MatMulInteger", [rows, weight, "zero"], [product]))
            kinds = TensorProto.UINT8, TensorProto.INT32
        else:
            values = generator.standard_normal((before, after), dtype=np.float32)
            nodes.append(helper.make_node("MatMul", [rows, weight], [product]))
            kinds = TensorProto.FLOAT, TensorProto.FLOAT
        weights.append(numpy_helper.from_array(values, weight))
        inputs.append(helper.make_tensor_value_info(rows, kinds[0], ["rows", before]))
        outputs.append(helper.make_tensor_value_info(product, kinds[1], ["rows", after]))
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10), path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress output and warnings of the tools; errors are still raised."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
