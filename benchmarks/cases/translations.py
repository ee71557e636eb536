"""Translations: 64 clients, each asking for one after the other, beside the same model in a batched loop of onnxruntime
alone, measured in turns."""

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
    """What to measure. The defaults are what the results in the repository were made with.

    Attributes:
        precisions: of the bundles.
        repeats: the medians over so many are quoted.
        seconds: each measurement of the reference takes at least so long.
        clients: translations under way at once.
        each: how many each client asks for in a round.
        max_tokens: of each translation.
        server_options: for `elman serve`.
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
        """Whether the figures may stand beside those in the repository."""
        usual = TranslationOptions()
        same = TranslationOptions(precisions=self.precisions, repeats=self.repeats)
        return self.repeats >= usual.repeats and self == same


def measure(options: TranslationOptions, advance: Callable[[str], None]) -> Rows:
    """Measure every precision.

    Args:
        options: what.
        advance: told what comes next, before each of `step_count` steps.
    """
    sources = make_sources(options.clients)
    rows: Rows = []
    for precision in options.precisions:
        advance(f"{precision}: making the model")
        bundle = make_model(precision)
        advance(f"{precision}: clients and onnxruntime alone in turns, {options.repeats} times")
        with run_server([bundle], slots=options.clients, options=options.server_options) as server:
            occupation = Occupation([server.pid])
            rounds = [_round(options, bundle, precision, server, sources) for _ in range(options.repeats)]
            others = occupation.others_share()
        for way in CALLS:
            found = [one[way] for one in rounds]
            shares = [one["share_of_raw"] for one in found]
            rows.append(
                {
                    "precision": precision,
                    "calls": way,
                    **{name: float(np.median([one[name] for one in found])) for name in found[0]},
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
    """How often `measure` advances."""
    return 2 * len(options.precisions)


def _round(
    options: TranslationOptions, bundle: Path, precision: str, server: RunningServer, sources: list[list[int]]
) -> dict[str, dict[str, float]]:
    """What one round has brought, by how the clients call."""
    raw = measure_translation_reference(
        bundle, sources=sources, max_tokens=options.max_tokens, seconds=options.seconds, threads=core_count()
    )
    order = TranslationOrder(
        server.address, server.pid, precision, sources, options.clients, options.each, options.max_tokens
    )
    return {
        way: _figures(measure_translations(replace(order, calls=calls)), raw, sources) for way, calls in CALLS.items()
    }


def _figures(found: Translated, raw: TranslationReference, sources: list[list[int]]) -> dict[str, float]:
    served, alone = found.translations / found.seconds, len(sources) / raw.seconds
    latencies = 1e3 * np.array(found.latencies)
    return {
        "translations_per_s": served,
        "raw_translations_per_s": alone,
        "share_of_raw": served / alone,
        "raw_encoder_share": raw.encoder_seconds / raw.seconds,
        "latency_p50_ms": float(np.percentile(latencies, 50)),
        "latency_p99_ms": float(np.percentile(latencies, 99)),
        "server_cpu_ms_per_translation": 1e3 * found.server_cpu_seconds / found.translations,
    }


def make_sources(count: int) -> list[list[int]]:
    """Random sentences of 6 to 24 tokens, as those of Multi30k are."""
    random = np.random.default_rng(0)
    return [random.integers(4, VOCABULARY, length).tolist() for length in random.integers(6, 25, count)]


def make_model(precision: str) -> Path:
    """A bundle of the network that `german-english` trains, with random weights and without an end token."""
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
