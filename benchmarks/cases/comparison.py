"""Compare several servers on the same requests, alternating: the cost of a code change or of a disabled heuristic."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.cases.measurement import percentile_ms, serve, summarise
from benchmarks.cases.model import PRECISIONS, Model, prepare_model
from benchmarks.clients.arrivals import MAX_TOKENS, poisson_requests
from benchmarks.clients.streams import Request, Round
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
        precisions: the precisions of the bundles.
        cases: names of `CASES`.
        repeats: number of measurements of each server on each case.
        seconds: approximate duration of one measurement.
        restart: whether the servers are started anew in every repeat: they differ by the core that they start on,
            unless that is fixed.
    """

    precisions: Sequence[str] = PRECISIONS
    cases: Sequence[str] = ()
    repeats: int = 7
    seconds: float = 1.0
    restart: bool = True

    @property
    def worth_keeping(self) -> bool:
        """Whether the results may be kept in the repository."""
        return self.repeats >= ComparisonOptions.repeats and self.seconds >= ComparisonOptions.seconds


Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A workload and the figures that are compared.

    Attributes:
        measure: takes a bench and the index of the repeat, returns the figures of each server by name.
        higher_is_better: whether a higher value is better, by figure.
    """

    measure: Callable[[Bench, int], list[Figures]]
    higher_is_better: dict[str, bool]


@dataclass(frozen=True)
class Bench:
    """The running servers."""

    model: Model
    servers: Sequence[RunningServer]
    precision: str
    seconds: float

    def _rounds(self, requests: list[Request], seconds: float = 0.0) -> list[list[Round]]:
        return serve(
            self.servers,
            self.precision,
            requests,
            vocabulary=self.model.sizes.vocabulary,
            temperature=_TEMPERATURE,
            seconds=seconds,
            connections=1,
        )

    def streams(self, count: int) -> list[Figures]:
        """Measure `count` streams that start together, in repeated rounds."""
        found = self._rounds([Request(_PROMPT_TOKENS, _MAX_TOKENS)] * count, self.seconds)
        return [{"tokens_per_s": summarise(rounds).tokens_per_second} for rounds in found]

    def new_requests(self, repeat: int) -> list[Figures]:
        """Measure the time to first token of requests that arrive one by one while 63 streams run."""
        running = [Request(_PROMPT_TOKENS, _ENDLESS, background=True)] * (_CROWD - 1)
        generator = np.random.default_rng(repeat)
        times = 0.5 + np.cumsum(generator.uniform(0.25, 0.35, size=max(8, round(2 * self.seconds / 0.3))))
        arriving = [Request(_PROMPT_TOKENS, 8, at=float(time)) for time in times]
        found = []
        for rounds in self._rounds([*running, *arriving]):
            first = summarise(rounds, lambda index: index >= len(running)).first_tokens
            found.append({"ttft_p50_ms": percentile_ms(first, 50), "ttft_p99_ms": percentile_ms(first, 99)})
        return found

    def long_prompt(self, repeat: int) -> list[Figures]:
        """Measure the gaps between messages of 63 streams while a long prompt is prefilled."""
        others = [Request(_PROMPT_TOKENS, 512)] * (_CROWD - 1)
        found = self._rounds([*others, Request(16_384, 1, background=True)], self.seconds)
        served = [summarise(rounds, lambda index: index < len(others)) for rounds in found]
        return [{"gap_p99_ms": one.figures()["gap_p99_ms"]} for one in served]

    def occasional(self, repeat: int) -> list[Figures]:
        """Measure short requests, each of which finds the server idle."""
        generator = np.random.default_rng(repeat)
        times = np.cumsum(generator.uniform(0.04, 0.08, size=max(10, round(self.seconds / 0.06))))
        found = self._rounds([Request(_PROMPT_TOKENS, 64, at=float(time)) for time in times])
        whole = [[stream.times[-1] - stream.started for one in rounds for stream in one.streams] for rounds in found]
        return [{"whole_p50_ms": percentile_ms(np.array(seconds), 50)} for seconds in whole]

    def random_arrivals(self, repeat: int) -> list[Figures]:
        """Measure random arrivals of requests of different lengths, at the rate that the first server sustains."""
        first = replace(self, servers=self.servers[:1])
        (steady,) = first.streams(_CROWD)
        rate = steady["tokens_per_s"] / float(np.mean(MAX_TOKENS))
        requests = poisson_requests(rate, 2 * self.seconds, running=_CROWD, seed=repeat)
        found = self._rounds(requests)
        first_tokens = [summarise(rounds, lambda index: index >= _CROWD).first_tokens for rounds in found]
        return [
            {"tokens_per_s": summarise(rounds).tokens_per_second, "ttft_p50_ms": percentile_ms(seconds, 50)}
            for rounds, seconds in zip(found, first_tokens, strict=True)
        ]


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
    """Measure every program on every case, alternating between programs.

    Args:
        programs: the servers to compare; the first one is the reference.
        options: what to compare.
        advance: called with a description before each of `step_count` steps.

    Returns:
        One row per figure, program, precision and case: the median value, and the median, lowest and highest ratio to
        the first program in the same repeat. A ratio above 1 means that the program is better.
    """
    model = prepare_model(Sizes(), options.precisions)
    rows: Rows = []
    for precision in options.precisions:
        measured: dict[tuple[str, str, str], list[float]] = {}
        others = [
            _measure(programs, model, precision, options, repeats, advance, measured)
            for repeats in (_one_by_one(options.repeats) if options.restart else [range(options.repeats)])
        ]
        rows += [
            _row(precision, key, values, measured[programs[0].name, key[1], key[2]], options)
            | {"others_share": statistics.median(others)}
            for key, values in measured.items()
        ]
    about = describe()
    return [row | about for row in rows]


def _one_by_one(count: int) -> list[range]:
    return [range(index, index + 1) for index in range(count)]


def _measure(
    programs: Sequence[Program],
    model: Model,
    precision: str,
    options: ComparisonOptions,
    repeats: range,
    advance: Callable[[str], None],
    measured: dict[tuple[str, str, str], list[float]],
) -> float:
    """Start the servers, and add the figures of some repeats to `measured`.

    Returns:
        The share of the CPU that other processes took.
    """
    with contextlib.ExitStack() as stack:
        servers: dict[str, RunningServer] = {}
        for program in programs:
            advance(f"{precision}: starting {program.name}")
            servers[program.name] = stack.enter_context(
                run_server([model.bundle(precision)], slots=256, program=program)
            )
        occupation = Occupation([server.pid for server in servers.values()])
        for repeat in repeats:
            # Rotate the order so that each program goes first equally often.
            first = repeat % len(programs)
            order = [program.name for program in [*programs[first:], *programs[:first]]]
            bench = Bench(model, [servers[name] for name in order], precision, options.seconds)
            for case in options.cases or CASES:
                advance(f"{precision}, repeat {repeat + 1} of {options.repeats}: {case}")
                for name, figures in zip(order, CASES[case].measure(bench, repeat), strict=True):
                    for figure, value in figures.items():
                        measured.setdefault((name, case, figure), []).append(value)
        return occupation.others_share()


def step_count(programs: Sequence[Program], options: ComparisonOptions) -> int:
    """Return how many times `compare` calls `advance`."""
    starts = len(programs) * (options.repeats if options.restart else 1)
    return len(options.precisions) * (starts + options.repeats * len(options.cases or CASES))


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
    ratios = [value / base if higher else base / value for value, base in pairs]
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
