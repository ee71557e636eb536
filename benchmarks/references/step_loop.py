"""Measure U and the limit: a plain loop around onnxruntime, and the matrix products alone.

U is one `run` per step at batch size S on all cores: forced steps for the prompt, then free steps whose tokens numpy
samples for all rows together. It has no network, no scheduling, and no streams that arrive or finish. It is the fixed
reference: do not improve it.

    python -m benchmarks.references.step_loop < order.json

Axes: S streams, V tokens, H hidden units.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.processes.worker import Json, answer, measure

_LIMIT_SECONDS = 0.3
_WARM_UP_STEPS = 16
_PRODUCT_TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32}


@dataclass(frozen=True)
class ReferenceOrder:
    """What to measure.

    Attributes:
        graph: U's graph, the plain step.
        products: the limit's graph.
        streams: batch size S.
        prompt_tokens: number of forced steps.
        max_tokens: tokens that every row generates after its prompt.
        temperature: sampling temperature.
        seconds: rounds are repeated for at least this long.
        threads: onnxruntime's intra-op threads; they spin while waiting, its default.
    """

    graph: str
    products: str
    streams: int
    prompt_tokens: int
    max_tokens: int
    temperature: float
    seconds: float
    threads: int


@dataclass(frozen=True)
class Reference:
    """The durations of U and of the limit.

    Attributes:
        step_seconds: one forced step, which is a single `run`.
        free_seconds: all free steps of one round, including sampling.
        cpu_seconds_per_token: CPU time of the process per generated token, including the prompt.
        limit_step_seconds: one step of the matrix products alone.
        rounds: number of timed rounds.
    """

    step_seconds: float
    free_seconds: float
    cpu_seconds_per_token: float
    limit_step_seconds: float
    rounds: int

    def tokens_per_second(self, streams: int, prompt_tokens: int, max_tokens: int) -> float:
        """Return generated tokens per second of a whole round, including its prompt."""
        return streams * max_tokens / (prompt_tokens * self.step_seconds + self.free_seconds)

    def limit_tokens_per_second(self, streams: int, prompt_tokens: int, max_tokens: int) -> float:
        """Return the same for the matrix products alone."""
        return streams * max_tokens / ((prompt_tokens + max_tokens - 1) * self.limit_step_seconds)


def measure_reference(graph: Path, products: Path, **options: Any) -> Reference:
    """Measure U and the limit in another process; see ReferenceOrder."""
    order = ReferenceOrder(graph=str(graph), products=str(products), **options)
    return Reference(**measure("benchmarks.references.step_loop", asdict(order)))


class _PlainLoop:
    """The loop around U's step."""

    def __init__(self, order: ReferenceOrder) -> None:
        self._order = order
        self._session = _open(order.graph, order.threads)
        self._names = [argument.name for argument in self._session.get_inputs()]
        self._sizes = [argument.shape[1] for argument in self._session.get_inputs()[1:]]
        self._vocabulary = self._session.get_outputs()[0].shape[1]
        self._generator = np.random.default_rng(0)

    def round(self, max_tokens: int) -> tuple[float, float]:
        """Run a round and return the seconds of its prompt and of its generation."""
        streams, prompt_tokens = self._order.streams, self._order.prompt_tokens
        prompt = self._generator.integers(self._vocabulary, size=(prompt_tokens, streams))
        state = [np.zeros((streams, size), np.float32) for size in self._sizes]
        started = time.perf_counter()
        for tokens in prompt:
            logits, *state = self._step(tokens, state)
        prefilled = time.perf_counter()
        tokens = self._sample(logits)
        for _ in range(max_tokens - 1):
            logits, *state = self._step(tokens, state)
            tokens = self._sample(logits)
        return prefilled - started, time.perf_counter() - prefilled

    def _step(self, tokens: NDArray[np.int64], state: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = self._session.run(
            None, dict(zip(self._names, (tokens, *state), strict=True))
        )
        return outputs

    def _sample(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Sample a token for every row by the inverse CDF: [S, V] -> [S]."""
        logits = logits / np.float32(self._order.temperature)
        cumulative = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
        drawn = self._generator.random((len(logits), 1), dtype=np.float32) * cumulative[:, -1:]
        tokens: NDArray[np.int64] = (cumulative > drawn).argmax(axis=1)
        return tokens


def _measure(payload: Json) -> Json:
    order = ReferenceOrder(**payload)
    loop = _PlainLoop(order)
    loop.round(min(_WARM_UP_STEPS, order.max_tokens))
    rounds: list[tuple[float, float]] = []
    cpu_before = time.process_time()
    while sum(prompt + generation for prompt, generation in rounds) < order.seconds:
        rounds.append(loop.round(order.max_tokens))
    cpu_seconds = time.process_time() - cpu_before
    del loop  # Its threads would spin while the limit is measured.
    prompts, generations = np.mean(rounds, axis=0)
    return asdict(
        Reference(
            step_seconds=float(prompts) / order.prompt_tokens,
            free_seconds=float(generations),
            cpu_seconds_per_token=cpu_seconds / (len(rounds) * order.streams * order.max_tokens),
            limit_step_seconds=_time_products(order),
            rounds=len(rounds),
        )
    )


def _time_products(order: ReferenceOrder) -> float:
    """Return the seconds of one `run` of the products with bound inputs and outputs."""
    session = _open(order.products, order.threads)
    binding = session.io_binding()
    generator = np.random.default_rng(0)
    kept = []  # A binding does not keep its arrays alive.
    for argument in session.get_inputs():
        shape = (order.streams, argument.shape[1])
        rows: NDArray[Any] = (
            generator.integers(1, 256, shape, dtype=np.uint8)
            if argument.type == "tensor(uint8)"
            else generator.random(shape, dtype=np.float32)
        )
        binding.bind_cpu_input(argument.name, rows)
        kept.append(rows)
    for output in session.get_outputs():
        product = np.empty((order.streams, output.shape[1]), _PRODUCT_TYPES[output.type])
        binding.bind_output(output.name, "cpu", 0, product.dtype, product.shape, product.ctypes.data)
        kept.append(product)
    return _time(lambda: session.run_with_iobinding(binding))


def _time(step: Callable[[], None]) -> float:
    for _ in range(_WARM_UP_STEPS):
        step()
    count, started, now = 0, time.perf_counter(), 0.0
    while now < _LIMIT_SECONDS:
        step()
        count += 1
        now = time.perf_counter() - started
    return now / count


def _open(graph: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    answer(_measure)
