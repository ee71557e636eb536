"""Trees: 64 clients that each send one after the other, beside onnxruntime alone on the same trees, in turns."""

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
    """What to measure. The defaults are what the results in the repository were made with.

    Attributes:
        clients: how many trees are under way at once.
        repeats: the medians over so many are quoted.
        seconds: each measurement takes so long.
        trees: how many different ones there are.
        hidden: units of the binary Tree-LSTM; words have vectors of twice as many numbers, as in Tai et al. 2015.
        connections: that the clients share.
        server_options: for `elman serve`.
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
        """Whether the figures may stand beside those in the repository."""
        usual = TreeOptions()
        return self.repeats >= usual.repeats and self == TreeOptions(hidden=self.hidden, repeats=self.repeats)


def measure_trees(options: TreeOptions, advance: Callable[[str], None]) -> Rows:
    """Measure server and reference in turns.

    Args:
        options: what.
        advance: told what comes next, before each of `step_count` steps.
    """
    return [row for hidden in options.hidden for row in _measure(options, hidden, advance)]


def _measure(options: TreeOptions, hidden: int, advance: Callable[[str], None]) -> Rows:
    advance(f"{hidden} units: making the model")
    bundle, plain = make_bundles(hidden)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in CALLS}
    with run_server([bundle], slots=_SLOTS, options=options.server_options) as server:
        occupation = Occupation([server.pid])
        for repeat in range(options.repeats):
            served: dict[str, Labelled] = {}
            for way, calls in CALLS.items():
                advance(f"{hidden} units: {options.clients} clients, a call {way}, repeat {repeat + 1}")
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
                found[way].append(
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
    for way, rounds in found.items():
        shares = [figures["share_of_raw"] for figures in rounds]
        bounds = {"share_of_raw_lowest": min(shares), "share_of_raw_highest": max(shares)}
        rows.append({"clients": options.clients, "calls": way, **medians(rounds), **bounds, **common, **describe()})
    return rows


def step_count(options: TreeOptions) -> int:
    """How often `measure_trees` advances."""
    return (1 + (1 + len(CALLS)) * options.repeats) * len(options.hidden)


def make_bundles(hidden: int) -> tuple[Path, Path]:
    """A binary Tree-LSTM with random weights, made by the project's own export: as it is for the server, its embedding
    folded into the gates, and as the network itself has it for onnxruntime alone."""
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
