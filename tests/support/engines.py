"""Real engines without a scheduler: forced steps, free steps, their states."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_server.engine import (
    FREE,
    Chunk,
    OnnxEngine,
    Opener,
    ProviderChoice,
    Results,
    is_filtered,
)
from elman_server.engine.policy import DEFAULT_ENGINE_POLICY, EnginePolicy
from elman_server.scheduling.costs import StepCosts
from elman_server.scheduling.rows.execution import Execution
from elman_server.scheduling.rows.horizon import Horizon
from elman_server.scheduling.rows.planning import Schedule
from tests.support.bundles import CHARACTERS
from tests.support.scheduling import make_policy

COUNTS = (1, 2, 4, 8)
State = dict[str, Any]


def make_engine(
    bundle: Bundle, capacity: int = 64, threads: int = 1, policy: EnginePolicy = DEFAULT_ENGINE_POLICY
) -> OnnxEngine:
    """Return an engine whose runs take any of COUNTS steps, regardless of their duration."""
    opener = Opener(ProviderChoice.CPU, threads)
    engine = OnnxEngine(bundle, capacity=capacity, opener=opener, run_seconds=0.005, policy=policy)
    engine._step_counts[:] = COUNTS
    return engine


def divide_rows(engine: OnnxEngine, partitions: int) -> None:
    """Divide any number of rows into `partitions` partitions."""
    for power in range(7):
        engine.partitions.set(2**power, partitions)


def make_chunk(tokens: NDArray[Any], **changes: Any) -> Chunk:
    """Return a chunk [B, K] of a model over CHARACTERS, sampled at temperature 1."""
    rows = len(tokens)
    values: dict[str, Any] = {
        "uniforms": np.full(tokens.shape, 0.5, np.float32),
        "temperatures": np.ones(rows, np.float32),
        "top_k": np.full(rows, CHARACTERS.size),
        "top_p": np.ones(rows, np.float32),
        "min_p": np.zeros(rows, np.float32),
    }
    values |= changes
    filtered = is_filtered(values["top_k"], values["top_p"], values["min_p"], CHARACTERS.size)
    return Chunk({"token": tokens}, **values, filtered=filtered)


def run_partitioned(engine: OnnxEngine, chunk: Chunk) -> Results:
    """Run the first rows as an iteration does, in the engine's partitions."""
    rows = len(chunk.uniforms)
    schedule = Schedule(chunk, len(chunk), Horizon(len(chunk), 0, None), (len(chunk),))
    execution = Execution(engine, StepCosts(make_policy()), schedule, lambda: False, np.full((rows, 1), FREE))
    with ThreadPoolExecutor() as executor:
        output = execution.run(executor)
    assert output is not None
    assert output.counts.tolist() == [len(chunk)] * rows
    return output.results


def read(engine: OnnxEngine, tokens: NDArray[Any], rows: int, count: int = 1) -> tuple[list[Any], list[State]]:
    """Run forced steps of tokens [steps, rows] from the initial state, `count` at a time.

    Returns:
        The output after every step, [rows, ...] each, and the final state of every row.
    """
    for row in range(rows):
        engine.insert(row)
    shown: list[Any] = []
    for start in range(0, len(tokens), count):
        results = run_partitioned(engine, make_chunk(tokens[start : start + count, :rows].T))
        values = next(iter(results.outputs.values()), results.tokens)
        shown.extend(values[:, step].copy() for step in range(values.shape[1]))
        engine.commit(range(rows))
    return shown, [engine.extract(row) for row in range(rows)]


def same(actual: State, expected: State) -> bool:
    return all(actual[name].tobytes() == value.tobytes() for name, value in expected.items())
