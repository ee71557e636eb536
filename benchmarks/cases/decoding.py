"""The cost of each decoding method compared with plain sampling: 64 rows start together, rounds of both alternate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases.model import PRECISIONS, prepare_model
from benchmarks.clients.decoding_streams import DecodingOrder, Spent, Way, measure_ways
from benchmarks.processes.machine import Occupation, describe
from benchmarks.processes.server import run_server
from benchmarks.references.graphs import Sizes

Rows = list[dict[str, Any]]
_SLOTS = 256
_SENTENCES = r"([A-Z][a-z]+(, [a-z]+)*\. )*"
_RECORDS = r'(\{"name": "[a-z]{1,12}", "size": [0-9]{1,6}, "tags": \[("[a-z]+"(, "[a-z]+")*)?\]\} )*'

HALF_CONSTRAINED = "regex on half of the streams"
WAYS = (
    Way("greedy", {"greedy": {}}),
    Way("top-k 40, top-p 0.95", {"sampling": {"topK": 40, "topP": 0.95}}),
    Way("stop sequences", {"stopSequences": ["\u0001\u0002", "zqzqzq"]}),
    Way("min-p 0.05", {"sampling": {"minP": 0.05}}),
    Way("repetition penalty", {"shaping": {"repetitionPenalty": 1.2}}),
    Way("the same on one stream of 64", {"shaping": {"repetitionPenalty": 1.2}}, every=64),
    Way("frequency and presence penalty", {"shaping": {"frequencyPenalty": 0.2, "presencePenalty": 0.2}}),
    Way("logit bias", {"shaping": {"logitBias": {"3": 1.0, "5": -1.0}}}),
    Way(HALF_CONSTRAINED, {"constraint": {"regex": _SENTENCES}}, every=2),
    Way("regex", {"constraint": {"regex": _SENTENCES}}),
    Way("regex of records", {"constraint": {"regex": _RECORDS}}),
    Way("log-probabilities", {"logProbabilities": {}}),
    Way("and the 5 most likely tokens", {"logProbabilities": {"mostLikelyCount": 5}}),
    Way("4 samples of 16 prompts", {"sampling": {"sampleCount": 4}}, calls=16, sequences=4),
    Way("16 beam searches of width 4", {"beam": {"width": 4}}, calls=16, sequences=4),
)


@dataclass(frozen=True)
class DecodingOptions:
    """What to measure. The results in the repository were measured with the defaults.

    Attributes:
        precisions: the precisions of the bundles.
        repeats: number of repeats; medians are reported.
        prompt_tokens: prompt length of every call.
        max_tokens: tokens that every sequence generates.
        temperature: sampling temperature.
        server_options: further options of `elman serve`.
    """

    precisions: Sequence[str] = PRECISIONS
    repeats: int = 5
    prompt_tokens: int = 32
    max_tokens: int = 256
    temperature: float = 0.8
    server_options: Sequence[str] = ()

    @property
    def worth_keeping(self) -> bool:
        """Whether the results are comparable with those in the repository."""
        default = DecodingOptions()
        same = DecodingOptions(precisions=self.precisions, repeats=self.repeats)
        return self.repeats >= default.repeats and self == same


def measure_decoding(options: DecodingOptions, advance: Callable[[str], None]) -> Rows:
    """Measure every decoding method.

    Args:
        options: what to measure.
        advance: called with a description before each of `step_count` steps.
    """
    advance("making the model")
    model = prepare_model(Sizes(), options.precisions)
    rows: Rows = []
    for precision in options.precisions:
        advance(f"{precision}: all decoding methods, {options.repeats} repeats")
        with run_server([model.bundle(precision)], slots=_SLOTS, options=options.server_options) as server:
            occupation = Occupation([server.pid])
            measured = measure_ways(
                DecodingOrder(
                    server.address,
                    server.pid,
                    precision,
                    model.sizes.vocabulary,
                    options.prompt_tokens,
                    options.max_tokens,
                    options.temperature,
                    options.repeats,
                    list(WAYS),
                )
            )
            others = occupation.others_share()
        rows += [_row(precision, way, measured[way.name], options) | {"others_share_of_cores": others} for way in WAYS]
    about = {"server_options": list(options.server_options), **describe()}
    return [row | about for row in rows]


def step_count(options: DecodingOptions) -> int:
    """Return how many times `measure_decoding` calls `advance`."""
    return 1 + len(options.precisions)


def _row(precision: str, way: Way, rounds: Sequence[tuple[Spent, Spent]], options: DecodingOptions) -> dict[str, Any]:
    shares = [(other.steps / other.seconds) / (plain.steps / plain.seconds) for plain, other in rounds]
    return {
        "precision": precision,
        "way": way.name,
        "tokens_per_s": float(np.median([other.steps / other.seconds for _, other in rounds])),
        "share_of_plain": float(np.median(shares)),
        "share_of_plain_lowest": min(shares),
        "share_of_plain_highest": max(shares),
        "server_cpu_us_per_token": float(
            np.median([1e6 * other.server_cpu_seconds / other.steps for _, other in rounds])
        ),
        "repeats": options.repeats,
        "prompt_tokens": options.prompt_tokens,
        "max_tokens": options.max_tokens,
    }
