"""The main table: S streams that start together, at each precision, each measured right after U at the same S."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cases.measurement import medians, serve, summarise
from benchmarks.cases.model import PRECISIONS, Model, prepare_model
from benchmarks.clients.streams import Request
from benchmarks.processes.machine import Occupation, cpu_seconds, describe
from benchmarks.processes.server import RunningServer, run_server
from benchmarks.references.graphs import Sizes
from benchmarks.references.step_loop import measure_reference
from elman_server.engine import core_count

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ServingOptions:
    """What to measure. The results in the repository were measured with the defaults.

    Attributes:
        streams: the numbers of concurrent streams (S).
        precisions: the precisions of the bundles.
        repeats: number of repeats; medians are reported.
        seconds: minimum duration of one measurement.
        prompt_tokens: length of every prompt.
        max_tokens: tokens that every stream generates.
        temperature: sampling temperature.
        connections: number of connections that the streams share.
        server_options: further options of `elman serve`, besides `--slots`.
    """

    streams: Sequence[int] = (1, 16, 64, 256)
    precisions: Sequence[str] = PRECISIONS
    repeats: int = 5
    seconds: float = 1.5
    prompt_tokens: int = 32
    max_tokens: int = 256
    temperature: float = 0.8
    connections: int = 1
    server_options: Sequence[str] = ()

    @property
    def worth_keeping(self) -> bool:
        """Whether the results are comparable with those in the repository: the full workload on a default server."""
        default = ServingOptions()
        return self.repeats >= default.repeats and self == ServingOptions(
            streams=self.streams, precisions=self.precisions, repeats=self.repeats
        )


def measure_serving(options: ServingOptions, advance: Callable[[str], None]) -> Rows:
    """Measure every case.

    Args:
        options: what to measure.
        advance: called with a description before each of `step_count` steps.
    """
    advance("making the model")
    model = prepare_model(Sizes(), options.precisions)
    cases = [(streams, precision) for streams in options.streams for precision in options.precisions]
    measured: dict[tuple[int, str], list[dict[str, float]]] = {case: [] for case in cases}
    with contextlib.ExitStack() as stack:
        servers = {}
        for precision in options.precisions:
            advance(f"starting the {precision} server")
            server = run_server(
                [model.bundle(precision)], slots=max(256, *options.streams), options=options.server_options
            )
            servers[precision] = stack.enter_context(server)
        for repeat in range(options.repeats):
            for streams, precision in cases:
                advance(f"repeat {repeat + 1} of {options.repeats}: {precision}, {streams} streams")
                measured[streams, precision].append(_measure_case(model, servers, streams, precision, options))
    about = describe()
    return [
        _row(streams, precision, measured[streams, precision], servers[precision], options) | about
        for streams, precision in cases
    ]


def step_count(options: ServingOptions) -> int:
    """Return how many times `measure_serving` calls `advance`."""
    return 1 + len(options.precisions) * (1 + options.repeats * len(options.streams))


def _measure_case(
    model: Model, servers: dict[str, RunningServer], streams: int, precision: str, options: ServingOptions
) -> dict[str, float]:
    """Measure one repeat of one case: U while the servers are idle, then the server after U has exited."""
    pids = [server.pid for server in servers.values()]
    occupation = Occupation(pids)
    started, idle_before = time.perf_counter(), sum(map(cpu_seconds, pids))
    raw = measure_reference(
        model.plain_step(precision),
        model.products(precision),
        streams=streams,
        prompt_tokens=options.prompt_tokens,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seconds=options.seconds,
        threads=core_count(),
    )
    idle_share = (sum(map(cpu_seconds, pids)) - idle_before) / (time.perf_counter() - started)

    server = servers[precision]
    server.reset_peak_memory()
    (rounds,) = serve(
        [server],
        precision,
        [Request(options.prompt_tokens, options.max_tokens)] * streams,
        vocabulary=model.sizes.vocabulary,
        temperature=options.temperature,
        seconds=options.seconds,
        connections=options.connections,
    )
    figures = summarise(rounds).figures()
    shape = (streams, options.prompt_tokens, options.max_tokens)
    raw_tokens_per_second = raw.tokens_per_second(*shape)
    raw_cpu = 1e6 * raw.cpu_seconds_per_token
    return {
        **figures,
        "share_of_raw": figures["tokens_per_s"] / raw_tokens_per_second,
        "cpu_ratio": figures["server_cpu_us_per_token"] / raw_cpu,
        "ttft_ratio": figures["ttft_p99_ms"] / (1000 * options.prompt_tokens * raw.step_seconds),
        "peak_memory_mib": server.peak_memory_mib(),
        "raw_tokens_per_s": raw_tokens_per_second,
        "raw_step_ms": 1000 * raw.step_seconds,
        "raw_cpu_us_per_token": raw_cpu,
        "limit_tokens_per_s": raw.limit_tokens_per_second(*shape),
        "idle_server_share_of_core": idle_share,
        "others_share_of_cores": occupation.others_share(),
    }


def _row(
    streams: int, precision: str, repeats: list[dict[str, float]], server: RunningServer, options: ServingOptions
) -> dict[str, Any]:
    shares = [figures["share_of_raw"] for figures in repeats]
    return {
        "streams": streams,
        "precision": precision,
        **medians(repeats),
        "share_of_raw_lowest": min(shares),
        "share_of_raw_highest": max(shares),
        "repeats": options.repeats,
        "prompt_tokens": options.prompt_tokens,
        "max_tokens": options.max_tokens,
        "connections": options.connections,
        "server": {**server.settings, "options": list(options.server_options)},
        "raw": {"threads": core_count(), "waiting": "spinning, onnxruntime's default"},
    }
