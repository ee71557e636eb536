"""A long prompt, asked and asked again: how soon its first token comes."""

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
CACHE_MIB = (64, 0)  # the server's default, and none
_WARM_UPS = 3
_SLOTS = 256


def measure_prefixes(model: Model, options: SessionOptions, advance: Callable[[str], None]) -> Rows:
    """With the cache of prefixes, and without it."""
    rows: Rows = []
    for precision in options.precisions:
        for mib in CACHE_MIB:
            advance(f"{precision}: {options.pairs} prompts of {options.long_prompt:,}, each twice, cache of {mib} MiB")
            rows.append(_row(model, precision, mib, options))
    return rows


def step_count(options: SessionOptions) -> int:
    """How often `measure_prefixes` advances."""
    return len(options.precisions) * len(CACHE_MIB)


def _row(model: Model, precision: str, mib: int, options: SessionOptions) -> dict[str, Any]:
    generator = random.Random(0)
    prompts = [
        Call(generator.choices(range(model.sizes.vocabulary), k=options.long_prompt))
        for _ in range(_WARM_UPS + options.pairs)
    ]
    calls = [call for prompt in prompts for call in (prompt, prompt)]
    chosen = ["--prefix-cache", str(mib), *options.server_options]
    with run_server([model.bundle(precision)], slots=_SLOTS, options=chosen) as server:
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
    """The median and the 99th percentile."""
    times = np.array([one.first_token for one in answered])
    return percentile_ms(times, 50), percentile_ms(times, 99)
