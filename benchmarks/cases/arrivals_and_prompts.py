"""Cases that the main table does not cover: random arrivals, new requests on a busy server, a very long prompt, and an
occasional client."""

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
_ENDLESS = 65_536  # the largest max_tokens that a server accepts
_NEW_REQUEST_SPACING = (0.25, 0.35)  # seconds; each request has finished when the next one arrives
_LONE_SPACING, _LONE_TOKENS = (0.04, 0.08), 64  # likewise; the server is idle between two requests
_REFERENCE_SIZES = (1, 16, STREAMS)


@dataclass(frozen=True)
class CaseOptions:
    """What to measure.

    Attributes:
        precisions: the precisions of the bundles.
        repeats: number of repeats; medians are reported.
        seconds: approximate duration of each case and repeat.
        load: rate of the random arrivals; 1 is the rate at which the server finishes requests with 64 running.
        chunk_ms: the server's maximum chunk duration.
        long_prompt: tokens of the long prompt.
        temperature: sampling temperature.
        connections: number of connections that the streams share.
        server_options: further options of `elman serve`, besides `--slots`.
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
        """Whether the results are comparable with those in the repository."""
        usual = CaseOptions()
        return self.repeats >= usual.repeats and self == CaseOptions(precisions=self.precisions, repeats=self.repeats)


def measure_cases(options: CaseOptions, advance: Callable[[str], None]) -> Rows:
    """Measure every case at each precision.

    Args:
        options: what to measure.
        advance: called with a description before each of `step_count` steps.
    """
    rows: Rows = []
    model = prepare_model(Sizes(), options.precisions)
    for precision in options.precisions:
        measured: dict[str, list[dict[str, float]]] = {"poisson": [], "newcomer": [], "long prompt": [], "lone": []}
        with run_server([model.bundle(precision)], slots=256, options=options.server_options) as server:
            bench = _Bench(model, server, precision, options)
            for repeat in range(options.repeats):
                occupation = Occupation([server.pid])
                where = f"{precision}, repeat {repeat + 1} of {options.repeats}"
                advance(f"{where}: {STREAMS} streams in a steady state")
                steady = bench.serve([Request(_PROMPT_TOKENS, _STEADY_TOKENS)] * STREAMS, options.seconds / 2)
                advance(f"{where}: a long prompt")
                measured["long prompt"].append(bench.long_prompt(summarise(steady)))
                advance(f"{where}: new requests")
                measured["newcomer"].append(bench.new_requests(seed=repeat))
                advance(f"{where}: random arrivals")
                measured["poisson"].append(bench.poisson(seed=repeat))
                advance(f"{where}: an occasional client")
                measured["lone"].append(bench.lone(seed=repeat))
                others = occupation.others_share()
                for repeats in measured.values():
                    repeats[-1]["others_share_of_cores"] = others
            settings = {**server.settings, "options": list(options.server_options)}
        rows += [
            {"case": case, "precision": precision, **medians(repeats), "repeats": options.repeats, "server": settings}
            for case, repeats in measured.items()
        ]
    about = describe()
    return [row | about for row in rows]


def step_count(options: CaseOptions) -> int:
    """Return how many times `measure_cases` calls `advance`."""
    return 5 * options.repeats * len(options.precisions)


@dataclass(frozen=True)
class _Bench:
    """Runs the cases against one server."""

    model: Model
    server: RunningServer
    precision: str
    options: CaseOptions

    def serve(self, requests: list[Request], seconds: float = 0.0, concurrency: int = 0) -> list[Round]:
        (rounds,) = serve(
            [self.server],
            self.precision,
            requests,
            vocabulary=self.model.sizes.vocabulary,
            temperature=self.options.temperature,
            seconds=seconds,
            connections=self.options.connections,
            concurrency=concurrency,
        )
        return rounds

    def long_prompt(self, equal: Served) -> dict[str, float]:
        """Measure the gaps of 63 generating streams while another stream prefills a long prompt."""
        others = [Request(_PROMPT_TOKENS, _STEADY_TOKENS)] * (STREAMS - 1)
        requests = [*others, Request(self.options.long_prompt, 1, background=True)]
        served = summarise(self.serve(requests, self.options.seconds / 2), lambda index: index < len(others))
        figures = {name: served.figures()[name] for name in ("tokens_per_s", "gap_p50_ms", "gap_p99_ms")}
        usual = equal.figures()
        return {
            **figures,
            "usual_gap_p50_ms": usual["gap_p50_ms"],
            "usual_gap_p99_ms": usual["gap_p99_ms"],
            "gap_p99_ratio": figures["gap_p99_ms"] / usual["gap_p99_ms"],
        }

    def new_requests(self, seed: int) -> dict[str, float]:
        """Measure the first token of requests that arrive while 63 streams run, relative to two chunks and a prompt."""
        running = [Request(_PROMPT_TOKENS, _ENDLESS, background=True)] * (STREAMS - 1)
        generator = np.random.default_rng(seed)
        count = max(3, round(self.options.seconds / float(np.mean(_NEW_REQUEST_SPACING))))
        times = 0.5 + np.cumsum(generator.uniform(*_NEW_REQUEST_SPACING, size=count))
        arriving = [Request(_PROMPT_TOKENS, 8, at=float(time)) for time in times]
        (served,) = self.serve([*running, *arriving])
        first_tokens = np.array([stream.times[0] - stream.started for stream in served.streams[len(running) :]])
        step_seconds = _step_seconds(served.streams[: len(running)])
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
        """Measure streams that arrive one by one on an idle server, relative to the same number of U's steps, whose
        threads spin continuously."""
        generator = np.random.default_rng(seed)
        count = round(self.options.seconds / 2 / float(np.mean(_LONE_SPACING)))
        times = np.cumsum(generator.uniform(*_LONE_SPACING, size=count))
        (served,) = self.serve([Request(_PROMPT_TOKENS, _LONE_TOKENS, at=float(time)) for time in times])
        first_tokens = np.array([stream.times[0] - stream.started for stream in served.streams])
        durations = np.array([stream.times[-1] - stream.started for stream in served.streams])
        forced, free = self._reference_steps(1)
        raw_ms = 1000 * (_PROMPT_TOKENS * forced + (_LONE_TOKENS - 1) * free)
        return {
            "ttft_p50_ms": percentile_ms(first_tokens, 50),
            "ttft_p99_ms": percentile_ms(first_tokens, 99),
            "whole_p50_ms": percentile_ms(durations, 50),
            "whole_p99_ms": percentile_ms(durations, 99),
            "raw_ms": raw_ms,
            "p50_ratio": percentile_ms(durations, 50) / raw_ms,
        }

    def poisson(self, seed: int) -> dict[str, float]:
        """Measure random arrivals at the rate that the server sustains, and compute the same in lock-step batches."""
        rate = self.options.load * self._completion_rate(seed)
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

    def _completion_rate(self, seed: int) -> float:
        """Return how many streams finish per second while 64 run, each replaced when it finishes."""
        count = 4 * STREAMS
        (served,) = self.serve(mixed_requests(count, seed), concurrency=STREAMS)
        # Up to the start of the last stream, every stream except the first 64 started when another one finished.
        return (count - STREAMS) / max(stream.started for stream in served.streams)

    def _reference_steps(self, streams: int) -> tuple[float, float]:
        """Return the seconds of U's forced and free steps."""
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
    """Return the mean seconds between successive tokens of a stream."""
    # The tokens of a stream's first message are excluded: it is not known when they were generated.
    seconds = sum(stream.times[-1] - stream.times[0] for stream in streams)
    return seconds / sum(sum(stream.counts[1:]) for stream in streams)
