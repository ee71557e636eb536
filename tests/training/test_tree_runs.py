"""From a training run on trees to a bundle: the graph gives the same labels as the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from elman_bundle import Bundle, load_bundle
from elman_export import ExportError, export_run
from elman_protos import v1
from elman_training import train
from elman_training.checkpoint import load_best, load_config
from elman_training.trees import tree_cell_class
from elman_training.trees.tree_batches import EncodedTree, encode_tree, make_batch
from elman_training.trees.tree_network import TreeNetwork
from elman_training.trees.treebank import parse_tree
from tests.support.reference import open_graph
from tests.support.shared import made_once
from tests.support.treebanks import CELLS, QUIET, config, negations, write_treebank


@pytest.fixture(scope="module", params=CELLS)
def run(request: pytest.FixtureRequest) -> Path:
    def train_cell(folder: Path) -> None:
        folder.mkdir()
        corpus = write_treebank(folder, negations(300, 1), negations(60, 2), negations(60, 3))
        names = ("bad", "neither", "good")
        train(config(corpus, cell=request.param, steps=40, label_names=names), folder / "run", console=QUIET)

    return made_once(f"tree-run-{request.param}", train_cell) / "run"


def labelled(bundle: Bundle, tree: EncodedTree) -> np.ndarray:
    """Return the logits of every node, computed node by node; children precede their parents."""
    session = open_graph(bundle.graph_path)
    spec = bundle.spec.step
    shown: list[np.ndarray] = []
    states: dict[str, list[np.ndarray]] = {state.input_name: [] for state in spec.states}
    for node, token in enumerate(tree.tokens):
        below = tree.children[node][tree.children[node] >= 0]
        feeds = {"token": np.array([token])}
        for state in spec.states:
            value = np.zeros((1, spec.tree.child_count or max(1, len(below)), *state.shape), np.float32)
            for place, child in enumerate(below):
                value[0, place] = states[state.input_name][child]
            feeds[state.input_name] = value
        outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))
        shown.append(outputs["logits"][0])
        for state in spec.states:
            states[state.input_name].append(outputs[state.output_name][0])
    return np.stack(shown)


def test_bundle_labels_every_node_like_the_network(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "trees", name="trees")
    bundle = load_bundle(tmp_path / "trees")
    network = load_best(run)
    assert isinstance(network, TreeNetwork)
    assert bundle.spec.step.tree.child_count == tree_cell_class(load_config(run).cell).child_count
    assert bundle.vocabularies["text"].tokens[bundle.spec.step.tree.inner_token_id] == "\x00"
    assert bundle.spec.metrics["test_root_accuracy"] > 0
    assert [output.WhichOneof("meaning") for output in bundle.spec.step.outputs] == ["label_logits"]
    assert bundle.spec.vocabularies[1].kind == v1.VOCABULARY_KIND_LABELS
    for text in negations(6, 4):
        tree = encode_tree(parse_tree(text), bundle.vocabularies["text"], 1, "012")
        batch = make_batch([tree], network.cell.child_count)
        with torch.no_grad():
            expected = network(batch)[batch.positions].numpy()
        np.testing.assert_allclose(labelled(bundle, tree), expected, atol=1e-5, rtol=1e-4)


def test_tree_models_cannot_be_quantized(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"only networks that go step by step become int8, not .* tree of 16 units"):
        export_run(run, tmp_path / "trees", name="trees", quantize="int8")
