"""Compare several servers on the same requests, alternating: the cost of a code change or of a disabled heuristic."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
        precisions: the precisions of the bundles.
        cases: names of `CASES`.
        repeats: number of measurements of each server on each case.
        seconds: approximate duration of one measurement.
    """

    precisions: Sequence[str] = PRECISIONS
    cases: Sequence[str] = ()
    repeats: int = 7
    seconds: float = 1.0

    @property
    def worth_keeping(self) -> bool:
        """Whether the results may be kept in the repository."""
        return self.repeats >= ComparisonOptions.repeats and self.seconds >= ComparisonOptions.seconds


@dataclass(frozen=True)
class Case:
    """A workload and the figures that are compared.

    Attributes:
        measure: takes a bench and the index of the repeat, returns figures by name.
        higher_is_better: whether a higher value is better, by figure.
        turns: how often the programs take turns within one repeat, each for its part of the seconds. The machine gets
            faster and slower within seconds, and turns that follow one another closely find it alike.
    """

    measure: Callable[[Bench, int], dict[str, float]]
    higher_is_better: dict[str, bool]
    turns: int = 1


@dataclass(frozen=True)
class Bench:
    """One running server."""

    model: Model
    server: RunningServer
    precision: str
    seconds: float

    def serve(self, requests: list[Request], seconds: float = 0.0, concurrency: int = 0) -> Served:
        return summarise(self._rounds(requests, seconds, concurrency))

    def _rounds(self, requests: list[Request], seconds: float = 0.0, concurrency: int = 0) -> Any:
        return serve(
            self.server,
            self.precision,
            requests,
            vocabulary=self.model.sizes.vocabulary,
            temperature=_TEMPERATURE,
            seconds=seconds,
            connections=1,
            concurrency=concurrency,
        )

    def streams(self, count: int) -> dict[str, float]:
        """Measure `count` streams that start together, in repeated rounds."""
        served = self.serve([Request(_PROMPT_TOKENS, _MAX_TOKENS)] * count, self.seconds)
        return {"tokens_per_s": served.tokens_per_second}

    def new_requests(self, repeat: int) -> dict[str, float]:
        """Measure the time to first token of requests that arrive one by one while 63 streams run."""
        running = [Request(_PROMPT_TOKENS, _ENDLESS, background=True)] * (_CROWD - 1)
        generator = np.random.default_rng(repeat)
        times = 0.5 + np.cumsum(generator.uniform(0.25, 0.35, size=max(8, round(2 * self.seconds / 0.3))))
        arriving = [Request(_PROMPT_TOKENS, 8, at=float(time)) for time in times]
        (served,) = self._rounds([*running, *arriving])
        first = np.array([stream.times[0] - stream.started for stream in served.streams[len(running) :]])
        return {"ttft_p50_ms": percentile_ms(first, 50), "ttft_p99_ms": percentile_ms(first, 99)}

    def long_prompt(self, repeat: int) -> dict[str, float]:
        """Measure the gaps between messages of 63 streams while a long prompt is prefilled."""
        others = [Request(_PROMPT_TOKENS, 1024)] * (_CROWD - 1)
        requests = [*others, Request(16_384, 1, background=True)]
        rounds = self._rounds(requests, self.seconds)
        served = summarise(rounds, lambda index: index < len(others))
        return {"gap_p99_ms": served.figures()["gap_p99_ms"]}

    def occasional(self, repeat: int) -> dict[str, float]:
        """Measure short requests, each of which finds the server idle."""
        generator = np.random.default_rng(repeat)
        times = np.cumsum(generator.uniform(0.04, 0.08, size=max(10, round(self.seconds / 0.06))))
        (served,) = self._rounds([Request(_PROMPT_TOKENS, 64, at=float(time)) for time in times])
        whole = np.array([stream.times[-1] - stream.started for stream in served.streams])
        return {"whole_p50_ms": percentile_ms(whole, 50)}

    def random_arrivals(self, repeat: int) -> dict[str, float]:
        """Measure random arrivals of requests of different lengths at the rate that the server sustains."""
        (served,) = self._rounds(mixed_requests(2 * _CROWD, repeat), concurrency=_CROWD)
        rate = _CROWD / max(stream.started for stream in served.streams)
        requests = poisson_requests(rate, 1.5 * self.seconds, running=_CROWD, seed=repeat)
        rounds = self._rounds(requests)
        later = summarise(rounds, lambda index: index >= _CROWD)
        figures = later.figures()
        return {
            "tokens_per_s": summarise(rounds).tokens_per_second,
            "ttft_p50_ms": figures["ttft_p50_ms"],
        }


CASES = {
    "1 stream": Case(lambda bench, _: bench.streams(1), {"tokens_per_s": True}, turns=4),
    "16 streams": Case(lambda bench, _: bench.streams(16), {"tokens_per_s": True}, turns=4),
    "64 streams": Case(lambda bench, _: bench.streams(64), {"tokens_per_s": True}, turns=4),
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
            _measure(programs, model, precision, options, repeat, advance, measured)
            for repeat in range(options.repeats)
        ]
        rows += [
            _row(precision, key, values, measured[programs[0].name, key[1], key[2]], options)
            | {"others_share": statistics.median(others)}
            for key, values in measured.items()
        ]
    about = describe()
    return [row | about for row in rows]


def _measure(
    programs: Sequence[Program],
    model: Model,
    precision: str,
    options: ComparisonOptions,
    repeat: int,
    advance: Callable[[str], None],
    measured: dict[tuple[str, str, str], list[float]],
) -> float:
    """Add the figures of one repeat to `measured`.

    Servers differ by the core that they start on, so every repeat starts them again.

    Returns:
        The share of the CPU that other processes took.
    """
    about = f"{precision}, repeat {repeat + 1} of {options.repeats}"
    with contextlib.ExitStack() as stack:
        benches = {}
        for program in programs:
            advance(f"{about}: starting {program.name}")
            server = stack.enter_context(run_server([model.bundle(precision)], slots=256, program=program))
            benches[program.name] = Bench(model, server, precision, options.seconds)
        occupation = Occupation([bench.server.pid for bench in benches.values()])
        # Rotate the order so that each program goes first equally often.
        order = [*programs[repeat % len(programs) :], *programs[: repeat % len(programs)]]
        for name in options.cases or CASES:
            case, found = CASES[name], dict[tuple[str, str, str], list[float]]()
            for turn in range(case.turns):
                for program in order[:: 1 if turn % 2 == 0 else -1]:
                    if turn == 0:
                        advance(f"{about}: {name}, {program.name}")
                    bench = replace(benches[program.name], seconds=options.seconds / case.turns)
                    for figure, value in case.measure(bench, repeat).items():
                        found.setdefault((program.name, name, figure), []).append(value)
            for key, values in found.items():
                measured.setdefault(key, []).append(statistics.fmean(values))
        return occupation.others_share()


def step_count(programs: Sequence[Program], options: ComparisonOptions) -> int:
    """Return how many times `compare` calls `advance`."""
    return len(options.precisions) * len(programs) * options.repeats * (1 + len(options.cases or CASES))


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
