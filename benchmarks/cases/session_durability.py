"""What it costs that no token is lost: streams on sessions, on each store, beside the same streams without sessions.

Every server is asked for both, in turns: a ratio is of rounds that ran on one server in the same seconds.
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
class _Place:
    """A server and the store of its sessions."""

    server: RunningServer
    store: Store

    @property
    def pids(self) -> list[int]:
        return [self.server.pid, *self.store.pids]


def measure_durability(model: Model, options: SessionOptions, advance: Callable[[str], None]) -> Rows:
    """All stores, taking turns."""
    rows: Rows = []
    for precision in options.precisions:
        with contextlib.ExitStack() as stack:
            places = {}
            for name in store_names():
                advance(f"{precision}: starting a server, {name}")
                places[name] = stack.enter_context(_place(model, precision, name, options))
            rows += _Bench(model, precision, places, options).rows(advance)
    return rows


def step_count(options: SessionOptions) -> int:
    """How often `measure_durability` advances."""
    stores = len(store_names())
    return len(options.precisions) * stores * (1 + options.repeats)


@contextlib.contextmanager
def _place(model: Model, precision: str, name: str, options: SessionOptions) -> Iterator[_Place]:
    with make_store(name) as store:
        chosen = [*store.options, *options.server_options]
        with run_server([model.bundle(precision)], slots=_SLOTS, options=chosen) as server:
            yield _Place(server, store)


@dataclass(frozen=True)
class _Bench:
    """A server on each store, all idle but the one whose turn it is."""

    model: Model
    precision: str
    places: dict[str, _Place]
    options: SessionOptions

    def rows(self, advance: Callable[[str], None]) -> Rows:
        plain: list[Figures] = []
        kept: dict[str, list[Figures]] = {name: [] for name in self.places}
        for repeat in range(self.options.repeats):
            for name, place in self.places.items():
                advance(f"{self.precision}, repeat {repeat + 1} of {self.options.repeats}: {name}")
                without, with_sessions = self._compare(place)
                plain.append(without)
                kept[name].append(with_sessions)
        return [self._row(NO_SESSION, plain), *(self._row(name, repeats) for name, repeats in kept.items())]

    def _compare(self, place: _Place) -> tuple[Figures, Figures]:
        occupation = Occupation([pid for place in self.places.values() for pid in place.pids])
        compared = measure_streams(
            StreamsOrder(
                address=place.server.address,
                pids=place.pids,
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
