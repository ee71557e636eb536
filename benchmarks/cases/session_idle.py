"""Idle sessions: memory and disk space per session, and the latency of the first call on one of them."""

from __future__ import annotations

import contextlib
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases.measurement import percentile_ms
from benchmarks.cases.model import Model
from benchmarks.cases.session_options import SessionOptions
from benchmarks.cases.session_stores import CHECKPOINT, MEMORY, Store, make_store
from benchmarks.clients.session_calls import Answered, Call, measure_calls
from benchmarks.clients.session_crowd import CrowdOrder, make_crowd
from benchmarks.processes.machine import SCRATCH, Occupation
from benchmarks.processes.server import RunningServer, run_server
from benchmarks.processes.worker import MeasurementError
from elman_bundle import load_bundle

Rows = list[dict[str, Any]]
Figures = dict[str, float]
_OTHERS = "others_share_of_cores"
_BATCHES = 10
_CONCURRENCY = 64
_FIRST = 500
_SLOTS = 256
_FLOAT_BYTES = 4
_MOST_SESSION_BYTES = 4000  # besides the state; an upper bound
_WARM_UPS = 20


def measure_idle(model: Model, options: SessionOptions, advance: Callable[[str], None]) -> Rows:
    """Measure sessions in memory and in a SQLite file."""
    return [_Bench(model, name, options).row(advance) for name in (MEMORY, CHECKPOINT)]


def step_count(options: SessionOptions) -> int:
    """Return how many times `measure_idle` calls `advance`."""
    return 2 * (1 + _BATCHES + 2)


def state_bytes(bundle: Path) -> int:
    """Return the size of one row of the model's state; all states of these models are float32."""
    states = load_bundle(bundle).spec.step.states
    return sum(_FLOAT_BYTES * math.prod(map(int, state.shape)) for state in states)


@dataclass(frozen=True)
class _Bench:
    """Measures one store."""

    model: Model
    store_name: str
    options: SessionOptions

    @property
    def precision(self) -> str:
        return self.options.precisions[0]

    @property
    def state_bytes(self) -> int:
        return state_bytes(self.model.bundle(self.precision))

    @property
    def session_memory(self) -> int:
        """MiB that are enough for all sessions."""
        return 1 + 2 * self.options.sessions * (self.state_bytes + _MOST_SESSION_BYTES) // 2**20

    def row(self, advance: Callable[[str], None]) -> dict[str, Any]:
        _check_space(self.options.sessions * (self.state_bytes + _MOST_SESSION_BYTES))
        with make_store(self.store_name) as store:
            made, woken = self._in_memory(store, advance) if store.file is None else self._in_file(store, advance)
        return {
            "case": "idle",
            "precision": self.precision,
            "store": self.store_name,
            "sessions": self.options.sessions,
            "state_bytes": self.state_bytes,
            "position": self.options.prompt_tokens,
            **made,
            **woken,
            _OTHERS: max(made[_OTHERS], woken[_OTHERS]),
        }

    def _in_memory(self, store: Store, advance: Callable[[str], None]) -> tuple[Figures, Figures]:
        advance(f"{self.store_name}: starting a server")
        with self._server(store, self.session_memory) as server:
            return self._make(server, advance), self._wake(server, advance)

    def _in_file(self, store: Store, advance: Callable[[str], None]) -> tuple[Figures, Figures]:
        """Call the sessions on a second server, which has none of them in memory."""
        advance(f"{self.store_name}: starting a server")
        with self._server(store, self.session_memory) as server:
            made = self._make(server, advance)
        # The server has exited and written its write-ahead log into the file.
        count = _FIRST + self.options.sessions + self._imported + _BATCHES + 2
        made["file_bytes_beyond_state"] = store.file_bytes / count - self.state_bytes
        with self._server(store, session_memory=1) as server:
            return made, self._wake(server, advance)

    @contextlib.contextmanager
    def _server(self, store: Store, session_memory: int) -> Iterator[RunningServer]:
        chosen = [*store.options, "--session-memory", str(session_memory), *self.options.server_options]
        with run_server([self.model.bundle(self.precision)], slots=_SLOTS, options=chosen) as server:
            yield server

    @property
    def _names(self) -> list[str]:
        return [f"idle-{number}" for number in range(self.options.sessions)]

    @property
    def _imported(self) -> int:
        return max(1, self.options.sessions // _BATCHES)

    def _make(self, server: RunningServer, advance: Callable[[str], None]) -> Figures:
        """Create all sessions as forks, which share a state in memory; then import sessions with separate states."""
        occupation, seconds = Occupation([server.pid]), 0.0
        # Warm up, so that memory of the start has been freed and memory that calls need is allocated.
        self._crowd(server, [f"first-{number}" for number in range(_FIRST)])
        before = _resident_bytes(server.pid)
        for batch in range(_BATCHES):
            advance(f"{self.store_name}: {self.options.sessions:,} sessions, part {batch + 1} of {_BATCHES}")
            seconds += self._crowd(server, self._names[batch::_BATCHES])
        forked = _resident_bytes(server.pid)
        advance(f"{self.store_name}: {self._imported:,} sessions with separate states")
        self._crowd(server, [f"own-{number}" for number in range(self._imported)], imported=True)
        imported = _resident_bytes(server.pid)
        return {
            "seconds_to_make": seconds,
            "made_per_s": self.options.sessions / seconds,
            "memory_bytes_of_fork": (forked - before) / self.options.sessions,
            "memory_bytes_beyond_state": (imported - forked) / self._imported - self.state_bytes,
            _OTHERS: occupation.others_share(),
        }

    def _crowd(self, server: RunningServer, names: Sequence[str], *, imported: bool = False) -> float:
        prompt = _random_tokens(self.model, self.options.prompt_tokens, random.Random(names[0]))
        return make_crowd(CrowdOrder(server.address, self.precision, prompt, list(names), _CONCURRENCY, imported))

    def _wake(self, server: RunningServer, advance: Callable[[str], None]) -> Figures:
        """Call random sessions twice each, and before each of them make a similar call without a session."""
        advance(f"{self.store_name}: waking {self.options.wakes:,} of {self.options.sessions:,} sessions")
        generator = random.Random(0)
        chosen = generator.sample(self._names, min(self.options.wakes, self.options.sessions))
        plain = Call(_random_tokens(self.model, 1, generator))
        calls = [call for name in chosen for call in (plain, Call([], name), Call([], name))]
        occupation = Occupation([server.pid])
        answered = measure_calls(server.address, self.precision, [plain] * _WARM_UPS + calls)[_WARM_UPS:]
        figures = {_OTHERS: occupation.others_share()}
        for index, name in enumerate(("plain", "wake", "again")):
            figures |= _latencies(name, answered[index::3])
        return figures


def _latencies(name: str, answered: Sequence[Answered]) -> Figures:
    ends = np.array([one.end for one in answered])
    firsts = np.array([one.first_token for one in answered])
    return {
        f"{name}_p50_ms": percentile_ms(ends, 50),
        f"{name}_p99_ms": percentile_ms(ends, 99),
        f"{name}_first_token_p50_ms": percentile_ms(firsts, 50),
        f"{name}_first_token_p99_ms": percentile_ms(firsts, 99),
    }


def _random_tokens(model: Model, count: int, generator: random.Random) -> list[int]:
    return generator.choices(range(model.sizes.vocabulary), k=count)


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise MeasurementError("/proc/PID/status: VmRSS is missing; cannot measure the memory of a process")


def _check_space(needed: int) -> None:
    SCRATCH.mkdir(parents=True, exist_ok=True)
    # The write-ahead log may grow as large as the file.
    if shutil.disk_usage(SCRATCH).free < 2 * needed:
        raise MeasurementError(f"{SCRATCH} has less than {2 * needed / 2**30:.1f} GiB free, which the sessions need")
