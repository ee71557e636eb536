"""Compute figures from what the clients recorded: throughput, latencies and CPU time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.clients.streams import ClientOrder, Request, Round, Stream, Target, measure_clients
from benchmarks.processes.server import RunningServer

Seconds = NDArray[np.float64]
# The longest prompt, and the number of generated tokens, in the warm-up round.
_WARM_UP_TOKENS = 32
# How short requests are sent: the number of calls that they share, 0 for one call per request.
CALLS = {"each": 0, "for all": 1}


@dataclass(frozen=True)
class Served:
    """What the clients observed of one server in all rounds of one measurement.

    Attributes:
        tokens: number of generated tokens.
        seconds: sum over the rounds of the time from a round's start to the end of its last stream.
        first_tokens: time to first token of each stream, in seconds.
        gaps: seconds between successive messages of one stream that carry tokens.
        messages: number of messages that carry tokens.
        server_cpu_seconds: CPU time of the server's process.
        client_cpu_seconds: CPU time of the clients' process.
    """

    tokens: int
    seconds: float
    first_tokens: Seconds
    gaps: Seconds
    messages: int
    server_cpu_seconds: float
    client_cpu_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def figures(self) -> dict[str, float]:
        """Return the figures under the names used in the results."""
        return {
            "tokens_per_s": self.tokens_per_second,
            "ttft_p50_ms": percentile_ms(self.first_tokens, 50),
            "ttft_p99_ms": percentile_ms(self.first_tokens, 99),
            "gap_p50_ms": percentile_ms(self.gaps, 50),
            "gap_p99_ms": percentile_ms(self.gaps, 99),
            "server_cpu_us_per_token": 1e6 * self.server_cpu_seconds / self.tokens,
            "client_cpu_us_per_token": 1e6 * self.client_cpu_seconds / self.tokens,
            "tokens_per_message": self.tokens / self.messages,
        }


def serve(
    servers: Sequence[RunningServer],
    precision: str,
    requests: Sequence[Request],
    *,
    vocabulary: int,
    temperature: float,
    seconds: float,
    connections: int,
    concurrency: int = 0,
) -> list[list[Round]]:
    """Send `requests` to each server in repeated rounds, in turns, until `seconds` have passed for each; see
    ClientOrder. Returns the rounds of each server."""
    # Later arrivals are excluded: all of them together might exceed what the server accepts.
    first = [request for request in requests if request.at == 0][: concurrency or None]
    warm_up = [Request(min(request.prompt_tokens, _WARM_UP_TOKENS), _WARM_UP_TOKENS) for request in first]
    return measure_clients(
        ClientOrder(
            targets=[Target(server.address, server.pid, precision) for server in servers],
            vocabulary=vocabulary,
            temperature=temperature,
            seconds=seconds,
            warm_up=warm_up,
            requests=list(requests),
            connections=connections,
            concurrency=concurrency,
        )
    )


def summarise(rounds: Sequence[Round], counted: Callable[[int], bool] = lambda index: True) -> Served:
    """Compute the figures of the streams whose index among the requests satisfies `counted`."""
    kept = [[stream for index, stream in enumerate(a_round.streams) if counted(index)] for a_round in rounds]
    streams = [stream for of_round in kept for stream in of_round]
    return Served(
        tokens=sum(sum(stream.counts) for stream in streams),
        seconds=sum(max(stream.times[-1] for stream in of_round) for of_round in kept),
        first_tokens=np.array([stream.times[0] - stream.started for stream in streams]),
        gaps=_gaps(streams),
        messages=sum(len(stream.times) for stream in streams),
        server_cpu_seconds=sum(a_round.server_cpu_seconds for a_round in rounds),
        client_cpu_seconds=sum(a_round.client_cpu_seconds for a_round in rounds),
    )


def percentile_ms(values: Seconds, percent: float) -> float:
    """Return a percentile in milliseconds; 0 without values (when every stream arrived in one message)."""
    return float(1000 * np.percentile(values, percent)) if len(values) else 0.0


def medians(repeats: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the repeats."""
    return {name: float(np.median([figures[name] for figures in repeats])) for name in repeats[0]}


def _gaps(streams: Iterable[Stream]) -> Seconds:
    return np.concatenate([np.diff(stream.times) for stream in streams])
