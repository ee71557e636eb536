"""Streams that come at random with lengths that differ, and what a lock-step batch would make of the same ones.

A lock-step batch takes whoever waits when it begins, at most `width`, pads every prompt to the longest, and ends with
its longest generation; who comes meanwhile waits for the next one. That is a server without continuous batching at its
best: no network, no scheduling, U's own steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.cases.measurement import Seconds, percentile_ms
from benchmarks.clients.streams import Request

PROMPT_TOKENS = (4, 128)
MAX_TOKENS = (16, 512)


def mixed_requests(count: int, seed: int) -> list[Request]:
    """Requests whose lengths are drawn evenly."""
    generator = np.random.default_rng(seed)
    prompts = generator.integers(*PROMPT_TOKENS, size=count, endpoint=True).tolist()
    lengths = generator.integers(*MAX_TOKENS, size=count, endpoint=True).tolist()
    return [Request(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]


def poisson_requests(rate: float, seconds: float, *, running: int, seed: int) -> list[Request]:
    """Such requests at exponential intervals, `rate` of them a second on average.

    Before them come `running` that are there from the beginning, somewhere in their middle, as if all had gone on for
    long.
    """
    generator = np.random.default_rng(seed)
    later = np.cumsum(generator.exponential(1 / rate, size=max(1, round(rate * seconds))))
    requests = mixed_requests(running + len(later), seed)
    under_way = [Request(1, max(1, round(request.max_tokens * generator.random()))) for request in requests[:running]]
    coming = [replace(request, at=float(time)) for request, time in zip(requests[running:], later, strict=True)]
    return under_way + coming


@dataclass(frozen=True)
class LockStep:
    """What became of requests in lock-step batches.

    Attributes:
        seconds: until the last batch ended.
        first_tokens: from a request's arrival to its first token, in the order of the requests.
        useful: the share of the rows' steps that somebody wanted.
    """

    seconds: float
    first_tokens: Seconds
    useful: float

    def figures(self, tokens: int, running: int) -> dict[str, float]:
        """As they stand in the results; the first tokens are those of the requests that came later."""
        later = self.first_tokens[running:]
        return {
            "lock_step_tokens_per_s": tokens / self.seconds,
            "lock_step_ttft_p50_ms": percentile_ms(later, 50),
            "lock_step_ttft_p99_ms": percentile_ms(later, 99),
            "lock_step_useful_share": self.useful,
        }


def run_in_lock_step(
    requests: Sequence[Request],
    width: int,
    forced_seconds: Callable[[int], float],
    free_seconds: Callable[[int], float],
) -> LockStep:
    """Work out when requests would be answered.

    Args:
        requests: in the order of their arrival.
        width: the largest batch.
        forced_seconds: one step that reads a prompt, by the size of the batch.
        free_seconds: one step that generates, likewise.
    """
    now, place, wanted, computed = 0.0, 0, 0, 0
    first_tokens: list[float] = []
    while place < len(requests):
        now = max(now, requests[place].at)
        batch = [request for request in requests[place : place + width] if request.at <= now]
        prompt = max(request.prompt_tokens for request in batch)
        generated = max(request.max_tokens for request in batch)
        read = now + prompt * forced_seconds(len(batch))
        first_tokens.extend(read - request.at for request in batch)
        now = read + (generated - 1) * free_seconds(len(batch))
        wanted += sum(request.prompt_tokens + request.max_tokens - 1 for request in batch)
        computed += len(batch) * (prompt + generated - 1)
        place += len(batch)
    return LockStep(now, np.array(first_tokens), wanted / computed)
