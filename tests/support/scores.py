"""Reference log-probabilities without a server: onnxruntime, one sequence, double precision."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_bundle import Bundle
from tests.support.bundles import CHARACTERS
from tests.support.reference import read_alone
from tests.support.serving import Running

ALPHABET = CHARACTERS.tokens[1:]


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the log-softmax along the last axis, in double precision."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return result


def random_text(random: np.random.Generator, length: int) -> str:
    return "".join(random.choice(ALPHABET, length))


def scores_alone(bundle: Bundle, context: str, text: str) -> list[float]:
    """Return the log-probabilities of a text's tokens from a plain onnxruntime loop, in double precision."""
    before, ids = CHARACTERS.encode(context).tolist(), CHARACTERS.encode(text).tolist()
    outputs, _ = read_alone(bundle, [*before, *ids][:-1])
    probable = log_softmax(outputs["logits"])
    first = max(len(before), 1)
    return [probable[place - 1, [*before, *ids][place]] for place in range(first, len(before) + len(ids))]


async def until(running: Running, count: int) -> None:
    """Wait until the model has `count` sequences, running or waiting; how many of them run depends on timing."""
    async with asyncio.timeout(10):
        while True:
            model = await running.client.get_model("fake")
            if model.running_count + model.waiting_count == count:
                return
            await asyncio.sleep(0.01)
