"""int8: close to float32, independent of the batch to the bit, and with the loss of accuracy reported."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from rich.console import Console
from torch import Tensor, nn

from elman_bundle import CharacterVocabulary, load_bundle
from elman_export import ExportError, Labels, NextToken, Token, Values, export_bundle, export_run
from elman_export.calibration import CalibrationRun, largest_difference, make_calibration_run, measure_bounds
from elman_export.contract import StepInterface
from elman_export.examples import make_example
from elman_export.graph_runtime import open_session
from elman_export.network_steps import NetworkStep
from elman_export.parity import check_independence
from elman_export.quantization import find_products, quantize, quantize_weight
from elman_export.quantization_loss import HeldOutPart
from elman_export.step_export import write_step
from elman_export.value_bounds import declared_bounds, find_bounds
from elman_training import TextConfig, TrainingError, train
from elman_training.cells import CELLS
from tests.support.bundles import CHARACTERS, make_network
from tests.support.command_line import elman

QUIET = Console(quiet=True)
SENTENCE = "the quick brown fox jumps over the lazy dog. "
LETTERS = CharacterVocabulary("abcd")
TOKENS: dict[str, Any] = {"token": Token(CHARACTERS)}


class Prepared:
    """A network's step and its float32 graph."""

    def __init__(self, cell: str, folder: Path) -> None:
        self.module = NetworkStep(make_network(cell, CHARACTERS.size)).eval()
        path = folder / "step.onnx"
        write_step(self.module, make_example(self.module, StepInterface(TOKENS), 3, 0), ("logits",), path)
        self.model = onnx.load(path)
        self.products = find_products(self.model)
        self.bounds = find_bounds(self.model, declared_bounds(self.module))

    def difference(self, bounds: dict[str, float]) -> float:
        """Return the largest difference between this graph and its int8 form over many steps."""
        quantized = quantize(self.model, self.products, bounds).SerializeToString()
        run = make_calibration_run(self.module, StepInterface(TOKENS), None)
        plain = open_session(self.model.SerializeToString())
        return largest_difference(plain, open_session(quantized), ["logits"], run)


@pytest.fixture(scope="module", params=sorted(CELLS))
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(request.param, tmp_path_factory.mktemp("graph"))


def run_model(nodes: list[onnx.NodeProto], constants: dict[str, Any], x: NDArray[Any]) -> Any:
    return open_session(make_model(nodes, constants, x.ndim).SerializeToString()).run(None, {"x": x})[0]


def make_model(nodes: list[onnx.NodeProto], constants: dict[str, Any], dimensions: int = 2) -> onnx.ModelProto:
    """Return a graph from x to y."""
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * dimensions)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_int8_rows_do_not_depend_on_their_batch(prepared: Prepared) -> None:
    graph = quantize(prepared.model, prepared.products, prepared.bounds).SerializeToString()
    example = make_example(prepared.module, StepInterface(TOKENS), 64, seed=3).graph_inputs()
    feeds = {name: value.numpy() for name, value in example.items()}
    names = ["logits", *(f"next.{name}" for name in prepared.module.initial_state(1))]
    result: dict[tuple[int, int], list[bytes]] = {}
    for threads in (1, 2):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for rows in (1, 2, 3, 5, 8, 17, 33, 64):
            values = session.run(names, {name: value[:rows] for name, value in feeds.items()})
            result[threads, rows] = [value[0].tobytes() for value in values]
    assert all(values == result[1, 1] for values in result.values())


def test_check_of_row_independence_can_fail(prepared: Prepared, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    del model.graph.value_info[:]  # quantize_dynamic transposes weights and rejects their old shapes.
    onnx.save(model, tmp_path / "step.onnx")
    quantize_dynamic(tmp_path / "step.onnx", tmp_path / "dynamic.onnx")
    with pytest.raises(ExportError, match="one caller's result would depend on another's"):
        check_independence(open_session(tmp_path / "dynamic.onnx"), prepared.module, StepInterface(TOKENS))


def test_int8_is_close_to_float32_except_with_a_wrong_scale(prepared: Prepared) -> None:
    assert prepared.difference(prepared.bounds) < 0.03
    states = [product.input for product in prepared.products]
    for wrong in (0.02, 20.0):  # values are clipped, or rounded too coarsely
        assert prepared.difference({**prepared.bounds, **dict.fromkeys(states, wrong)}) > 0.1


def test_graph_contains_integer_products_with_fixed_scales(prepared: Prepared) -> None:
    made = quantize(prepared.model, prepared.products, prepared.bounds)
    counts = Counter(node.op_type for node in made.graph.node)
    assert counts["MatMulIntegerToFloat"] == len(prepared.products) > 2
    assert not counts.keys() & {"DynamicQuantizeLinear", "MatMul", "Gemm"}
    constants = {weight.name: numpy_helper.to_array(weight) for weight in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":  # hidden states lie in (-1, 1)
            assert (constants[node.input[1]], constants[node.input[2]]) == (np.float32(1 / 127), 128)
    # The embedding table is not quantized, and no other float weight remains.
    assert constants["module.table"].dtype == np.float32
    large = [name for name, value in constants.items() if value.dtype == np.float32 and value.ndim > 1]
    assert large == ["module.table"]
    assert [value.name for value in made.graph.input] == [value.name for value in prepared.model.graph.input]
    assert [value.name for value in made.graph.output] == [value.name for value in prepared.model.graph.output]


def test_tensor_is_quantized_once_and_before_concatenation(tmp_path: Path) -> None:
    prepared = Prepared("lstm", tmp_path)
    made = quantize(prepared.model, prepared.products, prepared.bounds)
    quantized = [node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear"]
    assert sorted(quantized) == [
        "next.layer0.hidden",
        "next.layer1.hidden",
        "state.layer0.hidden",
        "state.layer1.hidden",
    ]
    assert Counter(node.op_type for node in made.graph.node)["Concat"] == 1


def test_weights_are_quantized_per_channel() -> None:
    random = np.random.default_rng(0)
    weight = (random.normal(size=(40, 30)) * 10.0 ** random.uniform(-3, 2, 30)).astype(np.float32)
    weight[:, 4] = 0
    integers, scales = quantize_weight(weight)
    assert integers.dtype == np.int8
    assert scales.shape == (30,)
    assert (np.abs(integers) <= 127).all()
    assert (np.abs(pairs(integers)) <= 128).all()
    # and no coarser than necessary
    finest = [np.abs(integers[:, n]).max() == 127 or np.abs(pairs(integers)[:, n]).max() >= 127 for n in range(30)]
    assert finest == [n != 4 for n in range(30)]
    assert (np.abs(integers * scales - weight) <= 0.5001 * scales).all()


def pairs(integers: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return the sums of rows 2k and 2k + 1."""
    return integers[0::2].astype(np.int64) + integers[1::2]


@pytest.mark.parametrize("inputs", [2, 3, 33, 64, 127])
def test_products_are_the_same_integers_on_every_cpu(inputs: int) -> None:
    """CPUs without VNNI add pairs of products in 16 bits, which the largest int8 weights would overflow."""
    random = np.random.default_rng(inputs)
    weight = random.choice([-1, -0.999, 0.5, 1], (inputs, 512)).astype(np.float32)
    integers, scales = quantize_weight(weight)
    node = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = make_model(node, {"w": weight})
    made = open_session(quantize(model, find_products(model), {"x": 1.0}).SerializeToString())
    for rows in (1, 2, 5, 64):
        x = random.choice([-2, -1, 1, 2], (rows, inputs)).astype(np.float32)  # also beyond its bound
        activations = np.clip(np.rint(x * 127), -128, 127).astype(np.int64)
        exact = (activations @ integers.astype(np.int64)).astype(np.float64) * scales / 127
        np.testing.assert_allclose(made.run(None, {"x": x})[0], exact, rtol=1e-5, atol=1e-9)


RANDOM = np.random.default_rng(1)
WEIGHT = (RANDOM.normal(size=(48, 32)) / 7).astype(np.float32)
BIAS = RANDOM.normal(size=32).astype(np.float32)


@pytest.mark.parametrize(
    ("nodes", "constants", "shape"),
    [
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT}, (5, 48)),
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT}, (2, 5, 48)),
        ([helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5)], {"w": WEIGHT}, (5, 48)),
        (
            [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, beta=2.0)],
            {"w": WEIGHT.T.copy(), "b": BIAS[None]},
            (5, 48),
        ),
        ([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], {"w": WEIGHT, "b": np.float32(3)}, (5, 48)),
        (
            [helper.make_node("Slice", ["x", "zero", "end", "one"], ["part"]),
             helper.make_node("Gemm", ["x", "w", "part"], ["y"])],
            {"w": WEIGHT, "zero": [0], "end": [32], "one": [1]},
            (5, 48),
        ),
        (
            [helper.make_node("Gemm", ["x", "w"], ["u"]), helper.make_node("Gemm", ["x", "w"], ["v"], alpha=2.0),
             helper.make_node("Add", ["u", "v"], ["y"])],
            {"w": WEIGHT},
            (5, 48),
        ),
    ],
)  # fmt: skip
def test_every_form_of_product_is_quantized(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: tuple[int, ...]
) -> None:
    model = make_model(nodes, constants, len(shape))
    made = quantize(model, find_products(model), {"x": 1.0})
    assert not {"MatMul", "Gemm"} & {node.op_type for node in made.graph.node}
    x = np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)
    result = open_session(made.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(result, run_model(nodes, constants, x), atol=0.06)


@pytest.mark.parametrize(
    ("nodes", "constants", "error_message"),
    [
        ([helper.make_node("Tanh", ["x"], ["y"])], {}, r"it has no product \(MatMul or Gemm; in torch nn.Linear"),
        ([helper.make_node("MatMul", ["x", "x"], ["y"])], {}, "it has no product"),
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT[:4, :3]}, "its largest weight has 12 numbers"),
        (
            [helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
             helper.make_node("MatMul", ["half", "w"], ["z"]),
             helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT)],
            {"w": WEIGHT.astype(np.float16)},
            "its weights are float16, and only float32 can become int8",
        ),
    ],
)  # fmt: skip
def test_graph_without_products_is_rejected(nodes: list[onnx.NodeProto], constants: Any, error_message: str) -> None:
    with pytest.raises(ExportError, match=f"nothing to quantize: {error_message}"):
        find_products(make_model(nodes, constants))


def test_bounds_are_derived_from_operators() -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["squashed"]),
        helper.make_node("Mul", ["squashed", "three"], ["scaled"]),
        helper.make_node("Concat", ["squashed", "scaled"], ["joined"], axis=1),
        helper.make_node("Split", ["joined"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Add", ["left", "right"], ["sum"]),
        helper.make_node("Concat", ["left", "x"], ["unknown"], axis=1),
        helper.make_node("Gather", ["table", "three"], ["looked_up"]),
        helper.make_node("Sigmoid", ["sum"], ["y"]),
    ]
    model = make_model(nodes, {"three": np.float32(-3), "table": np.array([[1, -7]], np.float32)})
    bounds = find_bounds(model, {"left": 2.0})
    assert bounds == {
        "three": 3.0, "table": 7.0, "squashed": 1.0, "scaled": 3.0, "joined": 3.0, "left": 2.0, "right": 3.0,
        "looked_up": 7.0, "y": 1.0,
    }  # fmt: skip


class Filter(nn.Module):
    """Reads numbers of any size and keeps a state that it can declare a bound for."""

    state_bounds: dict[str, float]

    def __init__(self, **state_bounds: float) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Linear(30, 40)
        self.recur = nn.Linear(40, 40)
        self.head = nn.Linear(40, 3)
        self.state_bounds = state_bounds

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        return {"mean": torch.zeros(rows, 40)}

    def step(self, inputs, constants, state):  # type: ignore[no-untyped-def]
        new = torch.tanh(self.inner(inputs["frame"]) + self.recur(state["mean"]))
        mean = 0.9 * state["mean"] + 0.1 * new  # within (-1, 1), which cannot be derived from the operators
        return {"scores": self.head(mean)}, {"mean": mean}


FRAMES = {"frame": Values([30])}


def write_filter(module: Filter, folder: Path, **options: Any) -> onnx.ModelProto:
    scores = Labels(["x", "y", "z"], "step")
    export_bundle(module, folder, name="own", inputs=FRAMES, outputs={"scores": scores}, quantize="int8", **options)
    return onnx.load(folder / "step.onnx")


def scales_of(model: onnx.ModelProto) -> dict[str, float]:
    constants = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    quantizing = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[0]: float(constants[node.input[1]]) for node in quantizing}


def test_unbounded_tensors_are_calibrated(tmp_path: Path) -> None:
    frames = torch.randn(4, 20, 30).clamp(-2, 2)
    frames[2, 7, 5] = -5.0
    model = write_filter(Filter(mean=1.0), tmp_path / "own", calibration={"frame": frames})
    assert scales_of(model) == pytest.approx({"frame": 5.5 / 127, "state.mean": 1 / 127})
    # The head is too small to be quantized.
    assert Counter(node.op_type for node in model.graph.node)["Gemm"] == 1
    spec = load_bundle(tmp_path / "own").spec
    assert 0 < spec.metrics["quantization_largest_difference"] < 0.02
    assert spec.provenance["precision"] == "int8"


def test_state_without_declared_bound_is_calibrated(tmp_path: Path) -> None:
    scales = scales_of(write_filter(Filter(), tmp_path / "own"))
    assert scales["state.mean"] < 1 / 127
    assert scales["frame"] > 3 / 127  # random frames, as in the comparison with torch


def test_violated_state_bound_is_rejected(tmp_path: Path) -> None:
    error_message = r"next.mean reaches 0.\d+ after \d+ steps, but state_bounds says 0.01 at most"
    with pytest.raises(ExportError, match=error_message):
        write_filter(Filter(mean=0.01), tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bounds", "error_message"),
    [
        ({"average": 1.0}, r"state_bounds names 'average', but initial_state\(\) has \['mean'\]"),
        ({"mean": 0.0}, "mean: got 0.0; the largest magnitude must be above 0"),
    ],
)
def test_invalid_bounds_are_rejected(bounds: dict[str, float], error_message: str) -> None:
    with pytest.raises(ExportError, match=error_message):
        declared_bounds(Filter(**bounds))


@pytest.mark.parametrize(
    ("calibration", "error_message"),
    [
        ({"frames": torch.zeros(2, 3, 30)}, r"calibration has \['frames'\], but the step reads \['frame'\]"),
        ({"frame": torch.zeros(2, 30)}, r"frame is torch.float32 \[2, 30\], but must be torch.float32 \[B, T, 30\]"),
        ({"frame": torch.zeros(2, 0, 30)}, "but must be"),
        ({"frame": torch.zeros(2, 3, 30, dtype=torch.int64)}, r"frame is torch.int64 \[2, 3, 30\], but must be"),
    ],
)
def test_invalid_calibration_data_is_rejected(calibration: dict[str, Tensor], error_message: str) -> None:
    with pytest.raises(ExportError, match=error_message):
        make_calibration_run(Filter(), StepInterface(FRAMES), calibration)


def test_non_finite_calibration_is_rejected() -> None:
    model = make_model([helper.make_node("Log", ["x"], ["y"])], {})
    run = CalibrationRun([{"x": np.array([[1.0, value]], np.float32)} for value in (2.0, 0.0)], {}, ())
    with pytest.raises(ExportError, match="y becomes inf within 2 steps"):
        measure_bounds(model, ["y"], run)
    assert measure_bounds(model, ["y"], CalibrationRun(run.steps[:1], {}, ())) == {"y": pytest.approx(1.1 * np.log(2))}


def test_bundle_declares_its_precision(bundles: Any) -> None:
    for name, bundle in bundles.items():
        assert bundle.spec.provenance["precision"] == ("int8" if name.endswith("int8") else "fp32")


def test_step_too_small_for_int8_is_not_exported(tmp_path: Path) -> None:
    module = NetworkStep(make_network("gru", LETTERS.size, layers=1, hidden=5))
    with pytest.raises(ExportError, match="its largest weight has 75 numbers, and below 1024 int8 saves no time"):
        export_bundle(module, tmp_path / "own", name="own", inputs=TOKENS, outputs={"logits": Labels("abcd")},
                      quantize="int8")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error_message"),
    [
        ({"quantize": "int4"}, "quantize: got 'int4'; only 'int8' is supported"),
        ({"calibration": {}}, "calibration and evaluate have no effect without quantize='int8'"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], error_message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=error_message):
        export_bundle(Filter(), tmp_path / "own", name="own", inputs=FRAMES, outputs={}, **options)


def make_run(task: str, corpus: Path, folder: Path) -> None:
    config = TextConfig(
        task=task, corpus=str(corpus), cell="lstm", layers=1, embedding=8, hidden=32, dropout=0.0, lanes=8, window=10,
        steps=60, learning_rate=1e-2, warmup_steps=5, validate_every=60,
    )  # fmt: skip
    train(config, folder, console=QUIET)


@pytest.mark.parametrize("task", ["lm", "classify", "tag"])
def test_int8_bundle_of_a_run_reports_both_losses(task: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    # In the corpora of the tagger and the classifier, the letters determine the class, and lengths differ.
    labelled = "".join(f"{'ab' * (1 + index % 9)}\tx\n{'cd' * (1 + index % 7)}\ty\n\n" for index in range(150))
    corpus.write_text(SENTENCE * 200 if task == "lm" else labelled)
    make_run(task, corpus, tmp_path / "run")
    shown = io.StringIO()
    export_run(tmp_path / "run", tmp_path / "own", name="own", quantize="int8", console=Console(file=shown))
    metrics = load_bundle(tmp_path / "own").spec.metrics
    assert metrics["int8_validation_nats"] == pytest.approx(metrics["fp32_validation_nats"], abs=0.02)
    # The metric that training measured with torch, except for where the rows start.
    assert metrics["fp32_validation_nats"] == pytest.approx(metrics["validation_nats"], abs=0.2)
    line = f"int8: {metrics['int8_validation_nats']:.4f} nats on held-out text, fp32 "
    assert line in shown.getvalue()
    if task == "lm":
        assert "int8_validation_accuracy" not in metrics
    else:
        assert metrics["fp32_validation_accuracy"] == pytest.approx(metrics["validation_accuracy"])
        assert f"accuracy {metrics['int8_validation_accuracy']:.2%}, fp32" in shown.getvalue()


def test_export_command_prints_both_losses(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(SENTENCE * 200)
    make_run("lm", corpus, tmp_path / "run")
    exported = elman("export", tmp_path / "run", "--output", tmp_path / "own", "--quantize", "int8")
    assert exported.returncode == 0, exported.stderr
    losses = r"int8: \d\.\d{4} nats on held-out text, fp32 \d\.\d{4} \([+-]\d\.\d{4}\)"
    assert re.fullmatch(losses, exported.stderr.splitlines()[0])


def test_run_without_its_corpus_can_be_exported(tmp_path: Path) -> None:
    corpus, run = tmp_path / "corpus.txt", tmp_path / "run"
    corpus.write_text(SENTENCE * 200)
    make_run("lm", corpus, run)
    corpus.write_text(SENTENCE * 300)
    with pytest.raises(TrainingError, match=f"{corpus}: is not what {run} was trained on"):
        HeldOutPart(run, NetworkStep(make_network("lstm", 3)), QUIET)
    corpus.unlink()
    shown = io.StringIO()
    export_run(run, tmp_path / "own", name="own", quantize="int8", console=Console(file=shown))
    error_message = f"int8: its loss on held-out text cannot be measured: {corpus}: there is no such file or folder"
    assert error_message in shown.getvalue()
    spec = load_bundle(tmp_path / "own").spec
    assert "int8_validation_nats" not in spec.metrics
    assert spec.provenance["precision"] == "int8"


def test_metrics_of_a_custom_evaluation_are_recorded(tmp_path: Path) -> None:
    seen: list[str] = []

    def evaluate(precision: str, session: onnxruntime.InferenceSession) -> dict[str, float]:
        seen.append(precision)
        return {"inputs": len(session.get_inputs())}

    module = NetworkStep(make_network("elman", CHARACTERS.size))
    export_bundle(module, tmp_path / "own", name="own", inputs=TOKENS, outputs={"logits": NextToken()},
                  quantize="int8", evaluate=evaluate)  # fmt: skip
    metrics = load_bundle(tmp_path / "own").spec.metrics
    assert seen == ["fp32", "int8"]
    assert metrics["fp32_inputs"] == metrics["int8_inputs"] == 3
