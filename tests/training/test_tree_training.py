"""Training on trees: parsing treebanks, gradients through the structure, batches of trees, learning a rule."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from typer import BadParameter

from elman.cli.application import app
from elman_bundle import INNER, SymbolVocabulary
from elman_training import PRESETS, TrainingError, TreeConfig, resume, train
from elman_training.checkpoint import BEST, LAST, RESULT, load_labels, load_tensors
from elman_training.trees.tree_batches import EncodedTree, TreeBatch, encode_tree, make_batch
from elman_training.trees.tree_network import TreeNetwork
from elman_training.trees.tree_task import TreeTask
from elman_training.trees.treebank import LabelledTree, TreeSyntaxError, parse_tree, read_treebank
from tests.support.paths import SHARED_DATA
from tests.support.treebanks import CELLS, QUIET, config, negations, write_treebank

VOCABULARY = SymbolVocabulary(["�", INNER, "a", "b", "c", "d"], unknown_id=0, lower_case=True)
LABELS = ("0", "1", "2")
BINARY = [
    "(1 a)",
    "(0 (1 a) (2 b))",
    "(2 (0 (1 c) (1 (0 a) (1 d))) (0 b))",
    "(1 (1 (0 (0 b) (1 a)) (1 c)) (2 (2 d) (0 (0 a) (1 what))))",
]
ANY = [*BINARY, "(0 (1 a) (2 b) (2 (1 c)) (0 d))", "(1 (2 (0 (1 d))))"]


def encoded(texts: Sequence[str]) -> list[EncodedTree]:
    return [encode_tree(parse_tree(text), VOCABULARY, 1, LABELS) for text in texts]


def texts_for(cell: str) -> list[str]:
    return ANY if cell == "child-sum" else BINARY


def network(cell: str, embedding: int = 5, hidden: int = 7) -> TreeNetwork:
    torch.manual_seed(0)
    return TreeNetwork(
        cell=cell,
        tokens=VOCABULARY.size,
        outputs=len(LABELS),
        embedding=embedding,
        hidden=hidden,
        dropout=0.3,
    ).eval()


def batch_for(model: TreeNetwork, trees: Sequence[EncodedTree]) -> TreeBatch:
    return make_batch(trees, model.cell.child_count)


def walk(model: TreeNetwork, tree: EncodedTree) -> Tensor:
    """Return the logits of every node of one tree, computed by recursion, [N, labels]."""
    logits: dict[int, Tensor] = {}

    def visit(node: int) -> dict[str, Tensor]:
        below = [visit(child) for child in tree.children[node].tolist() if child >= 0]
        missing = [model.initial_state(1)] * max(0, (model.cell.child_count or 1) - len(below))
        state = {
            name: torch.stack([child[name] for child in (*below, *missing)], dim=1) for name in model.cell.state_names
        }
        outputs, after = model.step({"token": torch.tensor([tree.tokens[node]])}, {}, state)
        logits[node] = outputs["logits"][0]
        return after

    visit(len(tree.tokens) - 1)
    return torch.stack([logits[node] for node in range(len(tree.tokens))])


def test_tree_is_parsed() -> None:
    assert parse_tree("(1 a)") == LabelledTree(("1",), ("a",), ((),))
    tree = parse_tree("(3 (2 Effective) (4 (2 but) (1 8\N{NO-BREAK SPACE}1\\/2)))\n".rstrip())
    assert tree.labels == ("2", "2", "1", "4", "3")
    assert tree.words == ("Effective", "but", "8\N{NO-BREAK SPACE}1\\/2", None, None)
    assert tree.children == ((), (), (), (1, 2), (0, 3))
    assert parse_tree("( 1\ta )") == parse_tree("(1 a)")


def test_very_deep_tree_is_parsed() -> None:
    tree = parse_tree("(1 (0 a) " * 50_000 + "(0 b)" + ")" * 50_000)
    assert len(tree.words) == 100_001
    assert encode_tree(tree, VOCABULARY, 1, LABELS).heights[-1] == 50_000


@pytest.mark.parametrize(
    ("text", "column", "error_message"),
    [
        ("", 1, "there is no tree"),
        ("good", 1, r"a tree begins with '\(', not 'good'"),
        (")", 1, r"a tree begins with '\(', not '\)'"),
        ("(1 (2 a)", 1, "the bracket that opens here is not closed"),
        ("(1 (2 a", 4, "the bracket that opens here is not closed"),
        ("(1 a) (2 b)", 7, r"the tree has ended before '\('"),
        ("(1 a))", 6, r"the tree has ended before '\)'"),
        ("()", 2, r"a bracket has no label: '\(label word\)' or '\(label child child\)'"),
        ("(1 (2))", 6, "a bracket has no word and no children"),
        ("((1 a) b)", 2, "a bracket without a label has no children"),
        ("(1 a (2 b))", 6, "a bracket that has a word has no children"),
        ("(1 a b)", 6, "'b': a bracket has a label and then one word or children"),
        ("(1 (2 a) b)", 10, "'b': a bracket has a label and then one word or children"),
    ],
)
def test_invalid_tree_is_reported_with_its_position(text: str, column: int, error_message: str) -> None:
    with pytest.raises(TreeSyntaxError, match=error_message) as raised:
        parse_tree(text)
    assert raised.value.column == column


def test_held_out_trees_are_excluded_from_training(tmp_path: Path) -> None:
    corpus = write_treebank(tmp_path, ["(1 a)", "(0 b)", "(0 a)", "(1 d)"], ["(0 b)"], ["(1 d)"])
    treebank = read_treebank(corpus)
    assert treebank.training == [parse_tree("(1 a)"), parse_tree("(0 a)")]
    assert treebank.validation == [parse_tree("(0 b)")]
    assert treebank.test == [parse_tree("(1 d)")]


def test_invalid_treebank_is_reported(tmp_path: Path) -> None:
    write_treebank(tmp_path, ["(1 a)"], ["(0 b)"], ["(1 d)"])
    (tmp_path / "train.txt").write_text("(1 a)\n\n(1 (0 b)\n")
    with pytest.raises(TrainingError, match=r"train\.txt: line 3, column 1: the bracket that opens here is not closed"):
        read_treebank(str(tmp_path))
    (tmp_path / "train.txt").write_bytes(b"(1 \xff)\n")
    with pytest.raises(TrainingError, match=r"train\.txt: byte 3 is not UTF-8"):
        read_treebank(str(tmp_path))
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(TrainingError, match=r"train\.txt: holds no tree"):
        read_treebank(str(tmp_path))
    (tmp_path / "train.txt").write_text("(0 b)\n")
    with pytest.raises(TrainingError, match=r"train\.txt: holds no tree that is not in dev\.txt or test\.txt, too"):
        read_treebank(str(tmp_path))
    (tmp_path / "dev.txt").unlink()
    with pytest.raises(
        TrainingError, match=r"dev\.txt: No such file .*a treebank is a folder with train\.txt, dev\.tx"
    ):
        read_treebank(str(tmp_path))


def test_words_of_nodes_that_are_not_one_token_are_unknown() -> None:
    (tree,) = encoded(["(1 (0 A) (2 (1 what) (0 a\N{NO-BREAK SPACE}b)))"])
    assert tree.tokens.tolist() == [2, 0, 0, 1, 1]
    assert tree.heights.tolist() == [0, 0, 0, 1, 2]


def test_levels_contain_independent_nodes() -> None:
    batch = make_batch(encoded(["(0 (1 a) (2 (1 b) (0 c)))", "(1 (2 (1 a) (0 b) (0 c)))", "(2 d)"]), 0)
    assert [tuple(level.shape) for level in batch.levels] == [(7, 0), (2, 3), (2, 2)]
    known = 0
    for children in batch.levels:
        assert (children <= known).all()
        known += len(children)


@pytest.mark.parametrize("cell", CELLS)
def test_batched_trees_equal_single_trees_and_node_by_node_evaluation(cell: str) -> None:
    model = network(cell)
    trees = encoded(texts_for(cell))
    with torch.no_grad():
        for order in itertools.islice(itertools.permutations(range(len(trees))), 0, 24, 5):
            batch = batch_for(model, [trees[index] for index in order])
            together = model(batch)[batch.positions].split([len(trees[index].tokens) for index in order])
            labels = [label for index in order for label in trees[index].labels.tolist()]
            assert batch.labels[batch.positions].tolist() == labels
            for index, actual in zip(order, together, strict=True):
                alone = batch_for(model, [trees[index]])
                torch.testing.assert_close(actual, model(alone)[alone.positions], atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(actual, walk(model, trees[index]), atol=1e-6, rtol=1e-5)


def test_roots_are_the_last_nodes() -> None:
    trees = encoded(BINARY)
    batch = make_batch(trees, 2)
    assert batch.labels[batch.roots].tolist() == [int(tree.labels[-1]) for tree in trees]


def test_padding_of_children_does_not_change_a_bit() -> None:
    model = network("child-sum")
    batch = make_batch(encoded(ANY), 0)
    wide = make_batch(encoded(ANY), 9)
    assert {level.shape[1] for level in wide.levels} == {9}
    with torch.no_grad():
        assert torch.equal(model(batch), model(wide))


def test_only_child_sum_cells_ignore_the_order_of_children() -> None:
    there, back = encoded(["(1 (0 a) (2 b))", "(1 (0 b) (2 a))"])
    for cell in CELLS:
        model = network(cell)
        with torch.no_grad():
            same = torch.allclose(walk(model, there)[-1], walk(model, back)[-1])
        assert same == (cell == "child-sum")


def node_losses(model: TreeNetwork, trees: Sequence[EncodedTree]) -> Tensor:
    batch = batch_for(model, trees)
    return torch.nn.functional.cross_entropy(model(batch), batch.labels, reduction="sum")


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_flow_through_the_tree(cell: str) -> None:
    """Gradients of batches equal those of plain recursion and of finite differences."""
    model = network(cell, embedding=2, hidden=3).double()
    trees = encoded(texts_for(cell))
    node_losses(model, trees).backward()  # type: ignore[no-untyped-call]
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    for tree in trees:
        labels = torch.from_numpy(tree.labels)
        torch.nn.functional.cross_entropy(walk(model, tree), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad, atol=1e-12, rtol=1e-9)

    names = [name for name, _ in model.named_parameters()]
    batch = batch_for(model, trees)

    def loss_of(*values: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (batch,))
        return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")

    values = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    assert torch.autograd.gradcheck(loss_of, values)


@pytest.fixture
def treebank(tmp_path: Path) -> str:
    folder = tmp_path / "negations"
    folder.mkdir()
    return write_treebank(folder, negations(300, 1), negations(60, 2), ["(2 (1 not) (0 (1 not) (2 (1 not) (0 bad))))"])


def lengthened(trees: Sequence[str]) -> list[str]:
    """Negate each tree twice more: longer than all training trees, with the same labels."""
    grades = [int(tree[1]) for tree in trees]
    return [f"({grade} (1 not) ({2 - grade} (1 not) {tree}))" for grade, tree in zip(grades, trees, strict=True)]


@pytest.mark.parametrize(
    "cell",
    [CELLS[0], *(pytest.param(cell, marks=pytest.mark.slow("trains another tree network")) for cell in CELLS[1:])],
)
def test_negation_is_learned(treebank: str, tmp_path: Path, cell: str) -> None:
    test = lengthened(lengthened(negations(50, 3)))
    write_treebank(Path(treebank), negations(300, 1), lengthened(negations(60, 2)), test)
    result = train(config(treebank, cell=cell, steps=300), tmp_path / "run", console=QUIET)
    assert result.validation.accuracy == 1.0
    assert result.measured["test_root_accuracy"] > 0.95
    assert result.measured["test_node_accuracy"] > 0.95
    assert result.measured["test_root_accuracy_binary"] > 0.95
    assert json.loads((tmp_path / "run" / RESULT).read_text())["test_root_accuracy"] > 0.95


@pytest.mark.parametrize("cell", CELLS)
def test_resumed_run_equals_uninterrupted_run_bit_exactly(treebank: str, tmp_path: Path, cell: str) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    chosen = config(treebank, cell=cell, steps=40)
    train(chosen, unbroken, console=QUIET)
    train(chosen, broken, console=QUIET, stop_after=20)
    resume(broken, console=QUIET)
    for name in (LAST, BEST, RESULT):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes()


def test_weights_with_the_best_root_accuracy_are_kept(treebank: str, tmp_path: Path) -> None:
    train(config(treebank, steps=200), tmp_path / "run", console=QUIET)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = [record for record in records if "validation_accuracy" in record]
    best = max(held_out, key=lambda record: record["validation_accuracy"])  # the first of equally good ones
    assert min(held_out, key=lambda record: record["validation_nats"])["step"] > best["step"]
    assert load_tensors(tmp_path / "run" / BEST)[1]["step"] == best["step"]


def test_labels_are_matched_by_name(treebank: str, tmp_path: Path) -> None:
    names = ("bad", "neither", "good")
    train(config(treebank, label_names=names, steps=1), tmp_path / "run", console=QUIET)
    assert load_labels(tmp_path / "run") == names
    with pytest.raises(TrainingError, match="negations: its labels are 0, 1, 2, but label_names has 2"):
        train(config(treebank, label_names=("bad", "good")), tmp_path / "other", console=QUIET)


def test_unusable_treebank_is_reported(treebank: str, tmp_path: Path) -> None:
    write_treebank(Path(treebank), negations(9, 1), ["(1 a)", "(5 a)"], ["(1 a)"])
    with pytest.raises(TrainingError, match=r"dev\.txt, tree 2: the label '5' does not occur in train\.txt"):
        train(config(treebank), tmp_path / "run", console=QUIET)
    write_treebank(Path(treebank), [*negations(9, 1), "(1 (1 a) (2 b) (0 c))"], ["(0 a)"], ["(1 b)"])
    with pytest.raises(
        TrainingError, match=r"train\.txt, tree 10: got a node with 3 children; --cell binary needs 2 or none"
    ):
        train(config(treebank, cell="binary"), tmp_path / "run", console=QUIET)
    assert train(config(treebank, cell="child-sum", steps=1), tmp_path / "run", console=QUIET).step == 1


def test_unknown_cell_is_rejected() -> None:
    with pytest.raises(ValidationError, match="'child-sum', 'binary' or 'recursive'"):
        config("here", cell="gru")


class Oracle:
    """Labels all nodes correctly except the roots, which all receive the same probabilities."""

    def __init__(self, at_roots: Sequence[float]) -> None:
        self._at_roots = torch.tensor(at_roots).log()

    def __call__(self, batch: TreeBatch) -> Tensor:
        logits = torch.nn.functional.one_hot(batch.labels, len(self._at_roots)).float()
        logits[batch.roots] = self._at_roots
        return logits


def test_metrics_are_those_of_the_literature(tmp_path: Path) -> None:
    roots = [4, 4, 3, 0, 2, 2]
    trees = [f"({root} (1 a) (2 b))" for root in roots]
    corpus = write_treebank(tmp_path, ["(0 (1 c) (2 c))", "(3 (4 c) (0 c))"], trees, trees)
    task = TreeTask(config(corpus), read_treebank(corpus))
    # Label 0 is the most probable, but the two positive labels together are more probable than the negative ones.
    oracle = Oracle([0.3, 0.05, 0.2, 0.2, 0.25])
    assert task.test(oracle, lambda what, share: None) == {
        "test_root_accuracy": pytest.approx(1 / 6),
        "test_node_accuracy": pytest.approx((12 + 1) / 18),
        "test_root_accuracy_binary": pytest.approx(3 / 4),  # of 4, 4, 3 and 0
    }
    validation = task.validate(oracle, rows=1)
    assert validation.accuracy == pytest.approx(1 / 6)
    assert validation.criterion == pytest.approx(5 / 6)


def test_binary_accuracy_requires_graded_labels(tmp_path: Path) -> None:
    trees = ["(S (N a) (V b))"]
    corpus = write_treebank(tmp_path, ["(S (N b) (V c))"], trees, trees)
    task = TreeTask(config(corpus), read_treebank(corpus))
    assert task.test(Oracle([0.2, 0.5, 0.3]), lambda what, share: None).keys() == {
        "test_root_accuracy",
        "test_node_accuracy",
    }


@pytest.mark.slow("reads a whole treebank")
@pytest.mark.shared_data
@pytest.mark.parametrize("preset", [name for name, values in PRESETS.items() if values["task"] == "tree"])
def test_presets_match_their_treebank(preset: str, tmp_path: Path) -> None:
    path = SHARED_DATA / "sst"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    small = {**PRESETS[preset], "hidden": 8, "embedding": 8, "validation_limit": 50}
    assert train(TreeConfig(**small, corpus=str(path)), tmp_path / "run", console=QUIET, stop_after=2).step == 2


def test_train_command_trains_on_trees(treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    command = ["train", "--task", "tree", "--corpus", treebank, "--output", run, "--cell", "recursive", "--hidden", "4"]
    with pytest.raises(TrainingError, match="its labels are 0, 1, 2, but label_names has 5"):
        app(command, standalone_mode=False)
    write_treebank(Path(treebank), ["(0 (1 a) (2 (3 b) (4 a)))"], ["(1 a)"], ["(3 b)"])
    app([*command, "--steps", "2", "--minimum-count", "1"], standalone_mode=False)
    shown = capsys.readouterr().err
    assert "tree on " in shown
    assert "recursive tree of 4 units" in shown
    assert "test node accuracy: " in shown
    for options, error_message in (
        (["--cell", "gru"], "--cell: got gru; input should be 'child-sum', 'binary' or 'recursive'"),
        (["--window", "3"], "--window: got 3; it has no effect with --task tree, only with lm or tag"),
        (["--vocabulary", "words"], "--vocabulary: got words; it has no effect with --task tree"),
    ):
        with pytest.raises(BadParameter, match=error_message):
            app([*command, *options], standalone_mode=False)
