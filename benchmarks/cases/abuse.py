"""What a polite client notices of an attack, and what of it stays in the server's memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases.model import prepare_model
from benchmarks.cases.trees import make_bundles
from benchmarks.clients import attacks
from benchmarks.clients.attacks import LANGUAGE, TAGS
from benchmarks.processes.machine import SCRATCH, describe
from benchmarks.processes.server import RunningServer, run_server
from benchmarks.processes.worker import Json, measure
from benchmarks.references.graphs import Sizes
from elman_bundle import CharacterVocabulary
from elman_export import Labels, Token, export_bundle
from elman_export.network_steps import NetworkStep
from elman_training.language.recurrent_network import RecurrentNetwork

Rows = list[dict[str, Any]]
_SLOTS = 128
_SETTLING_SECONDS = 1.0  # of an attack, before its effect is measured
_HIDDEN = 64  # of the models that label


@dataclass(frozen=True)
class AbuseOptions:
    """What to measure.

    Attributes:
        attacks: names from `ATTACKS`.
        seconds: duration of each attack.
        quiet_seconds: duration of each measurement without an attack.
        recovery_seconds: time after an attack until the memory is measured.
    """

    attacks: Sequence[str] = tuple(attacks.ATTACKS)
    seconds: float = 10.0
    quiet_seconds: float = 3.0
    recovery_seconds: float = 60.0

    @property
    def worth_keeping(self) -> bool:
        """Whether the results are comparable with those in the repository."""
        return self == AbuseOptions(self.attacks)


def measure_abuse(options: AbuseOptions, advance: Callable[[str], None]) -> Rows:
    """Attack a server in one way after the other.

    Args:
        options: what to measure.
        advance: called with a description before each of `step_count` steps.
    """
    advance("preparing the models")
    bundles = [prepare_model(Sizes(), [LANGUAGE]).bundle(LANGUAGE), _tagger(), make_bundles(_HIDDEN)[0]]
    rows: Rows = []
    for name in options.attacks:
        with run_server(bundles, slots=_SLOTS) as server:
            advance(name)
            rows.append({"attack": name, **_measure(server, name, options), **describe()})
    return rows


def step_count(options: AbuseOptions) -> int:
    """Return how many times `measure_abuse` calls `advance`."""
    return 1 + len(options.attacks)


def _measure(server: RunningServer, name: str, options: AbuseOptions) -> dict[str, float]:
    before = _probe(server, options.quiet_seconds)
    memory = server.memory_mib()
    server.reset_peak_memory()
    with ThreadPoolExecutor() as pool:
        order = {"name": name, "address": server.address, "seconds": options.seconds}
        attack = pool.submit(measure, attacks.__name__, order)
        time.sleep(_SETTLING_SECONDS)
        during = _probe(server, options.seconds - _SETTLING_SECONDS)
        attack.result()
    peak = server.peak_memory_mib()
    time.sleep(options.recovery_seconds)
    kept = server.memory_mib()
    after = _probe(server, options.quiet_seconds)
    return {
        **_figures("before", before),
        **_figures("during", during),
        **_figures("after", after),
        "peak_mib": peak - memory,
        "kept_mib": kept - memory,
    }


def _probe(server: RunningServer, seconds: float) -> Json:
    order = {"address": server.address, "model": LANGUAGE, "seconds": seconds}
    return measure("benchmarks.clients.polite", order)


def _figures(when: str, probe: Json) -> dict[str, float]:
    return {
        f"health_{when}_ms": 1000 * max(probe["health"]),
        f"polite_p50_{when}_ms": 1000 * float(np.quantile(probe["generate"], 0.5)),
        f"polite_p99_{when}_ms": 1000 * float(np.quantile(probe["generate"], 0.99)),
        f"failures_{when}": probe["failures"] + probe["health_failures"],
    }


def _tagger() -> Path:
    """Write the bundle of a small network with random weights that labels every character."""
    folder = SCRATCH / "models" / TAGS
    if not folder.exists():
        torch.manual_seed(0)
        vocabulary = CharacterVocabulary([chr(code) for code in range(0x20, 0x7F)])
        network = RecurrentNetwork(
            cell="gru", tokens=vocabulary.size, outputs=3, layers=1, embedding=16, hidden=_HIDDEN, dropout=0.0
        )
        export_bundle(
            NetworkStep(network.eval()),
            folder,
            name=TAGS,
            inputs={"token": Token(vocabulary)},
            outputs={"logits": Labels(("red", "green", "blue"), "step")},
        )
    return folder
