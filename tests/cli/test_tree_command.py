"""`elman classify --tree`: parsing of expressions and drawing of labelled trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from elman import Label
from elman.cli.tree_labelling import drawn
from elman_bundle import Bundle
from tests.support.command_line import Served, check_failure, elman
from tests.support.trees import SENTIMENTS, as_expression, graph_scores, probabilities, random_tree

TREE = "(x (x w1) (x (x w2) (x w3)))"


@pytest.fixture(scope="module")
def served(tree_bundles: Mapping[str, Bundle]) -> Iterator[Served]:
    server = Served(tree_bundles["binary"].path, "--provider", "cpu")
    yield server
    assert server.end() == 0


def test_classify_prints_the_label_of_the_root(served: Served, tree_bundles: Mapping[str, Bundle]) -> None:
    trees = [random_tree(seed, 2, 20) for seed in range(3)]
    expressions = [as_expression(tree)[0] for tree in trees]
    given = elman("classify", "--tree", expressions[0], "--tree", "-", "--server", served.address,
                  stdin="\n".join([expressions[1], "", expressions[2]]))  # fmt: skip
    assert given.returncode == 0, given.stderr
    for tree, expression, line in zip(trees, expressions, given.stdout.splitlines(), strict=True):
        result = probabilities(graph_scores(tree_bundles["binary"], tree))[tree.root]
        assert line == f"{SENTIMENTS[result.argmax()]}\t{result.max():.4f}\t{expression}"


def test_classify_draws_every_node(served: Served) -> None:
    given = elman("classify", "--every-node", "--tree", TREE, "--server", served.address)
    assert given.returncode == 0, given.stderr
    lines = [line.rstrip() for line in given.stdout.splitlines()]
    assert len(lines) == 5
    assert [line.lstrip("│├└─ ").split()[2:] for line in lines] == [[], ["w1"], [], ["w2"], ["w3"]]
    assert [len(line) - len(line.lstrip("│├└─ ")) for line in lines] == [0, 4, 4, 8, 8]
    for line in lines:
        label, probability = line.lstrip("│├└─ ").split()[:2]
        assert label in SENTIMENTS
        assert 0.2 <= float(probability) <= 1


def test_tree_drawing_does_not_interpret_markup() -> None:
    """Words and labels are not interpreted as markup, and a node may have both a word and children."""
    labels = [Label("[bold]", 0.5), Label("b", 0.25)]
    tree = drawn("(a [red] (b [/]))", labels)
    (root,) = tree.children
    (child,) = root.children
    assert (str(root.label), str(child.label)) == ("[bold] 0.50  [red]", "b 0.25  [/]")


def test_invalid_trees_are_reported_in_a_line(served: Served) -> None:
    server = ("--server", served.address)
    check_failure(elman("classify", "--tree", "(x w1", *server), "the bracket at character 0 is not closed")
    check_failure(elman("classify", "--tree", "", *server), "got an empty text; a tree is needed. Give an s_expression")
    check_failure(elman("classify", "--every-node", *server, stdin="w1"), "needs --tree")
    check_failure(elman("classify", "--follow", "--tree", TREE, *server), "a tree is read as a whole")
    check_failure(elman("classify", *server, stdin="w1 w2\n"), "text: got text; 'binary' reads trees. Give a tree")
    result = elman("classify", "--tree", TREE, "--tree", "(x w1", *server)
    assert result.returncode != 0
    assert result.stdout.endswith(f"{TREE}\n")
