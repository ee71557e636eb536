"""Serving trees: concurrent trees equal single ones, and errors are words_by_token with their position."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from elman import DeadlineExceededError, InvalidRequestError, ServerError, TreeNode
from elman_bundle import Bundle, load_bundle, write_bundle
from elman_protos import v1
from elman_server.engine import NO_CHILD, OnnxTreeEngine, Opener, ProviderChoice
from elman_server.errors import InvalidFieldError, ModelLoadError
from elman_server.inference.trees import brackets, s_expressions
from tests.support.serving import Running, serving
from tests.support.shared import shared_bundle
from tests.support.trees import (
    SENTIMENTS,
    WORDS,
    RandomTree,
    TreeLstm,
    as_expression,
    as_nodes,
    graph_scores,
    probabilities,
    random_tree,
    write_trees,
)

CHILDREN = {"binary": 2, "child-sum": 0}
POISON = 7  # a node with this token outputs NaN


def poisoned(folder: Path) -> Bundle:
    """A child-sum Tree-LSTM with a NaN embedding of one word."""
    path = shared_bundle("trees-poisoned", lambda folder: write_trees(TreeLstm(0), folder, "poisoned", 0)).path
    bundle = load_bundle(shutil.copytree(path, folder / "poisoned"))
    graph = onnx.load(bundle.graph_path)
    (known,) = (weight for weight in graph.graph.initializer if weight.dims[0] == WORDS.size)
    values = numpy_helper.to_array(known).copy()
    values[POISON] = np.nan
    known.CopyFrom(numpy_helper.from_array(values, known.name))
    onnx.save(graph, bundle.graph_path)
    write_bundle(bundle.path, bundle.spec)
    return load_bundle(bundle.path)


@pytest.fixture(scope="module")
def mixed_bundles(tree_bundles: Mapping[str, Bundle], bundles: Mapping[str, Bundle]) -> Mapping[str, Bundle]:
    return {**tree_bundles, "gru": bundles["gru"], "classes": bundles["classes"]}


@pytest.fixture
async def running(tree_bundles: Mapping[str, Bundle]) -> AsyncIterator[Running]:
    async with serving(*tree_bundles.values(), slots=32) as running:
        yield running


@pytest.fixture
async def mixed(mixed_bundles: Mapping[str, Bundle]) -> AsyncIterator[Running]:
    """A server of tree models and text models."""
    async with serving(*mixed_bundles.values(), slots=32) as running:
        yield running


@pytest.fixture
async def stub(running: Running) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield v1.InferenceServiceStub(channel)


def steps_of(response: v1.ClassifyResponse) -> list[tuple[str, float]]:
    return [(step.label, step.probability) for step in response.prediction.steps]


def expected_steps(bundle: Bundle, tree: RandomTree) -> list[tuple[str, float]]:
    result = probabilities(graph_scores(bundle, tree))
    return [(SENTIMENTS[best], float(row[best])) for best, row in zip(result.argmax(axis=1), result, strict=True)]


@pytest.mark.parametrize("name", CHILDREN)
async def test_concurrent_trees_equal_single_trees_bit_exactly(
    tree_bundles: Mapping[str, Bundle], stub: Any, name: str
) -> None:
    """Trees arrive at different times, with more nodes than fit into a run; a few are large, most are small."""
    random = np.random.default_rng(3)
    trees = [random_tree(seed, CHILDREN[name], int(random.choice([1, 5, 40, 150]))) for seed in range(60)]

    async def ask(tree: RandomTree) -> v1.ClassifyResponse:
        await asyncio.sleep(random.random() * 0.1)
        return await stub.Classify(v1.ClassifyRequest(model=name, tree=as_nodes(tree), every_node=True))

    for tree, response in zip(trees, await asyncio.gather(*map(ask, trees)), strict=True):
        assert response.prediction.step_count == len(tree.tokens)
        assert not response.prediction.labels
        assert steps_of(response) == expected_steps(tree_bundles[name], tree)


@pytest.mark.parametrize("name", CHILDREN)
async def test_expression_and_node_list_give_the_same_tree(
    tree_bundles: Mapping[str, Bundle], stub: Any, name: str
) -> None:
    tree = random_tree(11, CHILDREN[name], 80)
    listed = await stub.Classify(v1.ClassifyRequest(model=name, tree=as_nodes(tree), every_node=True))
    expression, order = as_expression(tree)
    request = v1.ClassifyRequest(model=name, tree=v1.Tree(s_expression=expression), every_node=True)
    written = await stub.Classify(request)
    in_order = steps_of(listed)
    assert steps_of(written) == [in_order[node] for node in order]
    request.every_node, request.bypass_prefix_cache = False, True
    root = (await stub.Classify(request)).prediction
    assert not root.steps
    assert root.step_count == len(tree.tokens)
    result = probabilities(graph_scores(tree_bundles[name], tree))[tree.root]
    best_first = np.argsort(-result, kind="stable")
    assert [label.label for label in root.labels] == [SENTIMENTS[label] for label in best_first]
    assert [label.probability for label in root.labels] == result[best_first].tolist()


async def test_trees_during_generation_equal_single_trees(tree_bundles: Mapping[str, Bundle], mixed: Running) -> None:
    client = mixed.client
    alone = await client.generate("hello", model="gru", max_tokens=60, seed=5).text()
    trees = [random_tree(seed, 2, 60) for seed in range(30)]

    async def label(tree: RandomTree) -> list[tuple[str, float]]:
        result = await client.classify(tree=as_expression(tree)[0], model="binary", every_node=True)
        return [(step.name, step.probability) for step in result.steps]

    async def generate() -> str:
        return await client.generate("hello", model="gru", max_tokens=60, seed=5).text()

    texts, *labelled = await asyncio.gather(
        asyncio.gather(*(generate() for _ in range(8))), *(label(tree) for tree in trees)
    )
    assert set(texts) == {alone}
    for tree, result in zip(trees, labelled, strict=True):
        steps = expected_steps(tree_bundles["binary"], tree)
        assert result == [steps[node] for node in as_expression(tree)[1]]


async def test_client_accepts_tree_nodes(running: Running) -> None:
    tree = TreeNode(children=[TreeNode("w3"), TreeNode(children=(TreeNode(token_id=5), TreeNode("w4")))])
    written = "(a (b w3) (c (d w3) (e w4)))"
    assert WORDS.tokens[5] == "w3"
    for every_node in (False, True):
        result = await running.client.classify(tree=tree, model="binary", every_node=every_node)
        assert result == await running.client.classify(tree=written, model="binary", every_node=every_node)
        assert result.step_count == 5
    with pytest.raises(InvalidRequestError, match="got a node with the word 'w3' and the token_id 5; give only one"):
        await running.client.classify(tree=TreeNode("w3", 5), model="binary")
    with pytest.raises(InvalidRequestError, match="classify takes either an input or a tree"):
        await running.client.classify("text", tree="(a w3)")
    with pytest.raises(InvalidRequestError, match="a tree is a str or a TreeNode"):
        await running.client.classify(tree=TreeNode(children=["w3"]), model="binary")  # type: ignore[list-item]


async def test_tree_with_nan_fails_without_affecting_others(tmp_path: Path) -> None:
    bundle = poisoned(tmp_path)
    trees = [random_tree(seed, 0, 30) for seed in range(20)]
    good = [tree for tree in trees if POISON not in tree.tokens]
    bad = [tree for tree in trees if POISON in tree.tokens]
    assert good
    assert bad
    async with serving(bundle, slots=16) as running:

        async def ask(tree: RandomTree) -> Any:
            return await running.client.classify(tree=as_expression(tree)[0], every_node=True)

        result = await asyncio.gather(*map(ask, [*good, *bad]), return_exceptions=True)
        for tree, one in zip(good, result, strict=False):
            steps = expected_steps(bundle, tree)
            assert [(step.name, step.probability) for step in one.steps] == [
                steps[node] for node in as_expression(tree)[1]
            ]
        for one in result[len(good) :]:
            assert isinstance(one, ServerError)
            assert one.reason == "MODEL_FAILED"


def listed(*nodes: dict[str, Any]) -> v1.Tree:
    return v1.Tree(nodes=v1.TreeNodes(nodes=[v1.TreeNode(**node) for node in nodes]))


def written(expression: str) -> v1.Tree:
    return v1.Tree(s_expression=expression)


def chain(count: int) -> v1.Tree:
    return listed(*({"children": [node + 1]} for node in range(count - 1)), {"word": "w1"})


EXPRESSION, NODES = "tree.s_expression", "tree.nodes.nodes"
W = {"word": "w1"}
BAD_TREES: dict[str, tuple[v1.Tree, str, str]] = {
    "nothing": (v1.Tree(), "tree", "got none; a tree is needed. Give an s_expression"),
    "no nodes": (v1.Tree(nodes=v1.TreeNodes()), "tree.nodes", "got no nodes; a tree has one node or more"),
    "empty": (written(""), EXPRESSION, "got an empty text; a tree is needed"),
    "white space": (written(" \t\n "), EXPRESSION, "got an empty text; a tree is needed"),
    "no bracket": (written("word"), EXPRESSION, "got 'word' at character 0; a tree begins with '('"),
    "no label": (written("(a ((b w1) (c w1)))"), EXPRESSION, "got '(' at character 4; a label is needed here"),
    "empty bracket": (written("(a () (c w1))"), EXPRESSION, "got ')' at character 4; a label is needed here"),
    "not closed": (written("(a (b w1) (c w1)"), EXPRESSION, "the bracket at character 0 is not closed"),
    "inner not closed": (written("(a (b w1) (c w1"), EXPRESSION, "the bracket at character 10 is not closed"),
    "closed twice": (written("(a w1))"), EXPRESSION, "')' at character 6; the tree has ended before it"),
    "text behind": (written("(a w1) more"), EXPRESSION, "got 'more' at character 7; the tree has ended before it"),
    "two trees": (written("(a w1) (a w1)"), EXPRESSION, "got '(' at character 7; the tree has ended before it"),
    "two words": (written("(a w1 w2)"), EXPRESSION, "got 'w2' at character 6; a bracket or ')' is needed here"),
    "word behind": (written("(a (b w1) w2)"), EXPRESSION, "got 'w2' at character 10; a bracket"),
    "leaf without a word": (
        written("(a (b) (c w1))"), EXPRESSION,
        "got neither a word nor children in the bracket at character 3; a leaf has a word",
    ),
    "one child": (
        written("(a (b w1))"), EXPRESSION, "got 1 children in the bracket at character 0; a node of 'binary' has 2",
    ),
    "deep": (written("(a " * 1001 + "w1" + ")" * 1001), EXPRESSION, "character 3000 at depth 1001; at most 1000"),
    "many": (written("(a w1)" * 10_001), EXPRESSION, "got 10001 nodes; a tree may have at most 10000"),
    "many nodes": (listed(*[W] * 10_001), "tree.nodes", "got 10001 nodes; a tree may have at most 10000"),
    "deep nodes": (chain(1001), f"{NODES}[1000]", "got a node at depth 1001; at most 1000"),
    "unknown child": (listed({"children": [1, 3]}, W, W), f"{NODES}[0].children[1]", "got 3; the nodes are 0 to 2"),
    "negative child": (listed({"children": [-1, 1]}, W), f"{NODES}[0].children[0]", "got -1; the nodes are 0 to 1"),
    "twice": (listed({"children": [1, 1]}, W), f"{NODES}[0].children[1]", "got node 1 again; a node has one parent"),
    "two parents": (
        listed({"children": [1, 2]}, {"children": [3, 2]}, W, W),
        f"{NODES}[1].children[1]", "got 2, a child of node 0; a node has one parent",
    ),
    "itself": (listed({"children": [0, 1]}, W), "tree.nodes", "got no root; every node is the child of another"),
    "cycle": (listed({"children": [1]}, {"children": [0]}), "tree.nodes", "they form a cycle"),
    "cycle beside": (
        listed({"children": [1, 2]}, W, W, {"children": [4, 5]}, {"children": [3, 6]}, W, W),
        f"{NODES}[4].children[0]", "got 3, an ancestor; a tree has no cycle",
    ),
    "two roots": (
        listed({"children": [1, 2]}, W, W, W), f"{NODES}[3]", "got a second root besides node 0; a tree has one root",
    ),
    "one child in a list": (listed({"children": [1]}, W), f"{NODES}[0].children", "got 1 children; a node of"),
    "three children": (listed({"children": [1, 2, 3]}, W, W, W), f"{NODES}[0].children", "got 3 children; a node of"),
    "nothing at a leaf": (
        listed({"children": [1, 2]}, W, {}), f"{NODES}[2]", "got neither a word nor children; a leaf has a word",
    ),
    "empty word": (listed({"word": ""}), f"{NODES}[0].word", "this is 0 to the model"),
    "two tokens": (listed({"word": "w1 w2"}), f"{NODES}[0].word", "a node's word is one token, but this is 2"),
    "id outside": (listed({"token_id": 40}), f"{NODES}[0].token_id", "got 40; the ids of 'binary' are 0 to 39"),
    "negative id": (listed({"token_id": -1}), f"{NODES}[0].token_id", "got -1; the ids of 'binary' are 0 to 39"),
}  # fmt: skip


def refusal(error: grpc.aio.AioRpcError) -> tuple[str, str, str]:
    """Return the reason of an error, the field at fault and its description."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(request)
    (violation,) = request.field_violations
    return info.reason, violation.field, violation.description


@pytest.mark.parametrize("what", BAD_TREES)
async def test_invalid_tree_is_reported_with_the_field_at_fault(stub: Any, running: Running, what: str) -> None:
    tree, field, error_message = BAD_TREES[what]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(v1.ClassifyRequest(model="binary", tree=tree))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    reason, at_fault, description = refusal(caught.value)
    assert (at_fault, reason) == (
        field,
        "INPUT_TOO_LONG" if " 1000" in error_message or " 1001" in error_message else "INVALID_FIELD",
    )
    assert error_message in description


async def test_largest_allowed_trees_are_accepted(stub: Any) -> None:
    deep = written("(a " * 999 + "(b w1)" + ")" * 999)
    result = await stub.Classify(v1.ClassifyRequest(model="child-sum", tree=deep))
    assert result.prediction.step_count == 1000
    wide = written("(a" + " (b w1)" * 9_999 + ")")
    result = await stub.Classify(v1.ClassifyRequest(model="child-sum", tree=wide, every_node=True))
    assert len(result.prediction.steps) == 10_000


@pytest.mark.parametrize(
    ("request_", "field", "error_message"),
    [
        (v1.ClassifyRequest(model="binary"), "tree", "got none; a tree is needed. Give an s_expression"),
        (v1.ClassifyRequest(model="binary", text="w1"), "text", "got text; 'binary' reads trees"),
        (v1.ClassifyRequest(model="binary", tokens={"ids": [1]}), "tokens", "'binary' reads trees. Give a tree"),
        (v1.ClassifyRequest(model="binary", tensor={"name": "x"}), "tensor", "'binary' reads trees. Give a tree"),
    ],
)  # fmt: skip
async def test_tree_model_rejects_other_inputs(
    stub: Any, request_: v1.ClassifyRequest, field: str, error_message: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(request_)
    reason, at_fault, description = refusal(caught.value)
    assert (reason, at_fault) == ("INVALID_FIELD", field)
    assert error_message in description


async def test_methods_that_trees_do_not_support_are_rejected(mixed: Running) -> None:
    client = mixed.client
    session = await client.create_session(model="gru")

    async def streamed() -> None:
        async for _ in client.stream_classify(["w1"], model="binary"):
            pass

    calls = {
        "generate": lambda: client.generate("w1", model="binary").text(),
        "choose": lambda: client.choose(["w1", "w2"], model="binary"),
        "score": lambda: client.score("w1", model="binary"),
        "embed": lambda: client.embed(["w1"], model="binary"),
        "inspect": lambda: _all(client.inspect("w1", model="binary")),
        "stream": streamed,
        "session": lambda: client.create_session(model="binary"),
        "in a session": lambda: client.classify(tree="(a w1)", model="binary", session=session.session_id),
    }
    for what, call in calls.items():
        with pytest.raises(InvalidRequestError) as caught:
            await call()
        assert caught.value.reason == "MODEL_UNSUITABLE", what
        assert list(caught.value.fields) == ["config.model" if what == "stream" else "model"], what
        assert "'binary'" in str(caught.value)
    with pytest.raises(InvalidRequestError, match="model: got 'gru'; it generates text and has no labels"):
        await client.classify(tree="(a w1)", session=session.session_id)


async def test_other_models_reject_trees(mixed: Running) -> None:
    with pytest.raises(InvalidRequestError, match=r"tree: got a tree; 'classes' does not read trees\. Give text"):
        await mixed.client.classify(tree="(a a)", model="classes")
    with pytest.raises(InvalidRequestError, match="every_node: got true; 'classes' does not read trees"):
        await mixed.client.classify("a", every_node=True, model="classes")


async def _all(stream: Any) -> list[Any]:
    return [one async for one in stream]


async def test_disconnected_client_frees_its_slot_immediately(tree_bundles: Mapping[str, Bundle]) -> None:
    """With one slot, a run takes one node, and the large tree would need thousands of runs."""
    async with serving(tree_bundles["binary"], slots=1, waiting_limit=5) as running:
        large = as_expression(random_tree(1, 2, 9_000))[0]
        with pytest.raises(DeadlineExceededError):
            await running.client.classify(tree=large, timeout=0.3)
        under_way = asyncio.ensure_future(running.client.classify(tree=large))
        while (await running.client.list_models())[0].running_count == 0:
            assert not under_way.done()
        under_way.cancel()
        await running.until_idle()
        assert (await running.client.classify(tree="(a w1)")).step_count == 1


async def test_large_tree_does_not_delay_a_small_one(tree_bundles: Mapping[str, Bundle]) -> None:
    async with serving(tree_bundles["binary"], slots=4) as running:
        large = asyncio.ensure_future(running.client.classify(tree=as_expression(random_tree(2, 2, 9_000))[0]))
        await asyncio.sleep(0.1)
        for _ in range(5):
            await running.client.classify(tree="(a (b w1) (c w2))")
            assert not large.done()
        assert (await large).step_count >= 9_000


@pytest.mark.parametrize(
    ("child_count", "error_message"),
    [
        (
            0,
            "has shape ['rows', 2, 12], the manifest says ['rows', 'rows', 12]; the row axis and the next one",
        ),
        (3, "has shape ['rows', 2, 12], the manifest says ['rows', 3, 12]"),
    ],
)
def test_graph_with_wrong_number_of_children_is_not_served(
    tree_bundles: Mapping[str, Bundle], child_count: int, error_message: str
) -> None:
    bundle = replace(tree_bundles["binary"], spec=v1.ModelSpec())
    bundle.spec.CopyFrom(tree_bundles["binary"].spec)
    bundle.spec.step.tree.child_count = child_count
    with pytest.raises(ModelLoadError, match=re.escape(error_message)):
        OnnxTreeEngine(bundle, capacity=4, opener=Opener(ProviderChoice.CPU, 1))


def test_state_slots_are_reused(tree_bundles: Mapping[str, Bundle]) -> None:
    engine = OnnxTreeEngine(tree_bundles["child-sum"], capacity=4, opener=Opener(ProviderChoice.CPU, 1))
    tokens = np.arange(4)  # more than the initial capacity
    kept = [engine.run(tokens, np.ones((4, 1), np.int64)).places for _ in range(20)]
    assert engine.kept_count == 80
    assert len(np.unique(kept)) == 80
    known = engine.run(tokens, np.full((4, 1), NO_CHILD)).places
    assert engine.known(np.arange(6)).tolist() == [*known.tolist(), NO_CHILD, NO_CHILD]
    for places in [*kept, known]:
        engine.release(places)
    assert engine.kept_count == 0
    again = engine.run(tokens, np.full((4, 1), NO_CHILD))
    assert engine.known(tokens).tolist() == known.tolist()
    assert not set(again.places.tolist()) & set(known.tolist())
    engine.release_all()
    assert engine.kept_count == 0


def test_nodes_with_many_children_do_not_pad_other_nodes(
    tree_bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wide node runs separately; the results of all nodes are the same to the bit."""
    engine = OnnxTreeEngine(tree_bundles["child-sum"], capacity=64, opener=Opener(ProviderChoice.CPU, 1))
    leaves = engine.run(np.arange(2, 40), np.zeros((38, 1), np.int64)).places
    random = np.random.default_rng(3)
    children = np.zeros((20, 3_000), np.int64)
    for row, count in enumerate([3_000, *random.integers(1, 9, 19)]):
        children[row, :count] = random.choice(leaves, count)
    tokens = random.integers(2, 40, 20)
    slot_counts: list[int] = []
    run = OnnxTreeEngine._run

    def counted(self: OnnxTreeEngine, tokens: Any, children: Any) -> Any:
        slot_counts.append(children.size)
        return run(self, tokens, children)

    monkeypatch.setattr(OnnxTreeEngine, "_run", counted)
    together = engine.run(tokens, children)
    assert max(slot_counts) <= 16_384
    for row in range(20):
        width = max(1, int((children[row] != NO_CHILD).sum()))
        alone = engine.run(tokens[row : row + 1], children[row : row + 1, :width])
        assert alone.outputs["logits"].tobytes() == together.outputs["logits"][row : row + 1].tobytes()


def test_memory_of_large_trees_is_released(tree_bundles: Mapping[str, Bundle]) -> None:
    engine = OnnxTreeEngine(tree_bundles["binary"], capacity=4, opener=Opener(ProviderChoice.CPU, 1))
    leaf = engine.run(np.array([5, 6]), np.zeros((2, 2), np.int64))
    pair = engine.run(np.array([1]), leaf.places[None])
    held = [engine.run(np.full(4, 7), np.tile(leaf.places, (4, 1))).places for _ in range(200)]
    assert engine.kept_count >= 800
    assert max(len(pool) for pool in engine._pools.values()) > 800
    assert held
    engine.release_all()
    assert engine.kept_count == 0
    assert max(len(pool) for pool in engine._pools.values()) < 50
    known = engine.known(np.array([5, 6]))
    assert (known != NO_CHILD).all()
    again = engine.run(np.array([1]), known[None])
    assert again.outputs["logits"].tobytes() == pair.outputs["logits"].tobytes()


@pytest.mark.parametrize("piece", ["a ", ") "])
def test_parsing_stops_at_the_first_error(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of megabytes is refused at the first error."""
    pieces, seen = s_expressions.PIECE, []

    class Noting:
        def finditer(self, text: str) -> Any:
            for match in pieces.finditer(text):
                seen.append(match)
                yield match

    monkeypatch.setattr(s_expressions, "PIECE", Noting())
    monkeypatch.setattr(brackets, "PIECE", Noting())
    with pytest.raises(InvalidFieldError, match="at character 6; the tree has ended before it"):
        s_expressions.parse_s_expressions(
            ["(a b) " + piece * 600_000], EXPRESSION, partial(brackets.read_bracket, token_of=len)
        )
    assert len(seen) < 2_000


Written = tuple[str | None, int, int]  # word, depth and number of children of a node


def by_the_rule(text: str) -> list[Written] | None:
    """Parse an s-expression piece by piece and return its nodes, or None if it is invalid."""
    pieces = re.findall(r"[()]|[^() \t\r\n]+", text)
    nodes: list[Written] = []

    def node(place: int, depth: int) -> int:
        if pieces[place] != "(" or pieces[place + 1] in "()":
            raise ValueError
        place += 2
        word = None
        if pieces[place] not in "()":
            word, place = pieces[place], place + 1
        own, count = len(nodes), 0
        nodes.append((word, depth, 0))
        while pieces[place] != ")":
            place, count = node(place, depth + 1), count + 1
        nodes[own] = (word, depth, count)
        return place + 1

    try:
        return nodes if node(0, 0) == len(pieces) else None
    except (ValueError, IndexError):
        return None


@st.composite
def expressions(draw: st.DrawFn) -> str:
    """Draw trees, most of them with one or two errors."""
    pieces: list[str] = []

    def add(depth: int) -> None:
        pieces.extend(["(", draw(st.sampled_from(["a", "b\u00a0c", "-LRB-"]))])
        if draw(st.booleans()):
            pieces.append(draw(st.sampled_from(["w1", "caf\u00e9", "two\u2003three", "\x0b"])))
        for _ in range(draw(st.integers(0, 3 if depth < 3 else 0))):
            add(depth + 1)
        pieces.append(")")

    add(0)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(pieces)))
        instead = st.lists(st.sampled_from(["(", ")", "a", "w1"]), max_size=2)
        pieces[place : place + draw(st.integers(0, 1))] = draw(instead)
    return "".join(piece + draw(st.sampled_from(["", " ", "\n\t"] if piece in "()" else [" "])) for piece in pieces)


@given(st.lists(expressions(), min_size=1, max_size=4))
def test_parser_agrees_with_a_reference_parser(texts: list[str]) -> None:
    words: dict[str, int] = {}
    expected = [by_the_rule(text) for text in texts]
    bracket = partial(brackets.read_bracket, token_of=lambda word: words.setdefault(word, len(words)))
    if None in expected:
        with pytest.raises(InvalidFieldError, match=EXPRESSION) as together:
            s_expressions.parse_s_expressions(texts, EXPRESSION, bracket)
        with pytest.raises(InvalidFieldError) as alone:
            s_expressions.parse_s_expressions([texts[expected.index(None)]], EXPRESSION, bracket)
        assert str(together.value) == str(alone.value)
        return
    result = s_expressions.parse_s_expressions(texts, EXPRESSION, bracket)
    words_by_token = {token: word for word, token in words.items()}
    start = 0
    for size, nodes in zip(result.sizes, expected, strict=True):
        part = slice(start, start + size)
        order = result.order[part] - start
        by_place = order.argsort()
        depths = result.depths[part][by_place]
        columns = (result.tokens[part][by_place], depths, result.child_counts[part][by_place])
        written = zip(*(column.tolist() for column in columns), strict=True)
        assert [(words_by_token.get(token), depth, count) for token, depth, count in written] == nodes
        assert list(order) == sorted(order, key=lambda node: (depths[node], node))
        start += size
