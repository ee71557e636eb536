"""Names in bundles: any name that ONNX allows may be that of a tensor, also one that the server would choose itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from elman_bundle import Bundle, BundleError, load_bundle
from elman_export import ExportError, Labels, Values, export_bundle
from elman_export.contract import Tensors
from elman_export.quantization import find_products, quantize
from tests.support.foreign_bundles import LABELS, TOKENS, Foreign, Kept, Shown, constant, random_weights
from tests.support.manifests import change
from tests.support.reference import open_graph
from tests.support.serving import Running, serving

SIZE = 6


def write(folder: Path, kind: str, names: Mapping[str, str]) -> Bundle:
    """Write a small model that generates, with a graph inside a node, under other names."""
    call = lambda name: names.get(name, name)  # noqa: E731
    make = helper.make_node
    then = helper.make_graph(
        [make("Mul", [call("sum"), call("two")], [call("inner")]), make("Tanh", [call("inner")], [call("then")])],
        "then",
        [],
        [helper.make_tensor_value_info(call("then"), TensorProto.FLOAT, ["B", SIZE])],
        [constant(np.float32(2), call("two"))],
    )
    other = helper.make_graph(
        [make("Tanh", [call("sum")], [call("inner")])],
        "other",
        [],
        [helper.make_tensor_value_info(call("inner"), TensorProto.FLOAT, ["B", SIZE])],
    )
    nodes = [
        make("Gather", [call("embedding"), call("token")], [call("read")], name=call("node")),
        make("MatMul", [call("hidden"), call("weights")], [call("product")], name=call("node2")),
        make("Add", [call("read"), call("product")], [call("sum")]),
        make("If", [call("always")], [call("after")], then_branch=then, else_branch=other),
        make("MatMul", [call("after"), call("head")], [call("scores")]),
        make("Identity", [call("hidden")], [call("before")]),
    ]
    values = random_weights(embedding=(TOKENS, SIZE), weights=(SIZE, SIZE), head=(SIZE, TOKENS))
    return Foreign(
        nodes,
        {call(name): value for name, value in values.items()} | {call("always"): np.array(True)},
        {call("hidden"): Kept(call("after"), [SIZE]), call("last"): Kept(call("before"), [SIZE])},
        {call("scores"): Shown("next_token", [TOKENS])},
        call("token"),
        name=kind,
    ).write(folder)


async def answers(running: Running, model: str) -> list[object]:
    stream = running.client.generate("abcab", model=model, max_tokens=9, seed=3, top_k=5)
    text = "".join([chunk.text async for chunk in stream])
    (embedding,) = await running.client.embed(["gfed"], model=model, every_step=True)
    return [text, *(tensor.to_numpy().tobytes() for tensor in embedding.tensors.values())]


_OTHERS: dict[str, dict[str, str]] = {
    "of-the-copies-of-the-step": {
        "embedding": "step0/sum",
        "weights": "step1/read",
        "head": "step0/inner",
        "product": "step0/product",
        "inner": "step1/product",
        "two": "step0/read",
        "node": "step0/node2",
    },
    "of-the-tensors-of-the-server": {
        "token": "elman.temperatures",
        "hidden": "elman.uniforms",
        "last": "elman.next.elman.uniforms",
        "scores": "elman.tokens",
        "embedding": "elman.0",
        "read": "elman.1",
        "weights": "elman.constant0",
        "inner": "elman.checks",
        "two": "elman.2",
        "after": "elman.steps.elman.tokens",
        "then": "elman.given.token",
    },
    "of-renamed-tensors": {
        "weights": "x",
        "product": "weights/x",
        "hidden": "elman.given.weights",
        "token": "weights/head",
        "inner": "weights/two",
    },
    "unusual": {
        "token": " ",
        "hidden": "é\n\"'",
        "last": "/",
        "embedding": "a:0",
        "scores": "語" * 50,
        "inner": "\\",
        "after": "\t",
        "two": "__metadata__",
    },
}


async def test_names_make_no_difference(tmp_path: Path) -> None:
    bundles = [write(tmp_path / kind, kind, names) for kind, names in {"plain": {}, **_OTHERS}.items()]
    async with serving(*bundles) as running:
        expected = await answers(running, "plain")
        for kind in _OTHERS:
            assert await answers(running, kind) == expected, kind


def test_the_inputs_of_an_encoder_have_two_names(tmp_path: Path) -> None:
    make = helper.make_node
    bundle = Foreign(
        [make("Identity", ["features"], ["scores"])],
        token=None,
        constants={"features": [LABELS]},
        encoder=[make("Gather", ["table", "lengths"], ["features"])],
        weights=random_weights(table=(17, LABELS)),
    ).write(tmp_path)
    change(bundle.path, lambda manifest: manifest["encoder"].update(length_name="source"))
    with pytest.raises(BundleError, match="encoder: graph inputs names source twice"):
        load_bundle(bundle.path)


class Named(nn.Module):
    """A step with one input, state and output of any names."""

    def __init__(self, given: str, state: str, output: str) -> None:
        super().__init__()
        self.given, self.state, self.output = given, state, output
        self.read, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def initial_state(self, rows: int) -> Tensors:
        return {self.state: torch.zeros(rows, 4)}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        hidden = torch.tanh(self.read(inputs[self.given]) + state[self.state])
        return {self.output: self.head(hidden)}, {self.state: hidden}


@pytest.mark.parametrize(
    ("given", "state", "output", "problem"),
    [
        ("x", "hidden", "x", "the input 'x' and the output 'x' would both be 'x' in the graph"),
        ("x", "hidden", "next.hidden", "the next value of the state 'hidden' and the output 'next.hidden' would both"),
        ("state.hidden", "hidden", "y", "the input 'state.hidden' and the state 'hidden' would both be 'state.hidden'"),
        ("x", "hidden", "state.hidden", "the state 'hidden' and the output 'state.hidden' would both"),
    ],
)
def test_names_that_are_equal_in_the_graph_are_refused_by_the_export(
    tmp_path: Path, given: str, state: str, output: str, problem: str
) -> None:
    with pytest.raises(ExportError, match=problem):
        export_bundle(
            Named(given, state, output),
            tmp_path / "bundle",
            name="named",
            inputs={given: Values((3,))},
            outputs={output: Labels(["a", "b"])},
        )


def integer_products(names: Mapping[str, str]) -> bytes:
    """The result of two products in integers, in a graph with other names."""
    call = lambda name: names.get(name, name)  # noqa: E731
    weights = random_weights(first=(32, 40), bias=(40,), second=(32, 40))
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", [call("x"), call("first"), call("bias")], [call("between")]),
            helper.make_node("Gemm", [call("x"), call("second"), call("between")], ["y"]),
        ],
        "products",
        [helper.make_tensor_value_info(call("x"), TensorProto.FLOAT, ["B", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 40])],
        [constant(value, call(name)) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = quantize(model, find_products(model), {call("x"): 3.0})
    x = np.random.default_rng(1).standard_normal((5, 32), dtype=np.float32)
    return bytes(open_graph(made.SerializeToString()).run(["y"], {call("x"): x})[0].tobytes())


@pytest.mark.parametrize(
    "names",
    [
        {"x": "activation.zero_point", "bias": "activation.zero_point.uint8.0"},
        {"first": "w", "second": "w.int8", "x": "w.int8.scales"},
        {"between": "b", "x": "b.bias", "bias": "y.product"},
    ],
)
def test_names_make_no_difference_in_int8(names: Mapping[str, str]) -> None:
    assert integer_products(names) == integer_products({})
