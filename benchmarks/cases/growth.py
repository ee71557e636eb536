"""How the cost grows with the workload, one factor at a time, split into products, rest of the step and edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from benchmarks.cases.measurement import medians, serve, summarise
from benchmarks.cases.model import PRECISIONS, Model, prepare_model
from benchmarks.clients.streams import Request
from benchmarks.processes.machine import Occupation, describe
from benchmarks.processes.server import RunningServer, run_server
from benchmarks.references.graphs import Sizes
from benchmarks.references.step_loop import measure_reference
from elman_server.engine import core_count

Rows = list[dict[str, Any]]
# U's forced step costs the same at every position of a prompt.
_REFERENCE_PROMPT = 256


@dataclass(frozen=True)
class Point:
    """One workload; the default is the base point around which the factors vary.

    Attributes:
        sizes: sizes of the model.
        streams: number of streams that start together.
        prompt_tokens: length of every prompt.
    """

    sizes: Sizes = field(default_factory=Sizes)
    streams: int = 16
    prompt_tokens: int = 32


_BASE = Point()
FACTORS: dict[str, dict[int, Point]] = {
    "hidden": {value: replace(_BASE, sizes=Sizes(hidden=value)) for value in (128, 256, 512, 1024, 2048)},
    "vocabulary": {value: replace(_BASE, sizes=Sizes(vocabulary=value)) for value in (96, 1000, 8000, 32_000)},
    "prompt_tokens": {value: replace(_BASE, prompt_tokens=value) for value in (16, 32, 256, 2048, 16_384)},
    "streams": {value: replace(_BASE, streams=value) for value in (1, 4, 16, 64, 256, 1024)},
}


@dataclass(frozen=True)
class GrowthOptions:
    """What to measure.

    Attributes:
        factors: names from FACTORS.
        precisions: the precisions of the bundles.
        repeats: number of repeats; medians are reported.
        seconds: minimum duration of one measurement.
        max_tokens: tokens that every stream generates.
        largest: skip values of a factor above this; 0 for no limit.
        server_options: further options of `elman serve`, besides `--slots`.
    """

    factors: Sequence[str] = tuple(FACTORS)
    precisions: Sequence[str] = PRECISIONS
    repeats: int = 1
    seconds: float = 0.8
    max_tokens: int = 128
    largest: int = 0
    server_options: Sequence[str] = ()

    @property
    def worth_keeping(self) -> bool:
        """Whether the results are comparable with those in the repository."""
        default = GrowthOptions()
        return self.repeats >= default.repeats and self == replace(
            default, factors=self.factors, precisions=self.precisions, repeats=self.repeats
        )

    def values(self, factor: str) -> dict[int, Point]:
        """Return the points of a factor, by its value."""
        return {value: point for value, point in FACTORS[factor].items() if not self.largest or value <= self.largest}

    def points(self) -> list[Point]:
        """Return all distinct points, grouped by model."""
        points = dict.fromkeys(point for factor in self.factors for point in self.values(factor).values())
        return sorted(points, key=lambda point: point.sizes.name)


def measure_growth(options: GrowthOptions, advance: Callable[[str], None]) -> Rows:
    """Measure every point at each precision.

    Args:
        options: what to measure.
        advance: called with a description before each of `step_count` steps.
    """
    measured: dict[tuple[Point, str], dict[str, float]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for sizes, points in groupby(options.points(), key=lambda point: point.sizes):
        of_model = list(points)
        for precision in options.precisions:
            advance(f"preparing {sizes.name}, {precision}")
            model = prepare_model(sizes, [precision])
            slots = max(256, *(point.streams for point in of_model))
            with run_server([model.bundle(precision)], slots=slots, options=options.server_options) as server:
                settings[precision] = {**server.settings, "options": list(options.server_options)}
                for point in of_model:
                    advance(f"{sizes.name}, {precision}: {point.streams} streams, prompts of {point.prompt_tokens}")
                    repeats = [_measure(model, server, precision, point, options) for _ in range(options.repeats)]
                    measured[point, precision] = medians(repeats)
    about = describe()
    return [
        {"factor": factor, "value": value, "precision": precision, **measured[point, precision]}
        | {"streams": point.streams, "prompt_tokens": point.prompt_tokens, "max_tokens": options.max_tokens}
        | {"repeats": options.repeats, "server": settings[precision]}
        | about
        for factor in options.factors
        for value, point in options.values(factor).items()
        for precision in options.precisions
    ]


def step_count(options: GrowthOptions) -> int:
    """Return how many times `measure_growth` calls `advance`."""
    points = options.points()
    return len(options.precisions) * (len(points) + len({point.sizes for point in points}))


def _measure(
    model: Model, server: RunningServer, precision: str, point: Point, options: GrowthOptions
) -> dict[str, float]:
    max_tokens, occupation = options.max_tokens, Occupation([server.pid])
    raw = measure_reference(
        model.plain_step(precision),
        model.products(precision),
        streams=point.streams,
        prompt_tokens=min(point.prompt_tokens, _REFERENCE_PROMPT),
        max_tokens=max_tokens,
        temperature=0.8,
        seconds=options.seconds,
        threads=core_count(),
    )
    (rounds,) = serve(
        [server],
        precision,
        [Request(point.prompt_tokens, max_tokens)] * point.streams,
        vocabulary=point.sizes.vocabulary,
        temperature=0.8,
        seconds=options.seconds,
        connections=1,
    )
    served = summarise(rounds)
    shape = (point.streams, point.prompt_tokens, max_tokens)
    raw_tokens_per_second = raw.tokens_per_second(*shape)
    # Per row and step, forced or free, so that workloads with long and short prompts are comparable.
    whole = 1e6 * served.seconds / (len(rounds) * point.streams * (point.prompt_tokens + max_tokens - 1))
    products, step = (1e6 * seconds / point.streams for seconds in (raw.limit_step_seconds, raw.step_seconds))
    return {
        "tokens_per_s": served.tokens_per_second,
        "share_of_raw": served.tokens_per_second / raw_tokens_per_second,
        "raw_tokens_per_s": raw_tokens_per_second,
        "limit_tokens_per_s": raw.limit_tokens_per_second(*shape),
        "ttft_p50_ms": served.figures()["ttft_p50_ms"],
        "server_cpu_us_per_token": served.figures()["server_cpu_us_per_token"],
        "us_per_row_step": whole,
        "products_us": products,
        "rest_of_step_us": step - products,
        "edge_us": whole - step,
        "others_share_of_cores": occupation.others_share(),
    }
