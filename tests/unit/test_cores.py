"""Threads and cores: the threads of a run are pinned to separate cores during the run only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime import InferenceSession

from elman_bundle import Bundle
from elman_server.engine import (
    NO_CHILD,
    Cores,
    OnnxEngine,
    OnnxTreeEngine,
    Opener,
    ProviderChoice,
    core_count,
    run_concurrently,
)
from elman_server.engine.encoder import Encoder
from elman_server.engine.graphs import Graph
from tests.support.encoder_models import translator_bundle
from tests.support.engines import divide_rows, make_chunk, run_partitioned

if not hasattr(os, "sched_getaffinity"):
    pytest.skip("this system does not report its cores", allow_module_level=True)
ALLOWED = sorted(os.sched_getaffinity(0))
COUNT = len(ALLOWED)
several = pytest.mark.skipif(COUNT < 2, reason="this machine has one core")


def allowed() -> list[int]:
    """Return the cores that the calling thread may run on."""
    return sorted(os.sched_getaffinity(0))


def elsewhere(task: Callable[[], Any]) -> Any:
    """Run a task in a new thread and return its result."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(task).result()


def make_engine(bundle: Bundle, cores: Cores) -> OnnxEngine:
    return OnnxEngine(bundle, capacity=8, opener=Opener(ProviderChoice.CPU, COUNT, cores), run_seconds=0.005)


@several
def test_core_count_is_the_number_of_allowed_cores() -> None:
    def counted(number: int) -> int:
        os.sched_setaffinity(0, ALLOWED[:number])
        return core_count()

    assert [elsewhere(partial(counted, number)) for number in (1, COUNT)] == [1, COUNT]


@several
def test_models_start_on_different_cores() -> None:
    for start in range(2 * COUNT):
        numbers = Cores.all(COUNT, start).numbers
        assert numbers[0] == ALLOWED[start % COUNT]
        assert sorted(numbers) == ALLOWED


@pytest.mark.parametrize("threads", [1, COUNT - 1, COUNT + 1])
def test_threads_are_not_pinned_while_cores_are_left(threads: int) -> None:
    cores = Cores.all(threads, 0)
    assert cores == Cores()
    with cores.pinned(0):
        assert allowed() == ALLOWED


@several
def test_thread_is_unpinned_even_after_an_error() -> None:
    def fail() -> None:
        with Cores.all(COUNT, 1).pinned(0):
            assert allowed() == [ALLOWED[1]]
            raise ValueError("no")

    def find() -> list[int]:
        with pytest.raises(ValueError, match="no"):
            fail()
        return allowed()

    assert elsewhere(find) == ALLOWED


def test_missing_core_is_not_an_error() -> None:
    with Cores((10_000, 10_001)).pinned(0):
        assert allowed() == ALLOWED


@several
@pytest.mark.parametrize("partitions", [1, COUNT])
def test_runs_are_pinned_to_their_cores(
    bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch, partitions: int
) -> None:
    """Pinning does not change the results."""
    tokens = np.full((8, 4), 3)
    cores = Cores.all(COUNT, 1)
    expected = run_partitioned(make_engine(bundles["lstm"], Cores()), make_chunk(tokens))
    engine = make_engine(bundles["lstm"], cores)
    divide_rows(engine, partitions)
    seen = []
    run = Graph.run

    def watched(self: Graph, *args: Any, **options: Any) -> None:
        seen.append(allowed())
        run(self, *args, **options)

    monkeypatch.setattr(Graph, "run", watched)
    actual = elsewhere(partial(run_partitioned, engine, make_chunk(tokens)))
    assert sorted(seen) == sorted([number] for number in cores.numbers[: min(partitions, 8)])
    assert actual.tokens.tobytes() == expected.tokens.tobytes()
    assert allowed() == ALLOWED


@several
def test_other_threads_of_a_run_are_pinned(bundles: Mapping[str, Bundle]) -> None:
    cores = Cores.all(COUNT, 0)
    before = set(Path("/proc/self/task").iterdir())
    engine = make_engine(bundles["gru"], cores)
    run_partitioned(engine, make_chunk(np.full((8, 1), 3)))
    started = [os.sched_getaffinity(int(path.name)) for path in set(Path("/proc/self/task").iterdir()) - before]
    assert all({number} in started for number in cores.numbers[1:])
    assert {cores.numbers[0]} not in started


@several
def test_encoders_and_trees_are_pinned(tree_bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores.all(COUNT, 1)
    opener = Opener(ProviderChoice.CPU, COUNT, cores)
    tree_engine = OnnxTreeEngine(tree_bundles["binary"], capacity=4, opener=opener)
    encoder = Encoder(translator_bundle(), opener)
    seen = []
    run = InferenceSession.run

    def watched(self: InferenceSession, *args: Any) -> Any:
        seen.append(allowed())
        return run(self, *args)

    monkeypatch.setattr(InferenceSession, "run", watched)
    elsewhere(lambda: tree_engine.run(np.zeros(2, np.int64), np.full((2, 2), NO_CHILD)))
    elsewhere(lambda: encoder.encode([encoder.example()]))
    assert seen == [[cores.numbers[0]]] * 2


@several
def test_thread_returns_to_its_previous_cores() -> None:
    def find() -> list[int]:
        os.sched_setaffinity(0, {ALLOWED[1]})
        with Cores(tuple(ALLOWED)).pinned(0):
            assert allowed() == [ALLOWED[0]]
        return allowed()

    assert elsewhere(find) == [ALLOWED[1]]


def test_each_task_has_its_own_thread() -> None:
    """An exception in one of them is raised to the caller."""
    done: list[int] = []

    def fail() -> None:
        raise ValueError("no")

    with ThreadPoolExecutor() as executor:
        run_concurrently(executor, [partial(done.append, 1), partial(done.append, 2)])
        assert sorted(done) == [1, 2]
        with pytest.raises(ValueError, match="no"):
            run_concurrently(executor, [partial(done.append, 3), fail])
    assert 3 in done
