"""Trees: 64 clients that each send one tree after another, compared with onnxruntime alone on the same trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases.measurement import CALLS, medians
from benchmarks.cases.tree_set import INNER, VOCABULARY, word
from benchmarks.clients.trees import Labelled, TreeOrder, measure_labelled
from benchmarks.processes.machine import SCRATCH, Occupation, describe
from benchmarks.processes.server import run_server
from benchmarks.references.trees import TreeReferenceOrder, measure_tree_reference
from elman_bundle import SymbolVocabulary
from elman_export import Labels, Token, Tree, export_bundle
from elman_export.network_steps import TreeStep
from elman_server.engine import core_count
from elman_training.trees.tree_network import TreeNetwork

Rows = list[dict[str, Any]]
_MODEL = "trees"
_LABELS = ("0", "1", "2", "3", "4")
_SLOTS = 256


@dataclass(frozen=True)
class TreeOptions:
    """What to measure. The results in the repository were measured with the defaults.

    Attributes:
        clients: number of concurrent trees.
        repeats: number of repeats; medians are reported.
        seconds: duration of each measurement.
        trees: number of different trees.
        hidden: hidden sizes of the binary Tree-LSTM; embeddings are twice as large, as in Tai et al. 2015.
        connections: number of connections that the clients share.
        server_options: further options of `elman serve`.
    """

    clients: int = 64
    repeats: int = 5
    seconds: float = 5.0
    trees: int = 512
    hidden: Sequence[int] = (150, 300)
    connections: int = 1
    server_options: Sequence[str] = ()

    @property
    def worth_keeping(self) -> bool:
        """Whether the results are comparable with those in the repository."""
        default = TreeOptions()
        return self.repeats >= default.repeats and self == TreeOptions(hidden=self.hidden, repeats=self.repeats)


def measure_trees(options: TreeOptions, advance: Callable[[str], None]) -> Rows:
    """Measure the server and the reference, alternating.

    Args:
        options: what to measure.
        advance: called with a description before each of `step_count` steps.
    """
    return [row for hidden in options.hidden for row in _measure(options, hidden, advance)]


def _measure(options: TreeOptions, hidden: int, advance: Callable[[str], None]) -> Rows:
    advance(f"{hidden} units: making the model")
    bundle, plain = make_bundles(hidden)
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in CALLS}
    with run_server([bundle], slots=_SLOTS, options=options.server_options) as server:
        occupation = Occupation([server.pid])
        for repeat in range(options.repeats):
            served: dict[str, Labelled] = {}
            for way, calls in CALLS.items():
                advance(f"{hidden} units: {options.clients} clients, per call {way}, repeat {repeat + 1}")
                served[way] = measure_labelled(
                    TreeOrder(
                        server.address,
                        server.pid,
                        _MODEL,
                        options.trees,
                        options.clients,
                        options.connections,
                        options.seconds,
                        calls,
                    )
                )
            advance(f"{hidden} units: onnxruntime alone, repeat {repeat + 1}")
            alone = measure_tree_reference(
                TreeReferenceOrder(
                    str(plain / "step.onnx"), options.trees, options.clients, options.seconds, core_count()
                )
            )
            for way, labelled in served.items():
                measured[way].append(
                    {
                        **asdict(labelled),
                        **{f"raw_{name}": value for name, value in asdict(alone).items()},
                        "share_of_raw": labelled.nodes_per_second / alone.nodes_per_second,
                    }
                )
        others = occupation.others_share()
    common = {
        "hidden": hidden,
        "vocabulary": VOCABULARY,
        "trees": options.trees,
        "repeats": options.repeats,
        "seconds": options.seconds,
        "connections": options.connections,
        "server_settings": server.settings,
        "server_options": list(options.server_options),
        "others_share_of_cores": others,
    }
    rows: Rows = []
    for way, rounds in measured.items():
        shares = [figures["share_of_raw"] for figures in rounds]
        bounds = {"share_of_raw_lowest": min(shares), "share_of_raw_highest": max(shares)}
        rows.append({"clients": options.clients, "calls": way, **medians(rounds), **bounds, **common, **describe()})
    return rows


def step_count(options: TreeOptions) -> int:
    """Return how many times `measure_trees` calls `advance`."""
    return (1 + (1 + len(CALLS)) * options.repeats) * len(options.hidden)


def make_bundles(hidden: int) -> tuple[Path, Path]:
    """Write two bundles of a binary Tree-LSTM with random weights: for the server, with the embedding folded into the
    gates, and for onnxruntime alone, with the network's own step."""
    torch.manual_seed(0)
    network = TreeNetwork(
        cell="binary", tokens=VOCABULARY, outputs=len(_LABELS), embedding=2 * hidden, hidden=hidden, dropout=0.0
    ).eval()
    words = ["�", "<inner>", *(word(token) for token in range(INNER + 1, VOCABULARY))]
    folders = []
    for name, module in (("served", TreeStep(network)), ("plain", network)):
        folders.append(SCRATCH / "models" / f"trees-{hidden}-{name}")
        export_bundle(
            module,
            folders[-1],
            name=_MODEL,
            inputs={"token": Token(SymbolVocabulary(words, unknown_id=0))},
            outputs={"logits": Labels(_LABELS)},
            tree=Tree(children=2, inner_id=INNER),
            description="Random weights, to be measured.",
            overwrite=True,
        )
    served, plain = folders
    return served, plain
