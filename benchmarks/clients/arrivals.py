"""Random arrivals of requests of different lengths, and the latencies of the same requests in lock-step batches.

A lock-step batch starts with the waiting requests, at most `width`, pads every prompt to the longest, and finishes with
its longest generation; requests that arrive in the meantime wait for the next batch. This is the best case of a server
without continuous batching: no network, no scheduling, U's own steps.
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
    """Return requests whose lengths are uniformly distributed."""
    generator = np.random.default_rng(seed)
    prompts = generator.integers(*PROMPT_TOKENS, size=count, endpoint=True).tolist()
    lengths = generator.integers(*MAX_TOKENS, size=count, endpoint=True).tolist()
    return [Request(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]


def poisson_requests(rate: float, seconds: float, *, running: int, seed: int) -> list[Request]:
    """Return requests of mixed lengths at exponential intervals, on average `rate` per second.

    They are preceded by `running` requests that start immediately with a random part of their length left, as in a
    steady state.
    """
    generator = np.random.default_rng(seed)
    later = np.cumsum(generator.exponential(1 / rate, size=max(1, round(rate * seconds))))
    requests = mixed_requests(running + len(later), seed)
    in_progress = [Request(1, max(1, round(request.max_tokens * generator.random()))) for request in requests[:running]]
    arriving = [replace(request, at=float(time)) for request, time in zip(requests[running:], later, strict=True)]
    return in_progress + arriving


@dataclass(frozen=True)
class LockStep:
    """The result of running requests in lock-step batches.

    Attributes:
        seconds: time until the last batch finished.
        first_tokens: seconds from each request's arrival to its first token, in the order of the requests.
        useful: the share of the rows' steps that were not padding.
    """

    seconds: float
    first_tokens: Seconds
    useful: float

    def figures(self, tokens: int, running: int) -> dict[str, float]:
        """Return the figures under the names used in the results; the first `running` first tokens are excluded."""
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
    """Compute when requests would be answered.

    Args:
        requests: in the order of their arrival.
        width: the maximum batch size.
        forced_seconds: returns the duration of one prefill step, given the batch size.
        free_seconds: returns the duration of one generating step, given the batch size.
    """
    now, position, useful, computed = 0.0, 0, 0, 0
    first_tokens: list[float] = []
    while position < len(requests):
        now = max(now, requests[position].at)
        batch = [request for request in requests[position : position + width] if request.at <= now]
        prompt = max(request.prompt_tokens for request in batch)
        generated = max(request.max_tokens for request in batch)
        prefilled = now + prompt * forced_seconds(len(batch))
        first_tokens.extend(prefilled - request.at for request in batch)
        now = prefilled + (generated - 1) * free_seconds(len(batch))
        useful += sum(request.prompt_tokens + request.max_tokens - 1 for request in batch)
        computed += len(batch) * (prompt + generated - 1)
        position += len(batch)
    return LockStep(now, np.array(first_tokens), useful / computed)
