"""The cases that a start of all at once does not show: random arrivals, a newcomer, a very long prompt, a client that
calls now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases.measurement import Served, medians, percentile_ms, serve, summarise
from benchmarks.cases.model import PRECISIONS, Model, prepare_model
from benchmarks.clients.arrivals import mixed_requests, poisson_requests, run_in_lock_step
from benchmarks.clients.streams import Request, Round, Stream
from benchmarks.processes.machine import Occupation, describe
from benchmarks.processes.server import RunningServer, run_server
from benchmarks.references.graphs import Sizes
from benchmarks.references.step_loop import measure_reference
from elman_server.engine import core_count

Rows = list[dict[str, Any]]
STREAMS = 64
_PROMPT_TOKENS = 32
_STEADY_TOKENS = 1024
_ENDLESS = 65_536  # The largest max_tokens that a server takes.
_NEWCOMER_SPACING = (0.25, 0.35)  # seconds; each has gone when the next one comes.
_LONE_SPACING, _LONE_TOKENS = (0.04, 0.08), 64  # Likewise, and the server is idle between two.
_REFERENCE_SIZES = (1, 16, STREAMS)


@dataclass(frozen=True)
class CaseOptions:
    """What to measure.

    Attributes:
        precisions: of the bundles.
        repeats: the medians over so many are quoted.
        seconds: each case takes about so long at every repeat.
        load: of the random arrivals: at 1, as many as the server ends when 64 run, the next one after each.
        chunk_ms: the longest chunk that the server allows itself.
        long_prompt: the length of the long prompt.
        temperature: of the sampling.
        connections: the streams are spread over so many.
        server_options: for `elman serve`, beside the slots.
    """

    precisions: Sequence[str] = PRECISIONS
    repeats: int = 3
    seconds: float = 6.0
    load: float = 1.0
    chunk_ms: float = 5.0
    long_prompt: int = 16_384
    temperature: float = 0.8
    connections: int = 1
    server_options: Sequence[str] = ()

    @property
    def worth_keeping(self) -> bool:
        """Whether the figures may stand beside those in the repository."""
        usual = CaseOptions()
        return self.repeats >= usual.repeats and self == CaseOptions(precisions=self.precisions, repeats=self.repeats)


def measure_cases(options: CaseOptions, advance: Callable[[str], None]) -> Rows:
    """Measure every case at each precision.

    Args:
        options: what.
        advance: told what comes next, before each of `step_count` steps.
    """
    rows: Rows = []
    model = prepare_model(Sizes(), options.precisions)
    for precision in options.precisions:
        found: dict[str, list[dict[str, float]]] = {"poisson": [], "newcomer": [], "long prompt": [], "lone": []}
        with run_server([model.bundle(precision)], slots=256, options=options.server_options) as server:
            bench = _Bench(model, server, precision, options)
            for repeat in range(options.repeats):
                occupation = Occupation([server.pid])
                where = f"{precision}, repeat {repeat + 1} of {options.repeats}"
                advance(f"{where}: {STREAMS} streams in a steady state")
                steady = bench.serve([Request(_PROMPT_TOKENS, _STEADY_TOKENS)] * STREAMS, options.seconds / 2)
                advance(f"{where}: a long prompt")
                found["long prompt"].append(bench.long_prompt(summarise(steady)))
                advance(f"{where}: newcomers")
                found["newcomer"].append(bench.newcomers(seed=repeat))
                advance(f"{where}: random arrivals")
                found["poisson"].append(bench.poisson(seed=repeat))
                advance(f"{where}: a client that calls now and then")
                found["lone"].append(bench.lone(seed=repeat))
                others = occupation.others_share()
                for repeats in found.values():
                    repeats[-1]["others_share_of_cores"] = others
            settings = {**server.settings, "options": list(options.server_options)}
        rows += [
            {"case": case, "precision": precision, **medians(repeats), "repeats": options.repeats, "server": settings}
            for case, repeats in found.items()
        ]
    about = describe()
    return [row | about for row in rows]


def step_count(options: CaseOptions) -> int:
    """How often `measure_cases` advances."""
    return 5 * options.repeats * len(options.precisions)


@dataclass(frozen=True)
class _Bench:
    """One server, to run cases against."""

    model: Model
    server: RunningServer
    precision: str
    options: CaseOptions

    def serve(self, requests: list[Request], seconds: float = 0.0, at_once: int = 0) -> list[Round]:
        return serve(
            self.server,
            self.precision,
            requests,
            vocabulary=self.model.sizes.vocabulary,
            temperature=self.options.temperature,
            seconds=seconds,
            connections=self.options.connections,
            at_once=at_once,
        )

    def long_prompt(self, ordinary: Served) -> dict[str, float]:
        """64 streams of which one is still reading its prompt while the others generate; the gaps of the others."""
        others = [Request(_PROMPT_TOKENS, _STEADY_TOKENS)] * (STREAMS - 1)
        requests = [*others, Request(self.options.long_prompt, 1, background=True)]
        served = summarise(self.serve(requests, self.options.seconds / 2), lambda index: index < len(others))
        figures = {name: served.figures()[name] for name in ("tokens_per_s", "gap_p50_ms", "gap_p99_ms")}
        usual = ordinary.figures()
        return {
            **figures,
            "usual_gap_p50_ms": usual["gap_p50_ms"],
            "usual_gap_p99_ms": usual["gap_p99_ms"],
            "gap_p99_ratio": figures["gap_p99_ms"] / usual["gap_p99_ms"],
        }

    def newcomers(self, seed: int) -> dict[str, float]:
        """Streams that come one after the other while 63 run: their first token against two chunks and their prompt."""
        running = [Request(_PROMPT_TOKENS, _ENDLESS, background=True)] * (STREAMS - 1)
        generator = np.random.default_rng(seed)
        count = max(3, round(self.options.seconds / float(np.mean(_NEWCOMER_SPACING))))
        times = 0.5 + np.cumsum(generator.uniform(*_NEWCOMER_SPACING, size=count))
        newcomers = [Request(_PROMPT_TOKENS, 8, at=float(time)) for time in times]
        (found,) = self.serve([*running, *newcomers])
        first_tokens = np.array([stream.times[0] - stream.started for stream in found.streams[len(running) :]])
        step_seconds = _step_seconds(found.streams[: len(running)])
        allowed_ms = 2 * self.options.chunk_ms + 1000 * _PROMPT_TOKENS * step_seconds
        return {
            "ttft_p50_ms": percentile_ms(first_tokens, 50),
            "ttft_p99_ms": percentile_ms(first_tokens, 99),
            "step_ms": 1000 * step_seconds,
            "allowed_ms": allowed_ms,
            "p50_ratio": percentile_ms(first_tokens, 50) / allowed_ms,
            "p99_ratio": percentile_ms(first_tokens, 99) / allowed_ms,
        }

    def lone(self, seed: int) -> dict[str, float]:
        """Streams that come one after the other on a server that is idle before each: how long they take, against as
        many of U's steps, whose threads spin all the time."""
        generator = np.random.default_rng(seed)
        count = round(self.options.seconds / 2 / float(np.mean(_LONE_SPACING)))
        times = np.cumsum(generator.uniform(*_LONE_SPACING, size=count))
        (found,) = self.serve([Request(_PROMPT_TOKENS, _LONE_TOKENS, at=float(time)) for time in times])
        first_tokens = np.array([stream.times[0] - stream.started for stream in found.streams])
        wholes = np.array([stream.times[-1] - stream.started for stream in found.streams])
        forced, free = self._reference_steps(1)
        raw_ms = 1000 * (_PROMPT_TOKENS * forced + (_LONE_TOKENS - 1) * free)
        return {
            "ttft_p50_ms": percentile_ms(first_tokens, 50),
            "ttft_p99_ms": percentile_ms(first_tokens, 99),
            "whole_p50_ms": percentile_ms(wholes, 50),
            "whole_p99_ms": percentile_ms(wholes, 99),
            "raw_ms": raw_ms,
            "p50_ratio": percentile_ms(wholes, 50) / raw_ms,
        }

    def poisson(self, seed: int) -> dict[str, float]:
        """Random arrivals at the pace at which the server can end such streams, and the same in lock step."""
        rate = self.options.load * self._rate_of_endings(seed)
        requests = poisson_requests(rate, self.options.seconds, running=STREAMS, seed=seed)
        rounds = self.serve(requests)
        served, later = summarise(rounds), summarise(rounds, lambda index: index >= STREAMS)
        streams = rounds[0].streams
        forced, free = zip(*(self._reference_steps(size) for size in _REFERENCE_SIZES), strict=True)
        lock_step = run_in_lock_step(
            requests,
            STREAMS,
            lambda size: float(np.interp(size, _REFERENCE_SIZES, forced)),
            lambda size: float(np.interp(size, _REFERENCE_SIZES, free)),
        )
        return {
            **served.figures(),
            **{name: value for name, value in later.figures().items() if "ttft" in name or "gap" in name},
            "requests": float(len(requests)),
            "requests_per_s": rate,
            "mean_concurrency": sum(stream.times[-1] - stream.started for stream in streams) / served.seconds,
            **lock_step.figures(served.tokens, STREAMS),
        }

    def _rate_of_endings(self, seed: int) -> float:
        """How many streams of such lengths end a second while 64 run, the next one after each."""
        count = 4 * STREAMS
        (found,) = self.serve(mixed_requests(count, seed), at_once=STREAMS)
        # Until the last one began, each but the first 64 began when another ended.
        return (count - STREAMS) / max(stream.started for stream in found.streams)

    def _reference_steps(self, streams: int) -> tuple[float, float]:
        """Seconds of U's forced and free step."""
        tokens = 64
        raw = measure_reference(
            self.model.plain_step(self.precision),
            self.model.products(self.precision),
            streams=streams,
            prompt_tokens=_PROMPT_TOKENS,
            max_tokens=tokens,
            temperature=self.options.temperature,
            seconds=0.5,
            threads=core_count(),
        )
        return raw.step_seconds, raw.free_seconds / (tokens - 1)


def _step_seconds(streams: Sequence[Stream]) -> float:
    """The server's pace: seconds from token to token of a stream, on average."""
    # The tokens of a stream's first message came at its beginning, whenever they were made.
    taken = sum(stream.times[-1] - stream.times[0] for stream in streams)
    return taken / sum(sum(stream.counts[1:]) for stream in streams)
