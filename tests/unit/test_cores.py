"""How many threads there are; those of a run stay on cores of their own while it lasts, and where they please at any
other time."""

from __future__ import annotations

import os
from collections.abc import Callable
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
    side_by_side,
)
from elman_server.engine.encoder import Encoder
from elman_server.engine.graphs import Graph
from tests.support.encoder_models import make_translator
from tests.support.engines import divide_rows, make_chunk, run_lanes

if not hasattr(os, "sched_getaffinity"):
    pytest.skip("this system does not tell which cores there are", allow_module_level=True)
ALLOWED = sorted(os.sched_getaffinity(0))
COUNT = len(ALLOWED)
_QUOTA, _PERIOD = (f"sys__fs__cgroup__cpu__cpu.cfs_{name}_us" for name in ("quota", "period"))
several = pytest.mark.skipif(COUNT < 2, reason="this machine has one core")


def allowed() -> list[int]:
    """The cores that the calling thread may run on."""
    return sorted(os.sched_getaffinity(0))


def elsewhere(task: Callable[[], Any]) -> Any:
    """What a thread of its own finds."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(task).result()


def make_engine(bundle: Bundle, cores: Cores) -> OnnxEngine:
    return OnnxEngine(bundle, capacity=8, opener=Opener(ProviderChoice.CPU, COUNT, cores), run_seconds=0.005)


def group(root: Path, line: str, **files: str) -> Path:
    """A file system that tells of one control group, and what is in it, by path; / is written __."""
    for name, content in {"proc__self__cgroup": line, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("line", "files", "count"),
    [
        ("0::/", {"sys__fs__cgroup__cpu.max": "100000 100000\n"}, 1),
        ("0::/", {"sys__fs__cgroup__cpu.max": "50000 100000\n"}, 1),
        ("0::/", {"sys__fs__cgroup__cpu.max": "max 100000\n"}, COUNT),
        ("0::/a/b", {"sys__fs__cgroup__a__cpu.max": "100000 100000\n", "sys__fs__cgroup__a__b__cpu.max": "max 1\n"}, 1),
        ("0::/docker/b", {"sys__fs__cgroup__cpu.max": f"{COUNT}90 100\n"}, COUNT),
        ("0::/", {"sys__fs__cgroup__cpu.max": "199999 100000\n"}, 1),
        ("2:memory:/\n1:cpuacct,cpu:/docker/b", {_QUOTA: "100000\n", _PERIOD: "100000\n"}, 1),
        ("2:memory:/\n1:cpuacct,cpu:/docker/b", {_QUOTA: "-1\n", _PERIOD: "100000\n"}, COUNT),
        ("1:cpu,cpuacct:/", {_QUOTA: "100000\n"}, COUNT),
        ("1:name=systemd:/", {"sys__fs__cgroup__cpu.max": "100000 100000\n"}, COUNT),
        ("nonsense", {}, COUNT),
    ],
)
def test_a_container_that_is_allowed_less_has_fewer_threads(
    tmp_path: Path, line: str, files: dict[str, str], count: int
) -> None:
    assert core_count(group(tmp_path, line, **files)) == count


def test_without_control_groups_all_cores_count(tmp_path: Path) -> None:
    assert core_count(tmp_path) == COUNT


@several
def test_every_model_begins_on_another_core() -> None:
    for start in range(2 * COUNT):
        numbers = Cores.all(COUNT, start).numbers
        assert numbers[0] == ALLOWED[start % COUNT]
        assert sorted(numbers) == ALLOWED


@pytest.mark.parametrize("threads", [1, COUNT - 1, COUNT + 1])
def test_where_cores_are_left_the_system_chooses(threads: int) -> None:
    cores = Cores.all(threads, 0)
    assert cores == Cores()
    with cores.settled(0):
        assert allowed() == ALLOWED


@several
def test_a_thread_is_let_go_whatever_happens() -> None:
    def fail() -> None:
        with Cores.all(COUNT, 1).settled(0):
            assert allowed() == [ALLOWED[1]]
            raise ValueError("no")

    def find() -> list[int]:
        with pytest.raises(ValueError, match="no"):
            fail()
        return allowed()

    assert elsewhere(find) == ALLOWED


def test_a_core_that_is_not_there_is_no_error() -> None:
    with Cores((10_000, 10_001)).settled(0):
        assert allowed() == ALLOWED


@several
@pytest.mark.parametrize("lanes", [1, COUNT])
def test_runs_stay_on_their_cores(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch, lanes: int) -> None:
    """And what they bring is the same to the bit."""
    tokens = np.full((8, 4), 3)
    cores = Cores.all(COUNT, 1)
    expected = run_lanes(make_engine(bundles["lstm"], Cores()), make_chunk(tokens))
    engine = make_engine(bundles["lstm"], cores)
    divide_rows(engine, lanes)
    seen = []
    run = Graph.run

    def watched(self: Graph, *args: Any, **options: Any) -> None:
        seen.append(allowed())
        run(self, *args, **options)

    monkeypatch.setattr(Graph, "run", watched)
    found = elsewhere(partial(run_lanes, engine, make_chunk(tokens)))
    assert sorted(seen) == sorted([number] for number in cores.numbers[: min(lanes, 8)])
    assert found.tokens.tobytes() == expected.tokens.tobytes()
    assert allowed() == ALLOWED


@several
def test_the_other_threads_of_a_run_stay_on_theirs(bundles: dict[str, Bundle]) -> None:
    cores = Cores.all(COUNT, 0)
    before = set(Path("/proc/self/task").iterdir())
    engine = make_engine(bundles["gru"], cores)
    run_lanes(engine, make_chunk(np.full((8, 1), 3)))
    started = [os.sched_getaffinity(int(path.name)) for path in set(Path("/proc/self/task").iterdir()) - before]
    assert all({number} in started for number in cores.numbers[1:])
    assert {cores.numbers[0]} not in started


@several
def test_encoders_and_trees_stay_on_theirs(
    tree_bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = Cores.all(COUNT, 1)
    opener = Opener(ProviderChoice.CPU, COUNT, cores)
    tree_engine = OnnxTreeEngine(tree_bundles["binary"], capacity=4, opener=opener)
    encoder = Encoder(make_translator(tmp_path / "translator"), opener)
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
def test_a_thread_goes_back_to_where_it_was() -> None:
    def find() -> list[int]:
        os.sched_setaffinity(0, {ALLOWED[1]})
        with Cores(tuple(ALLOWED)).settled(0):
            assert allowed() == [ALLOWED[0]]
        return allowed()

    assert elsewhere(find) == [ALLOWED[1]]


def test_each_has_a_thread_of_its_own() -> None:
    """And what one of them raises is not lost."""
    done: list[int] = []

    def fail() -> None:
        raise ValueError("no")

    with ThreadPoolExecutor() as executor:
        side_by_side(executor, [partial(done.append, 1), partial(done.append, 2)])
        assert sorted(done) == [1, 2]
        with pytest.raises(ValueError, match="no"):
            side_by_side(executor, [partial(done.append, 3), fail])
    assert 3 in done
