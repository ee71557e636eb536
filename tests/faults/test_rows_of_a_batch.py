"""Graphs whose rows depend on their batch, their place or chance: refused at load, naming the node and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic

from elman_bundle import Bundle
from elman_server.errors import ModelLoadError
from tests.support.foreign_bundles import LABELS, TOKENS, Foreign, Kept, Shown, mask_nodes, random_weights
from tests.support.manifests import reseal
from tests.support.serving import serving

SIZE = 20  # not the number of rows of a trial run
make = helper.make_node


def recurrent(folder: Path, *nodes: onnx.NodeProto, **changes: Any) -> Bundle:
    """Write a recurrent model of which one part is given: nodes from "sum" to "out", float32 [B, SIZE]."""
    weights = random_weights(table=(TOKENS, SIZE), weights=(SIZE, SIZE), head=(SIZE, LABELS))
    return Foreign(
        [
            make("Gather", ["table", "token"], ["read"]),
            make("MatMul", ["hidden", "weights"], ["product"], name="recurrence"),
            make("Add", ["read", "product"], ["sum"]),
            *nodes,
            make("Tanh", ["out"], ["after"]),
            make("MatMul", ["after", "head"], ["scores"], name="head"),
        ],
        {**weights, "rows": np.array([0]), "first": np.array(0), "yes": np.array(True)},
        {"hidden": Kept("after", [SIZE])},
        **changes,
    ).write(folder)


def inside(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def in_a_branch() -> list[onnx.NodeProto]:
    then = inside("p", make("RandomNormalLike", ["sum"], ["noise"]), make("Add", ["sum", "noise"], ["p"]))
    return [
        make(
            "If",
            ["yes"],
            ["out"],
            name="choice",
            then_branch=then,
            else_branch=inside("q", make("Abs", ["sum"], ["q"])),
        )
    ]


def in_a_loop() -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [
            make("ReduceMax", ["value", "rows"], ["most"]),
            make("Sub", ["value", "most"], ["less"]),
            make("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("less", TensorProto.FLOAT, None),
        ],
    )
    return [
        make("Constant", [], ["twice"], value_int=2),
        make("Loop", ["twice", "yes", "sum"], ["out"], name="turns", body=body),
    ]


FUNCTION = helper.make_function(
    "own",
    "Centre",
    ["x"],
    ["y"],
    [
        make("Constant", [], ["axis"], value_ints=[0]),
        make("ReduceMean", ["x", "axis"], ["mean"]),
        make("Sub", ["x", "mean"], ["y"]),
    ],
    [helper.make_opsetid("", 20)],
)
_ACROSS, _CHANCE = "change with the other rows of its batch", "change from run to run with the same inputs"
_FAULTS: dict[str, tuple[Sequence[onnx.NodeProto], str, str]] = {
    "mean of the rows": (
        [make("ReduceMean", ["sum", "rows"], ["m"], name="mean"), make("Sub", ["sum", "m"], ["out"])],
        _ACROSS,
        "ReduceMean 'mean'",
    ),
    "softmax over the rows": ([make("Softmax", ["sum"], ["out"], axis=0)], _ACROSS, "the Softmax that computes 'out'"),
    "the rows before": ([make("CumSum", ["sum", "first"], ["out"], name="so far")], _ACROSS, "CumSum 'so far'"),
    "dynamic quantization": (
        [
            make("DynamicQuantizeLinear", ["sum"], ["q", "scale", "zero"], name="scales"),
            make("DequantizeLinear", ["q", "scale", "zero"], ["out"]),
        ],
        _ACROSS,
        "DynamicQuantizeLinear 'scales'. Quantize with fixed scales",
    ),
    "noise": (
        [make("RandomNormalLike", ["sum"], ["n"], name="noise", scale=0.1), make("Add", ["sum", "n"], ["out"])],
        _CHANCE,
        "RandomNormalLike 'noise'. Export the module without it",
    ),
    "noise with a seed": (
        [make("RandomUniformLike", ["sum"], ["n"], seed=1.0), make("Add", ["sum", "n"], ["out"])],
        _CHANCE,
        "the RandomUniformLike that computes 'n'",
    ),
    "chance": (
        [
            make("Sigmoid", ["sum"], ["p"]),
            make("Bernoulli", ["p"], ["kept"], name="coin"),
            make("Mul", ["sum", "kept"], ["out"]),
        ],
        _CHANCE,
        "Bernoulli 'coin'",
    ),
    "noise in a branch": (in_a_branch(), _CHANCE, "RandomNormalLike inside If 'choice'"),
    "a loop": (in_a_loop(), _ACROSS, "Loop 'turns'"),
    "a function": ([make("Centre", ["sum"], ["out"], domain="own")], _ACROSS, "the ReduceMean that computes"),
    "infinite neighbours only": (
        [
            make("ReduceMax", ["sum"], ["m"], keepdims=0, name="most"),
            make("Constant", [], ["zero"], value_float=0.0),
            make("Mul", ["m", "zero"], ["nothing"]),
            make("Add", ["sum", "nothing"], ["out"]),
        ],
        _ACROSS,
        "ReduceMax 'most'",
    ),
    "the number of rows": (
        [
            make("Shape", ["sum"], ["n"], end=1),
            make("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            make("Div", ["sum", "f"], ["out"]),
        ],
        "with their number",
        "Compute nothing that depends on it",
    ),
    "its place": (
        [
            make("Shape", ["sum"], ["shape"]),
            make(
                "ConstantOfShape", ["shape"], ["ones"], value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
            ),
            make("CumSum", ["ones", "first"], ["places"]),
            make("Add", ["sum", "places"], ["out"]),
        ],
        "with their number",
        "Compute nothing that depends on it",
    ),
}


@pytest.mark.parametrize("kind", _FAULTS)
async def test_a_step_is_refused(tmp_path: Path, kind: str) -> None:
    nodes, how, node = _FAULTS[kind]
    bundle = recurrent(tmp_path, *nodes, functions=[FUNCTION])
    with pytest.raises(ModelLoadError, match="onnx: output ") as raised:
        async with serving(bundle):
            pass
    assert how in str(raised.value)
    assert node in str(raised.value)
    assert "a request must get the same answer whatever else is in its batch" in str(raised.value)


async def test_dynamically_quantized_weights_are_refused(tmp_path: Path) -> None:
    bundle = recurrent(tmp_path, make("Identity", ["sum"], ["out"]))
    quantize_dynamic(bundle.graph_path, bundle.graph_path)
    with pytest.raises(ModelLoadError, match=r"DynamicQuantizeLinear '.*'\. Quantize with fixed scales"):
        async with serving(reseal(bundle.path)):
            pass


async def test_an_honest_step_is_served(tmp_path: Path) -> None:
    """It flattens its rows, has a branch, and normalises each row."""
    nodes = [
        make("Shape", ["sum"], ["shape"]),
        make("Constant", [], ["flat"], value_ints=[-1]),
        make("Reshape", ["sum", "flat"], ["line"]),
        make("Sin", ["line"], ["waves"]),
        make("Reshape", ["waves", "shape"], ["back"]),
        make(
            "If",
            ["yes"],
            ["turned"],
            then_branch=inside("p", make("Tanh", ["back"], ["p"])),
            else_branch=inside("q", make("Abs", ["back"], ["q"])),
        ),
        make("Softmax", ["turned"], ["out"], axis=1),
    ]
    async with serving(recurrent(tmp_path, *nodes)) as running:
        assert len((await running.client.classify("abc")).steps) == 3


def translating(folder: Path, *nodes: onnx.NodeProto, reading: Sequence[onnx.NodeProto] = ()) -> Bundle:
    """Write a model whose encoder is given: nodes from "features", [B, S, SIZE], and "mask", [B, S, 1], to "memory".
    Its steps add the memory of all positions, or the "context" that `reading` makes of it."""
    weights = random_weights(table=(TOKENS, SIZE), head=(SIZE, TOKENS))
    numbers = {
        "0": np.array(0),
        "1": np.array(1),
        "positions": np.array([1]),
        "columns": np.array([2]),
        "rows": np.array([0]),
    }
    return Foreign(
        [
            *(reading or [make("ReduceSum", ["memory", "positions"], ["context"], keepdims=0)]),
            make("Gather", ["table", "token"], ["read"]),
            make("Add", ["read", "context"], ["sum"]),
            make("Add", ["sum", "hidden"], ["all"]),
            make("Tanh", ["all"], ["after"]),
            make("MatMul", ["after", "head"], ["scores"]),
        ],
        {**weights, **numbers},
        {"hidden": Kept("after", [SIZE])},
        {"scores": Shown("next_token", [TOKENS])},
        constants={"memory": [-1, SIZE]},
        encoder=[
            make("Gather", ["table", "source"], ["features"]),
            *mask_nodes("positions", "columns", "mask"),
            *nodes,
        ],
    ).write(folder)


_MASKED = make("Mul", ["features", "mask"], ["memory"])
_SOURCES: dict[str, tuple[Sequence[onnx.NodeProto], Sequence[onnx.NodeProto], str]] = {
    "honest": ([_MASKED], (), ""),
    "noise": (
        [make("RandomNormalLike", ["features"], ["n"]), make("Mul", ["n", "mask"], ["memory"])],
        (),
        r"encoder\.onnx: .* change from run to run .* at the RandomNormalLike that computes 'n'",
    ),
    "mean of the rows": (
        [make("ReduceMean", ["features", "rows"], ["m"]), make("Mul", ["m", "mask"], ["memory"])],
        (),
        r"encoder\.onnx: .* other rows of its batch; .* at the ReduceMean that computes 'm'",
    ),
    "padding is read by the encoder": (
        [make("ReduceMean", ["features", "positions"], ["m"]), make("Mul", ["m", "mask"], ["memory"])],
        (),
        r"encoder\.onnx: .* by .* with the number or the padding of sources",
    ),
    "padding is read by the step": (
        [_MASKED],
        [make("ReduceMean", ["memory", "positions"], ["context"], keepdims=0)],
        r"step\.onnx: .* by .* with their number or the padding of sources",
    ),
}


@pytest.mark.parametrize("kind", _SOURCES)
async def test_sources_do_not_depend_on_each_other(tmp_path: Path, kind: str) -> None:
    nodes, reading, problem = _SOURCES[kind]
    bundle = translating(tmp_path, *nodes, reading=reading)
    if problem:
        with pytest.raises(ModelLoadError, match=problem):
            async with serving(bundle):
                pass
        return
    async with serving(bundle) as running:
        assert "".join([chunk.text async for chunk in running.client.generate("a", source="bcd", max_tokens=3)])


_TREES: dict[str, tuple[Sequence[onnx.NodeProto], str]] = {
    "honest": ([make("CumSum", ["hidden", "1"], ["c"]), make("Gather", ["c", "last"], ["children"], axis=1)], ""),
    "mean of the rows": (
        [
            make("ReduceMean", ["hidden", "rows"], ["c"]),
            make("ReduceSum", ["c", "positions"], ["children"], keepdims=0),
        ],
        "change with the other rows of its batch; .* at the ReduceMean that computes 'c'",
    ),
    "mean of the children": (
        [make("ReduceMean", ["hidden", "positions"], ["children"], keepdims=0)],
        "with empty positions after its children",
    ),
}


@pytest.mark.parametrize("kind", _TREES)
async def test_nodes_of_trees_do_not_depend_on_each_other(tmp_path: Path, kind: str) -> None:
    nodes, problem = _TREES[kind]
    weights = random_weights(table=(TOKENS, SIZE), head=(SIZE, LABELS))
    bundle = Foreign(
        [
            make("Gather", ["table", "token"], ["read"]),
            *nodes,
            make("Add", ["read", "children"], ["sum"]),
            make("Tanh", ["sum"], ["after"]),
            make("MatMul", ["after", "head"], ["scores"]),
        ],
        {**weights, "rows": np.array([0]), "positions": np.array([1]), "1": np.array(1), "last": np.array(-1)},
        {"hidden": Kept("after", [SIZE])},
        tree_children=0,
    ).write(tmp_path)
    if problem:
        with pytest.raises(ModelLoadError, match=problem):
            async with serving(bundle):
                pass
        return
    async with serving(bundle):
        pass
