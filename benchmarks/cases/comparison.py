"""Several servers on the same requests, alternating: what a change of the code, or the absence of a heuristic,
costs."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases.measurement import Served, percentile_ms, serve, summarise
from benchmarks.cases.model import PRECISIONS, Model, prepare_model
from benchmarks.clients.arrivals import mixed_requests, poisson_requests
from benchmarks.clients.streams import Request
from benchmarks.processes.machine import Occupation, describe
from benchmarks.processes.server import Program, RunningServer, run_server
from benchmarks.references.graphs import Sizes

Rows = list[dict[str, Any]]

_PROMPT_TOKENS, _MAX_TOKENS = 32, 256
_CROWD = 64
_ENDLESS = 65_536  # the largest max_tokens that a server accepts
_TEMPERATURE = 0.8


@dataclass(frozen=True)
class ComparisonOptions:
    """What to compare.

    Attributes:
        precisions: of the bundles.
        cases: names of `CASES`.
        repeats: how often each server is measured on each case.
        seconds: how long one measurement takes, about.
    """

    precisions: Sequence[str] = PRECISIONS
    cases: Sequence[str] = ()
    repeats: int = 7
    seconds: float = 2.0

    @property
    def worth_keeping(self) -> bool:
        """Whether the figures may stand in the repository."""
        return self.repeats >= ComparisonOptions.repeats and self.seconds >= ComparisonOptions.seconds


@dataclass(frozen=True)
class Case:
    """Requests, and the figure that is compared.

    Attributes:
        measure: given a bench and the number of the repeat, returns figures by name.
        higher_is_better: by figure.
    """

    measure: Callable[[Bench, int], dict[str, float]]
    higher_is_better: dict[str, bool]


@dataclass(frozen=True)
class Bench:
    """One running server."""

    model: Model
    server: RunningServer
    precision: str
    seconds: float

    def serve(self, requests: list[Request], seconds: float = 0.0, at_once: int = 0) -> Served:
        return summarise(self._rounds(requests, seconds, at_once))

    def _rounds(self, requests: list[Request], seconds: float = 0.0, at_once: int = 0) -> Any:
        return serve(
            self.server,
            self.precision,
            requests,
            vocabulary=self.model.sizes.vocabulary,
            temperature=_TEMPERATURE,
            seconds=seconds,
            connections=1,
            at_once=at_once,
        )

    def streams(self, count: int) -> dict[str, float]:
        """`count` streams that start together, again and again."""
        served = self.serve([Request(_PROMPT_TOKENS, _MAX_TOKENS)] * count, self.seconds)
        return {"tokens_per_s": served.tokens_per_second}

    def new_requests(self, repeat: int) -> dict[str, float]:
        """The first token of requests that arrive one by one among 63 streams."""
        running = [Request(_PROMPT_TOKENS, _ENDLESS, background=True)] * (_CROWD - 1)
        generator = np.random.default_rng(repeat)
        times = 0.5 + np.cumsum(generator.uniform(0.25, 0.35, size=max(8, round(2 * self.seconds / 0.3))))
        arriving = [Request(_PROMPT_TOKENS, 8, at=float(time)) for time in times]
        (found,) = self._rounds([*running, *arriving])
        first = np.array([stream.times[0] - stream.started for stream in found.streams[len(running) :]])
        return {"ttft_p50_ms": percentile_ms(first, 50), "ttft_p99_ms": percentile_ms(first, 99)}

    def long_prompt(self, repeat: int) -> dict[str, float]:
        """The gaps between messages of 63 streams while another one reads a long prompt."""
        others = [Request(_PROMPT_TOKENS, 1024)] * (_CROWD - 1)
        requests = [*others, Request(16_384, 1, background=True)]
        rounds = self._rounds(requests, self.seconds)
        served = summarise(rounds, lambda index: index < len(others))
        return {"gap_p99_ms": served.figures()["gap_p99_ms"]}

    def occasional(self, repeat: int) -> dict[str, float]:
        """Short requests on a server that is idle before each."""
        generator = np.random.default_rng(repeat)
        times = np.cumsum(generator.uniform(0.04, 0.08, size=max(10, round(self.seconds / 0.06))))
        (found,) = self._rounds([Request(_PROMPT_TOKENS, 64, at=float(time)) for time in times])
        whole = np.array([stream.times[-1] - stream.started for stream in found.streams])
        return {"whole_p50_ms": percentile_ms(whole, 50)}

    def random_arrivals(self, repeat: int) -> dict[str, float]:
        """Random arrivals of requests of different lengths, as many as the server can finish."""
        (found,) = self._rounds(mixed_requests(2 * _CROWD, repeat), at_once=_CROWD)
        rate = _CROWD / max(stream.started for stream in found.streams)
        requests = poisson_requests(rate, 1.5 * self.seconds, running=_CROWD, seed=repeat)
        rounds = self._rounds(requests)
        later = summarise(rounds, lambda index: index >= _CROWD)
        figures = later.figures()
        return {
            "tokens_per_s": summarise(rounds).tokens_per_second,
            "ttft_p50_ms": figures["ttft_p50_ms"],
        }


CASES = {
    "1 stream": Case(lambda bench, _: bench.streams(1), {"tokens_per_s": True}),
    "16 streams": Case(lambda bench, _: bench.streams(16), {"tokens_per_s": True}),
    "64 streams": Case(lambda bench, _: bench.streams(64), {"tokens_per_s": True}),
    "a new request among 63": Case(Bench.new_requests, {"ttft_p50_ms": False, "ttft_p99_ms": False}),
    "a long prompt among 63": Case(Bench.long_prompt, {"gap_p99_ms": False}),
    "an occasional client": Case(Bench.occasional, {"whole_p50_ms": False}),
    "random arrivals": Case(Bench.random_arrivals, {"tokens_per_s": True, "ttft_p50_ms": False}),
}


def compare(programs: Sequence[Program], options: ComparisonOptions, advance: Callable[[str], None]) -> Rows:
    """Measure every program on every case, alternating.

    Args:
        programs: the first one is what the others are compared with.
        options: what to compare.
        advance: called before each of `step_count` steps with a description.

    Returns:
        A row for each figure of each program, precision and case: the median, and the median, lowest and highest ratio
        to the first program in the same repeat, above 1 where the program is better.
    """
    model = prepare_model(Sizes(), options.precisions)
    rows: Rows = []
    for precision in options.precisions:
        found: dict[tuple[str, str, str], list[float]] = {}
        with contextlib.ExitStack() as stack:
            benches = {}
            for program in programs:
                advance(f"{precision}: starting {program.name}")
                server = stack.enter_context(run_server([model.bundle(precision)], slots=256, program=program))
                benches[program.name] = Bench(model, server, precision, options.seconds)
            occupation = Occupation([bench.server.pid for bench in benches.values()])
            for repeat in range(options.repeats):
                for name in options.cases or CASES:
                    # Every program is the first one as often as the others.
                    order = [*programs[repeat % len(programs) :], *programs[: repeat % len(programs)]]
                    for program in order:
                        advance(f"{precision}, repeat {repeat + 1} of {options.repeats}: {name}, {program.name}")
                        for figure, value in CASES[name].measure(benches[program.name], repeat).items():
                            found.setdefault((program.name, name, figure), []).append(value)
            others = occupation.others_share()
        rows += [
            _row(precision, key, values, found[programs[0].name, key[1], key[2]], options) | {"others_share": others}
            for key, values in found.items()
        ]
    about = describe()
    return [row | about for row in rows]


def step_count(programs: Sequence[Program], options: ComparisonOptions) -> int:
    """How often `compare` advances."""
    return len(options.precisions) * len(programs) * (1 + options.repeats * len(options.cases or CASES))


def _row(
    precision: str,
    key: tuple[str, str, str],
    values: list[float],
    reference: list[float],
    options: ComparisonOptions,
) -> dict[str, Any]:
    program, case, figure = key
    higher = CASES[case].higher_is_better[figure]
    pairs = zip(values, reference, strict=True)
    ratios = [value / usual if higher else usual / value for value, usual in pairs]
    return {
        "program": program,
        "precision": precision,
        "case": case,
        "figure": figure,
        "median": statistics.median(values),
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "repeats": options.repeats,
    }
