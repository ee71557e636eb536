"""Translations: 64 clients that each send one request after another, compared with the same model in a batched
onnxruntime loop. Both alternate."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases.measurement import CALLS
from benchmarks.cases.model import PRECISIONS
from benchmarks.clients.translations import Translated, TranslationOrder, measure_translations
from benchmarks.processes.machine import SCRATCH, Occupation, describe
from benchmarks.processes.server import RunningServer, run_server
from benchmarks.references.translations import TranslationReference, measure_translation_reference
from elman_bundle import CharacterVocabulary
from elman_export import NextToken, Source, Token, Values, export_bundle
from elman_server.engine import core_count
from elman_training.encoder_decoder.network import EncoderDecoder

Rows = list[dict[str, Any]]

VOCABULARY, EMBEDDING, HIDDEN = 4096, 256, 384  # those of the preset german-english
_FIRST_CHARACTER = 0x4E00
_LONGEST = 80


@dataclass(frozen=True)
class TranslationOptions:
    """What to measure. The results in the repository were measured with the defaults.

    Attributes:
        precisions: the precisions of the bundles.
        repeats: number of repeats; medians are reported.
        seconds: minimum duration of each measurement of the reference.
        clients: number of concurrent translations.
        each: translations that each client requests in a round.
        max_tokens: tokens of each translation.
        server_options: further options of `elman serve`.
    """

    precisions: Sequence[str] = PRECISIONS
    repeats: int = 5
    seconds: float = 1.5
    clients: int = 64
    each: int = 6
    max_tokens: int = 20
    server_options: Sequence[str] = ()

    @property
    def worth_keeping(self) -> bool:
        """Whether the results are comparable with those in the repository."""
        default = TranslationOptions()
        same = TranslationOptions(precisions=self.precisions, repeats=self.repeats)
        return self.repeats >= default.repeats and self == same


def measure(options: TranslationOptions, advance: Callable[[str], None]) -> Rows:
    """Measure every precision.

    Args:
        options: what to measure.
        advance: called with a description before each of `step_count` steps.
    """
    sources = make_sources(options.clients)
    rows: Rows = []
    for precision in options.precisions:
        advance(f"{precision}: making the model")
        bundle = make_model(precision)
        advance(f"{precision}: clients and onnxruntime alone, {options.repeats} repeats")
        with run_server([bundle], slots=options.clients, options=options.server_options) as server:
            occupation = Occupation([server.pid])
            rounds = [_round(options, bundle, precision, server, sources) for _ in range(options.repeats)]
            others = occupation.others_share()
        for way in CALLS:
            figures = [one[way] for one in rounds]
            shares = [one["share_of_raw"] for one in figures]
            rows.append(
                {
                    "precision": precision,
                    "calls": way,
                    **{name: float(np.median([one[name] for one in figures])) for name in figures[0]},
                    "share_of_raw_lowest": min(shares),
                    "share_of_raw_highest": max(shares),
                    "clients": options.clients,
                    "max_tokens": options.max_tokens,
                    "source_positions": float(np.mean([len(source) for source in sources])),
                    "repeats": options.repeats,
                    "others_share_of_cores": others,
                }
            )
    about = {"server_options": list(options.server_options), **describe()}
    return [row | about for row in rows]


def step_count(options: TranslationOptions) -> int:
    """Return how many times `measure` calls `advance`."""
    return 2 * len(options.precisions)


def _round(
    options: TranslationOptions, bundle: Path, precision: str, server: RunningServer, sources: list[list[int]]
) -> dict[str, dict[str, float]]:
    """Return the figures of one round for each way of calling."""
    raw = measure_translation_reference(
        bundle, sources=sources, max_tokens=options.max_tokens, seconds=options.seconds, threads=core_count()
    )
    order = TranslationOrder(
        server.address, server.pid, precision, sources, options.clients, options.each, options.max_tokens
    )
    return {
        way: _figures(measure_translations(replace(order, calls=calls)), raw, sources) for way, calls in CALLS.items()
    }


def _figures(translated: Translated, raw: TranslationReference, sources: list[list[int]]) -> dict[str, float]:
    served, alone = translated.translations / translated.seconds, len(sources) / raw.seconds
    latencies = 1e3 * np.array(translated.latencies)
    return {
        "translations_per_s": served,
        "raw_translations_per_s": alone,
        "share_of_raw": served / alone,
        "raw_encoder_share": raw.encoder_seconds / raw.seconds,
        "latency_p50_ms": float(np.percentile(latencies, 50)),
        "latency_p99_ms": float(np.percentile(latencies, 99)),
        "server_cpu_ms_per_translation": 1e3 * translated.server_cpu_seconds / translated.translations,
    }


def make_sources(count: int) -> list[list[int]]:
    """Return random sentences of 6 to 24 tokens, lengths that are typical of Multi30k."""
    random = np.random.default_rng(0)
    return [random.integers(4, VOCABULARY, length).tolist() for length in random.integers(6, 25, count)]


def make_model(precision: str) -> Path:
    """Write a bundle of the network of the preset `german-english`, with random weights and without an end token."""
    folder = SCRATCH / "models" / "translator" / precision
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = EncoderDecoder(
        cell="lstm",
        source_tokens=VOCABULARY,
        tokens=VOCABULARY,
        layers=1,
        embedding=EMBEDDING,
        hidden=HIDDEN,
        attention="additive",
        bidirectional=True,
        one_hot=False,
        dropout=0.0,
    ).eval()
    vocabulary = CharacterVocabulary([chr(_FIRST_CHARACTER + index) for index in range(VOCABULARY)])
    sizes = {"memory": (HIDDEN,), "keys": (EMBEDDING,), "mask": ()}
    export_bundle(
        network,
        folder,
        name=precision,
        inputs={"token": Token(vocabulary, begin_id=1)},
        outputs={"logits": NextToken()},
        constants={name: Values(shape, variable_length=True) for name, shape in sizes.items()},
        source=Source(Token(vocabulary), _LONGEST),
        description="Random weights, to be measured.",
        quantize="int8" if precision == "int8" else None,
    )
    return folder
