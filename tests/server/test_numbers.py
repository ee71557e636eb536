"""Models with numeric inputs: labels per step and per sequence, in a server that also serves text models."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from elman import InvalidRequestError, Prediction
from elman_bundle import Bundle
from elman_export import Labels, Values, export_bundle
from elman_export.contract import Tensors
from elman_protos import v1
from elman_training.cells.lstm import LSTM
from tests.support.reference import open_graph
from tests.support.serving import Running, serving
from tests.support.shared import Maker, SharedBundles

SENSORS, HIDDEN = 3, 16
CONDITIONS = ("fine", "hot", "worn")


class Telemetry(nn.Module):
    """An LSTM over the values of three sensors at each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.cell = LSTM(SENSORS, HIDDEN)
        self.head = nn.Linear(HIDDEN, len(CONDITIONS))

    def initial_state(self, rows: int) -> Tensors:
        return self.cell.initial_state(rows)

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        features, after = self.cell.step(inputs["frame"], state)
        return {"logits": self.head(features)}, after


class Picture(nn.Module):
    """A feed-forward network over a picture of 4 by 4: one step, no state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, len(CONDITIONS)))

    def initial_state(self, rows: int) -> Tensors:
        return {}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return {"logits": self.layers(inputs["picture"])}, {}


def exporter(module: type[nn.Module], name: str, given: str, shape: tuple[int, ...], labels: Labels) -> Maker:
    """Return a function that writes the bundle of a module with a numeric input."""
    return lambda folder: export_bundle(
        module(), folder, name=name, inputs={given: Values(shape)}, outputs={"logits": labels}
    )


@pytest.fixture(scope="module")
def numeric() -> Mapping[str, Bundle]:
    """Bundles by name: a tagger and a classifier of frames, and a classifier of pictures."""
    return SharedBundles(
        "numeric",
        {
            "steps": exporter(Telemetry, "steps", "frame", (SENSORS,), Labels(CONDITIONS, "step")),
            "whole": exporter(Telemetry, "whole", "frame", (SENSORS,), Labels(CONDITIONS)),
            "pictures": exporter(Picture, "pictures", "picture", (4, 4), Labels(CONDITIONS)),
        },
    )


def alone(bundle: Bundle, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities of the labels after each step, computed by onnxruntime alone."""
    session = open_graph(bundle.graph_path)
    step = bundle.spec.step
    state = {spec.input_name: np.zeros((1, *spec.shape), np.float32) for spec in step.states}
    shown = []
    for value in values:
        names = ["logits", *(spec.output_name for spec in step.states)]
        logits, *after = session.run(names, {step.inputs[0].name: value[None], **state})
        state = dict(zip(state, after, strict=True))
        weights = np.exp(logits[0].astype(np.float64) - logits[0].max())
        shown.append(weights / weights.sum())
    return np.stack(shown)


def frames(seed: int, count: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, *(shape or (SENSORS,)))).astype(np.float32)


def by_label(prediction: Prediction) -> list[float]:
    result = {label.name: label.probability for label in prediction.labels}
    return [result[name] for name in CONDITIONS]


async def test_labels_of_every_step_equal_onnxruntime_alone(numeric: Mapping[str, Bundle]) -> None:
    async with serving(numeric["steps"], numeric["whole"], numeric["pictures"]) as running:
        values = frames(1, 50)
        expected = alone(numeric["steps"], values)
        tagged = await running.client.classify(values, model="steps")
        assert [CONDITIONS.index(step.name) for step in tagged.steps] == expected.argmax(axis=1).tolist()
        assert [step.probability for step in tagged.steps] == pytest.approx(expected.max(axis=1).tolist(), rel=1e-5)
        classified = await running.client.classify(values, model="whole")
        assert by_label(classified) == pytest.approx(expected[-1].tolist(), rel=1e-5)
        picture = frames(2, 1, 4, 4)
        assert by_label(await running.client.classify(picture, model="pictures")) == pytest.approx(
            alone(numeric["pictures"], picture)[0].tolist(), rel=1e-5
        )


async def test_streamed_numbers_do_not_depend_on_pieces_or_concurrent_requests(
    numeric: Mapping[str, Bundle], bundles: Mapping[str, Bundle]
) -> None:
    async with serving(numeric["steps"], numeric["whole"], bundles["lstm"], slots=64) as running:
        client = running.client
        inputs = [frames(seed, 5 + 3 * seed) for seed in range(40)]
        lone = [await client.classify(values, model="steps") for values in inputs]
        ends = [await client.classify(values, model="whole") for values in inputs]
        text = await client.generate("once", max_tokens=200, seed=1).text()

        async def in_pieces(values: NDArray[np.float32]) -> list[Any]:
            pieces = [values[start : start + 4] for start in range(0, len(values), 4)]
            return [step async for result in client.stream_classify(pieces, model="steps") for step in result.steps]

        concurrent = asyncio.gather(*(client.generate("once", max_tokens=200, seed=1).text() for _ in range(20)))
        together = await asyncio.gather(*(client.classify(values, model="steps") for values in inputs))
        whole = await asyncio.gather(*(client.classify(values, model="whole") for values in inputs))
        streamed = await asyncio.gather(*(in_pieces(values) for values in inputs))
        assert together == lone
        assert whole == ends
        assert streamed == [list(prediction.steps) for prediction in lone]
        assert await concurrent == [text] * 20
        await running.until_idle()


async def test_stream_keeps_its_state_between_pieces(numeric: Mapping[str, Bundle]) -> None:
    async with serving(numeric["whole"]) as running:
        values = frames(3, 9)
        pieces = [values[:2], values[2:2], values[2:7], values[7:]]
        result = [prediction async for prediction in running.client.stream_classify(pieces)]
        assert [prediction.step_count for prediction in result] == [2, 2, 7, 9]
        assert result[1].labels == result[0].labels
        for prediction in result:
            assert prediction.labels == (await running.client.classify(values[: prediction.step_count])).labels


@pytest.mark.parametrize(
    "same",
    [
        lambda values: values.astype(np.float64),
        lambda values: values.tolist(),
        lambda values: [tuple(row) for row in values.tolist()],
        np.asfortranarray,
        lambda values: values[::-1][::-1],
        lambda values: values.astype(">f4"),
    ],
)
async def test_numbers_are_accepted_in_several_forms(
    numeric: Mapping[str, Bundle], same: Callable[[NDArray[np.float32]], Any]
) -> None:
    async with serving(numeric["steps"]) as running:
        values = frames(4, 7)
        assert await running.client.classify(same(values)) == await running.client.classify(values)


async def refused(running: Running, request: v1.ClassifyRequest) -> str:
    async with grpc.aio.insecure_channel(running.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await v1.InferenceServiceStub(channel).Classify(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.details() or ""


def tensor(shape: list[int], numbers: list[float], **changes: Any) -> v1.Tensor:
    values = {"data_type": v1.DATA_TYPE_FLOAT32, "shape": shape, "content": struct.pack(f"<{len(numbers)}f", *numbers)}
    return v1.Tensor(**{**values, **changes})


@pytest.mark.parametrize(
    ("fields", "error_message"),
    [
        ({}, "tensor: got an empty input; there is nothing to label"),
        ({"tensor": tensor([0, 3], [])}, "tensor: got an empty input; there is nothing to label"),
        ({"text": "hot"}, "text: got text; 'steps' reads numbers. Give a tensor, float32 [steps, 3]"),
        ({"tokens": {"ids": [1]}}, "tokens: got tokens; 'steps' reads numbers. Give a tensor, float32 [steps, 3]"),
        ({"tensor": tensor([3], [1, 2, 3])}, "tensor.shape: got [3]; must be float32 [steps, 3]"),
        ({"tensor": tensor([1, 4], [0] * 4)}, "tensor.shape: got [1, 4]; must be float32 [steps, 3]"),
        ({"tensor": tensor([-1, 3], [0] * 3)}, "tensor.shape: got [-1, 3]; must be float32 [steps, 3]"),
        ({"tensor": tensor([1] * 500, [0])}, "tensor.shape: got [1, 1, 1,"),
        ({"tensor": tensor([2, 3], [0] * 5)}, "tensor.content: got 20 bytes; numbers of this shape have 24"),
        (
            {"tensor": tensor([1, 3], [0] * 3, data_type=v1.DATA_TYPE_INT64)},
            "tensor.data_type: got int64; must be float32 [steps, 3]",
        ),
        (
            {"tensor": tensor([1, 3], [0] * 3, data_type=0)},
            "tensor.data_type: got type 0; must be float32 [steps, 3]",
        ),
        ({"tensor": tensor([1, 3], [0] * 3, name="speed")}, "tensor.name: got 'speed'; the input is named 'frame'"),
        (
            {"tensor": tensor([2, 3], [0, 0, 0, 0, float("nan"), 0])},
            "tensor.content: got nan at [1, 1]; every number must be finite",
        ),
        (
            {"tensor": tensor([1, 3], [0, 0, float("-inf")])},
            "tensor.content: got -inf at [0, 2]; every number must be finite",
        ),
        ({"tensor": tensor([70_000, 3], [0] * 210_000)}, "tensor: got 70000 tokens or more; at most 65536 are allowed"),
        (
            {"tensor": tensor([1, 3], [0] * 3), "session": {"session_id": "one"}},
            "model: got 'steps'; it reads numbers, and a session keeps tokens only. "
            "Use StreamClassify, which keeps its state",
        ),
    ],
)
async def test_invalid_tensor_is_rejected_and_does_not_affect_others(
    numeric: Mapping[str, Bundle], fields: dict[str, Any], error_message: str
) -> None:
    async with serving(numeric["steps"]) as running:
        values = frames(5, 400)
        concurrent = asyncio.create_task(running.client.classify(values))
        assert (await refused(running, v1.ClassifyRequest(model="steps", **fields))).startswith(error_message)
        assert await concurrent == await running.client.classify(values)


async def test_text_is_rejected_by_numeric_models(numeric: Mapping[str, Bundle], bundles: Mapping[str, Bundle]) -> None:
    async with serving(numeric["steps"], bundles["tags"]) as running:
        client = running.client
        with pytest.raises(InvalidRequestError, match=r"tensor: got a tensor; 'tags' reads text\. Give text or tokens"):
            await client.classify(frames(1, 2), model="tags")
        for call in (client.embed(["a"], model="steps"), client.create_session("a", model="steps")):
            with pytest.raises(InvalidRequestError, match="model: got 'steps'; it reads numbers"):
                await call
        # Without a model name, the model that reads text is used.
        assert len(await client.embed(["a"])) == 1
        with pytest.raises(InvalidRequestError, match=r"step 1 has 1 numbers, but the first has 2"):
            await client.classify([[1.0, 2.0], [3.0]], model="steps")
        with pytest.raises(
            InvalidRequestError, match="got an array of bool; it must be one of float32, float16, int64, int32"
        ):
            await client.classify(np.ones((2, 3), np.bool_), model="steps")
        with pytest.raises(InvalidRequestError, match=r"piece\.text: got text; 'steps' reads numbers\. Give a tensor"):
            [result async for result in client.stream_classify(["hot"], model="steps")]
        with pytest.raises(
            InvalidRequestError, match="model: got 'steps'; it reads numbers, and a session keeps tokens only"
        ):
            [result async for result in client.stream_classify([[[1.0, 2.0, 3.0]]], model="steps", session="one")]
