"""The cost of durability: streams on sessions, with each store, compared with the same streams without sessions.

Rounds of both alternate on every server, so that a ratio compares rounds on one server within the same seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.cases.measurement import medians, summarise
from benchmarks.cases.model import Model
from benchmarks.cases.session_options import SessionOptions
from benchmarks.cases.session_stores import Store, make_store, store_names
from benchmarks.clients.session_streams import StreamsOrder, measure_streams
from benchmarks.processes.machine import Occupation
from benchmarks.processes.server import RunningServer, run_server

Rows = list[dict[str, Any]]
Figures = dict[str, float]
NO_SESSION = "without a session"
_SLOTS = 256


@dataclass(frozen=True)
class _StoredServer:
    """A server and its session store."""

    server: RunningServer
    store: Store

    @property
    def pids(self) -> list[int]:
        return [self.server.pid, *self.store.pids]


def measure_durability(model: Model, options: SessionOptions, advance: Callable[[str], None]) -> Rows:
    """Measure all stores, alternating."""
    rows: Rows = []
    for precision in options.precisions:
        with contextlib.ExitStack() as stack:
            servers = {}
            for name in store_names():
                advance(f"{precision}: starting a server, {name}")
                servers[name] = stack.enter_context(_start(model, precision, name, options))
            rows += _Bench(model, precision, servers, options).rows(advance)
    return rows


def step_count(options: SessionOptions) -> int:
    """Return how many times `measure_durability` calls `advance`."""
    stores = len(store_names())
    return len(options.precisions) * stores * (1 + options.repeats)


@contextlib.contextmanager
def _start(model: Model, precision: str, name: str, options: SessionOptions) -> Iterator[_StoredServer]:
    with make_store(name) as store:
        arguments = [*store.options, *options.server_options]
        with run_server([model.bundle(precision)], slots=_SLOTS, options=arguments) as server:
            yield _StoredServer(server, store)


@dataclass(frozen=True)
class _Bench:
    """One server per store; all are idle except the one being measured."""

    model: Model
    precision: str
    servers: dict[str, _StoredServer]
    options: SessionOptions

    def rows(self, advance: Callable[[str], None]) -> Rows:
        plain: list[Figures] = []
        kept: dict[str, list[Figures]] = {name: [] for name in self.servers}
        for repeat in range(self.options.repeats):
            for name, stored in self.servers.items():
                advance(f"{self.precision}, repeat {repeat + 1} of {self.options.repeats}: {name}")
                without, with_sessions = self._compare(stored)
                plain.append(without)
                kept[name].append(with_sessions)
        return [self._row(NO_SESSION, plain), *(self._row(name, repeats) for name, repeats in kept.items())]

    def _compare(self, stored: _StoredServer) -> tuple[Figures, Figures]:
        occupation = Occupation([pid for stored in self.servers.values() for pid in stored.pids])
        compared = measure_streams(
            StreamsOrder(
                address=stored.server.address,
                pids=stored.pids,
                model=self.precision,
                vocabulary=self.model.sizes.vocabulary,
                temperature=self.options.temperature,
                seconds=self.options.seconds,
                streams=self.options.streams,
                prompt_tokens=self.options.prompt_tokens,
                max_tokens=self.options.max_tokens,
            )
        )
        others = {"others_share_of_cores": occupation.others_share()}
        plain, kept = summarise(compared.plain).figures(), summarise(compared.kept).figures()
        share = kept["tokens_per_s"] / plain["tokens_per_s"]
        return {**plain, "share_of_plain": 1.0, **others}, {**kept, "share_of_plain": share, **others}

    def _row(self, name: str, repeats: list[Figures]) -> dict[str, Any]:
        shares = [figures["share_of_plain"] for figures in repeats]
        return {
            "case": "durability",
            "precision": self.precision,
            "store": name,
            **medians(repeats),
            "share_of_plain_lowest": min(shares),
            "share_of_plain_highest": max(shares),
            "repeats": self.options.repeats,
            "streams": self.options.streams,
            "prompt_tokens": self.options.prompt_tokens,
            "max_tokens": self.options.max_tokens,
        }
