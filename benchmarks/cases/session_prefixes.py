"""Time to first token of a long prompt and of its repetition, with and without the prefix cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.cases.measurement import percentile_ms
from benchmarks.cases.model import Model
from benchmarks.cases.session_options import SessionOptions
from benchmarks.clients.session_calls import Answered, Call, measure_calls
from benchmarks.processes.machine import Occupation
from benchmarks.processes.server import run_server

Rows = list[dict[str, Any]]
CACHE_MIB = (64, 0)  # the server's default, and no cache
_WARM_UPS = 3
_SLOTS = 256


def measure_prefixes(model: Model, options: SessionOptions, advance: Callable[[str], None]) -> Rows:
    """Measure with and without the prefix cache."""
    rows: Rows = []
    for precision in options.precisions:
        for mib in CACHE_MIB:
            advance(
                f"{precision}: {options.pairs} prompts of {options.long_prompt:,} tokens, twice each, cache {mib} MiB"
            )
            rows.append(_row(model, precision, mib, options))
    return rows


def step_count(options: SessionOptions) -> int:
    """Return how many times `measure_prefixes` calls `advance`."""
    return len(options.precisions) * len(CACHE_MIB)


def _row(model: Model, precision: str, mib: int, options: SessionOptions) -> dict[str, Any]:
    generator = random.Random(0)
    prompts = [
        Call(generator.choices(range(model.sizes.vocabulary), k=options.long_prompt))
        for _ in range(_WARM_UPS + options.pairs)
    ]
    calls = [call for prompt in prompts for call in (prompt, prompt)]
    arguments = ["--prefix-cache", str(mib), *options.server_options]
    with run_server([model.bundle(precision)], slots=_SLOTS, options=arguments) as server:
        occupation = Occupation([server.pid])
        answered = measure_calls(server.address, precision, calls)[2 * _WARM_UPS :]
        others = occupation.others_share()
    first, again = _first_token_ms(answered[::2]), _first_token_ms(answered[1::2])
    return {
        "case": "prefix",
        "precision": precision,
        "prefix_cache": mib,
        "prompt_tokens": options.long_prompt,
        "pairs": options.pairs,
        "first_p50_ms": first[0],
        "first_p99_ms": first[1],
        "again_p50_ms": again[0],
        "again_p99_ms": again[1],
        "again_ratio": again[0] / first[0],
        "cached_tokens": min(one.cached_tokens for one in answered[1::2]),
        "others_share_of_cores": others,
    }


def _first_token_ms(answered: Sequence[Answered]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    times = np.array([one.first_token for one in answered])
    return percentile_ms(times, 50), percentile_ms(times, 99)
