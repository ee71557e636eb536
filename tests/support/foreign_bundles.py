"""Bundles as others make them: plain ONNX nodes and a manifest, without torch or the export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from elman_bundle import Bundle, load_bundle, write_bundle, write_tokens
from elman_protos import v1
from elman_protos.element_types import BY_NAME

TOKENS = 8
LABELS = 3


@dataclass(frozen=True)
class Kept:
    """A state: the output with its next value, and its shape without the row axis."""

    output: str
    shape: Sequence[int]
    dtype: str = "float32"
    row_axis: int = 0
    encoded: bool = False


@dataclass(frozen=True)
class Shown:
    """An output, and its shape without the row axis."""

    meaning: Literal["labels", "next_token", None] = "labels"
    shape: Sequence[int] = (LABELS,)
    dtype: str = "float32"


@dataclass(frozen=True)
class Foreign:
    """A step that reads a token, as nodes.

    Attributes:
        nodes: the nodes.
        weights: the initializers.
        states: by input name.
        outputs: by name.
        token: the name of the input, int64 [B]; None for a step that reads nothing.
        constants: by name, the shape without the row axis; -1 is the position in the source.
        encoder: the nodes of the encoder, which reads "source", int64 [B, S], and "lengths", int64 [B].
        functions: functions that the nodes call.
        tree_children: the number of children of a node, if rows are nodes of trees.
        name: the name of the model.
    """

    nodes: Sequence[onnx.NodeProto]
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    states: Mapping[str, Kept] = field(default_factory=dict)
    outputs: Mapping[str, Shown] = field(default_factory=lambda: {"scores": Shown()})
    token: str | None = "token"
    constants: Mapping[str, Sequence[int]] = field(default_factory=dict)
    encoder: Sequence[onnx.NodeProto] = ()
    functions: Sequence[onnx.FunctionProto] = ()
    tree_children: int | None = None
    name: str = "foreign"

    def write(self, folder: Path) -> Bundle:
        """Write the bundle."""
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(self._step(), folder / "step.onnx")
        write_tokens(folder / "tokens.json", list(ascii_lowercase[:TOKENS]))
        write_tokens(folder / "labels.json", [f"label{index}" for index in range(LABELS)])
        spec = v1.ModelSpec(manifest_version=1, name=self.name, step=v1.StepSpec(file="step.onnx"))
        spec.vocabularies.add(name="tokens", kind=v1.VOCABULARY_KIND_CHARACTERS, file="tokens.json", size=TOKENS)
        spec.vocabularies.add(name="labels", kind=v1.VOCABULARY_KIND_LABELS, file="labels.json", size=LABELS)
        self._describe(spec.step)
        if self.encoder:
            onnx.save(self._encoder(), folder / "encoder.onnx")
            spec.encoder.file, spec.encoder.length_name, spec.encoder.longest_source = "encoder.onnx", "lengths", 16
            spec.encoder.input.name, spec.encoder.input.data_type = "source", v1.DATA_TYPE_INT64
            spec.encoder.input.token.vocabulary = "tokens"
        write_bundle(folder, spec)
        return load_bundle(folder)

    def _describe(self, step: v1.StepSpec) -> None:
        if self.token is not None:
            step.inputs.add(name=self.token, data_type=v1.DATA_TYPE_INT64).token.vocabulary = "tokens"
        for name, shape in self.constants.items():
            sizes = [16 if size == -1 else size for size in shape]
            step.constants.add(name=name, data_type=v1.DATA_TYPE_FLOAT32, shape=sizes, variable_length=-1 in shape)
        for name, kept in self.states.items():
            state = step.states.add(input_name=name, output_name=kept.output, shape=kept.shape, row_axis=kept.row_axis)
            state.data_type = BY_NAME[kept.dtype].data_type
            if kept.encoded:
                state.encoded = True
        for name, shown in self.outputs.items():
            output = step.outputs.add(name=name, shape=shown.shape, data_type=BY_NAME[shown.dtype].data_type)
            if shown.meaning == "next_token":
                output.next_token_logits.vocabulary = "tokens"
            elif shown.meaning == "labels":
                output.label_logits.vocabulary, output.label_logits.scope = "labels", v1.LABEL_SCOPE_STEP
                if self.token is None or self.tree_children is not None:
                    output.label_logits.scope = v1.LABEL_SCOPE_SEQUENCE
        if self.tree_children is not None:
            step.tree.child_count = self.tree_children

    def _step(self) -> onnx.ModelProto:
        inputs = [] if self.token is None else [_value(self.token, "int64", ["B"])]
        inputs += [_value(name, "float32", ["B", *_open(shape)]) for name, shape in self.constants.items()]
        outputs = [_value(name, shown.dtype, ["B", *shown.shape]) for name, shown in self.outputs.items()]
        for name, kept in self.states.items():
            shape: list[Any] = [*kept.shape]
            shape.insert(kept.row_axis, "B")
            outputs.append(_value(kept.output, kept.dtype, shape))
            if self.tree_children is not None:
                shape.insert(1, self.tree_children or "C")
            inputs.append(_value(name, kept.dtype, shape))
        weights = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        return _model(helper.make_graph(self.nodes, "step", inputs, outputs, weights), self.functions)

    def _encoder(self) -> onnx.ModelProto:
        inputs = [_value("source", "int64", ["B", "S"]), _value("lengths", "int64", ["B"])]
        outputs = [_value(name, "float32", ["B", *_open(shape)]) for name, shape in self.constants.items()]
        for name, kept in self.states.items():
            if kept.encoded:
                shape: list[Any] = [*kept.shape]
                shape.insert(kept.row_axis, "B")
                outputs.append(_value(name, kept.dtype, shape))
        weights = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        return _model(helper.make_graph(self.encoder, "encoder", inputs, outputs, weights), self.functions)


def _model(graph: onnx.GraphProto, functions: Sequence[onnx.FunctionProto]) -> onnx.ModelProto:
    domains = sorted({"com.microsoft", *(function.domain for function in functions)})
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def _open(shape: Sequence[int]) -> list[Any]:
    return ["S" if size == -1 else size for size in shape]


def _value(name: str, dtype: str, shape: Sequence[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, BY_NAME[dtype].onnx_type, shape)


def mask_nodes(column: str, last: str, result: str) -> list[onnx.NodeProto]:
    """Return the nodes of an encoder that compute which positions of `source` are real, float32 [B, S, 1].

    Args:
        column: a weight with the axes of a column, [1].
        last: a weight with the last axis, [2].
        result: the name of the result.
    """
    make = helper.make_node
    return [
        make("Shape", ["source"], ["width"], start=1),
        make("Squeeze", ["width"], ["most"]),
        make("Range", ["0", "most", "1"], ["places"]),
        make("Unsqueeze", ["lengths", column], ["ends"]),
        make("Less", ["places", "ends"], ["real"]),
        make("Cast", ["real"], ["flags"], to=TensorProto.FLOAT),
        make("Unsqueeze", ["flags", last], [result]),
    ]


def random_weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    """Return normally distributed weights by name."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def constant(value: Any, name: str) -> TensorProto:
    """Return an initializer of a graph inside a node."""
    return numpy_helper.from_array(np.asarray(value), name)
