"""Token embeddings: nearest neighbours, principal components, and a chart with readable labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.image import imread
from rich.console import Console
from typer import BadParameter

from elman.cli.application import app
from elman_bundle import BEGIN, END, INNER, CharacterVocabulary, SymbolVocabulary, WordVocabulary
from elman_training import TextConfig, TrainingError, TreeConfig, train
from elman_training.checkpoint import load_best
from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.token_embeddings import (
    Embedder,
    EmbeddingTable,
    _Label,
    _place_labels,
    draw_embeddings,
    load_embeddings,
)
from elman_training.token_embeddings import principal_components as components
from tests.support.shared import made_once
from tests.support.treebanks import write_treebank

QUIET = Console(quiet=True)
RANDOM = np.random.default_rng(0)


def table(size: int, features: int = 6) -> EmbeddingTable:
    tokens = ["�", *(f"word{index}" for index in range(size - 1))]
    return EmbeddingTable(SymbolVocabulary(tokens, 0), RANDOM.normal(size=(size, features)).astype(np.float32))


def test_neighbours_have_the_largest_cosine() -> None:
    made = table(40)
    for token in range(40):
        vector = made.vectors[token]
        cosines = {
            other: float(vector @ made.vectors[other] / np.linalg.norm(vector) / np.linalg.norm(made.vectors[other]))
            for other in range(1, 40)  # The unknown token is excluded from the neighbours.
            if other != token
        }
        result = made.nearest(token, 7)
        assert [near.token for near in result] == sorted(cosines, key=lambda other: -cosines[other])[:7]
        assert [near.similarity for near in result] == pytest.approx(
            sorted(cosines.values(), reverse=True)[:7], abs=1e-5
        )
    assert len(made.nearest(1, 1000)) == 38


def test_zero_vector_has_similarity_zero() -> None:
    made = EmbeddingTable(SymbolVocabulary(["�", "a", "b"], 0), np.array([[0, 0], [1, 0], [0, 2]], np.float32))
    assert [near.similarity for near in made.nearest(0, 2)] == [0.0, 0.0]


def test_principal_components_have_the_largest_variance() -> None:
    vectors = (RANDOM.normal(size=(60, 5)) * [5, 0.1, 3, 0.2, 1]).astype(np.float32)
    points, shares = components(vectors)
    variances = np.sort(np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64))))[::-1]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), variances[:2], rtol=1e-4)
    assert shares == pytest.approx(variances[:2] / variances.sum(), rel=1e-4)
    for axis in range(2):
        assert points[np.abs(points[:, axis]).argmax(), axis] > 0


def test_projection_preserves_distances_in_a_plane() -> None:
    plane = RANDOM.normal(size=(9, 2)) @ np.linalg.qr(RANDOM.normal(size=(7, 2)))[0].T
    points, _ = components(plane.astype(np.float32))
    for ours, theirs in zip(points[1:] - points[:-1], plane[1:] - plane[:-1], strict=True):
        assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (5, 1), (1, 1)])
def test_small_tables_can_be_drawn(shape: tuple[int, int], tmp_path: Path) -> None:
    tokens = SymbolVocabulary([f"{index}" for index in range(shape[0])])
    made = EmbeddingTable(tokens, RANDOM.normal(size=shape).astype(np.float32))
    draw_embeddings(made, [range(shape[0])], tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[:2] == (715, 990)


def test_labels_do_not_overlap_and_stay_inside() -> None:
    figure, axes = pyplot.subplots()
    points = np.random.default_rng(1).normal(size=(150, 2)).astype(np.float32)
    axes.scatter(points[:, 0], points[:, 1])
    _place_labels(axes, points, [_Label(f"word {index} $x$", "black", "normal") for index in range(150)])
    boxes = [label.get_window_extent() for label in axes.texts]
    assert 15 < len(boxes) < 150
    for index, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:index]) == 0
        assert axes.get_window_extent().count_overlaps([box]) == 1
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    assert all(axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1 for box in boxes)
    pyplot.close(figure)


def test_tokens_are_found_and_shown_in_escaped_form() -> None:
    words = EmbeddingTable(WordVocabulary(["�", "a", " the", "\n"], 0, lower_case=True), np.eye(4, dtype=np.float32))
    assert [words.shown(token) for token in range(4)] == ["'�'", "a", "' the'", "'\\n'"]
    assert words.text_tokens == [1, 2, 3]
    symbols = EmbeddingTable(SymbolVocabulary([BEGIN, INNER, END, "``", "-LRB-"]), np.eye(5, dtype=np.float32))
    assert [symbols.shown(token) for token in symbols.text_tokens] == ["'``'", "-LRB-"]
    assert {near.token for near in symbols.nearest(3, 9)} == {4}
    assert words.find("A") == 1
    assert words.find(" The") == 2
    assert words.find("nothing like this") is None
    assert words.find("b") is None
    assert EmbeddingTable(CharacterVocabulary("ab"), np.eye(2, dtype=np.float32)).find("c") is None


@pytest.fixture(scope="module")
def run() -> Path:
    return made_once("embeddings", train_synonyms) / "run"


def train_synonyms(folder: Path) -> None:
    """Train a run that learns that "good" and "fine" are the same, "bad" and "poor", "the" and "a"."""
    folder.mkdir()
    trees = [
        f"({grade} (1 {thing}) ({grade} {word}))"
        for grade, words in ((2, ("good", "fine")), (0, ("bad", "poor")))
        for word in words
        for thing in ("the", "a")
    ]
    corpus = write_treebank(folder, trees, ["(2 (2 good) (1 the))"], ["(0 (0 bad) (1 a))"])
    values = {"embedding": 8, "hidden": 8, "dropout": 0.0, "steps": 100, "learning_rate": 2e-2, "minimum_count": 1}
    train(TreeConfig(task="tree", corpus=corpus, **values), folder / "run", console=QUIET)


def test_synonyms_are_nearest_neighbours(run: Path) -> None:
    result = load_embeddings(run)[""]
    assert torch.equal(torch.from_numpy(result.vectors), load_best(run).embeddings[""])
    for one, other in (("good", "fine"), ("bad", "poor"), ("the", "a")):
        for here, there in ((one, other), (other, one)):
            token = result.find(here)
            assert token is not None
            assert result.shown(result.nearest(token, 1)[0].token) == there


def test_tokens_command_lists_neighbours_and_draws_a_chart(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "words.png"
    app(
        ["embeddings", str(run), "--token", "good", "--token", "BAD", "--neighbours", "2", "--output", str(picture)],
        standalone_mode=False,
    )
    shown = capsys.readouterr()
    good, bad = (line.split() for line in shown.out.splitlines()[1:])
    assert (good[:2], bad[:2]) == (["good", "fine"], ["bad", "poor"])
    assert len(good) == 5  # two neighbours, each with its similarity
    assert float(good[2]) > float(good[4])
    assert f"picture: {picture}" in shown.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    app(["embeddings", str(run)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:]} == {"the", "a", "good", "fine", "bad", "poor"}
    assert (run / "embeddings.png").exists()
    with pytest.raises(BadParameter, match="--token: got 'ugly'; it must be exactly one token"):
        app(["embeddings", str(run), "--token", "good", "--token", "ugly"], standalone_mode=False)
    with pytest.raises(TrainingError, match="holds no run"):
        app(["embeddings", str(tmp_path)], standalone_mode=False)


def test_language_models_have_embeddings(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc" * 400)
    chosen = TextConfig(
        task="lm", corpus=str(tmp_path / "text.txt"), layers=1, embedding=4, hidden=4, lanes=2, window=8, steps=1
    )
    train(chosen, tmp_path / "run", console=QUIET)
    result = load_embeddings(tmp_path / "run")
    assert result.keys() == {""}
    assert result[""].vectors.shape == (4, 4)


def test_encoder_decoders_have_two_embedding_tables() -> None:
    sizes = {"source_tokens": 5, "tokens": 7, "layers": 1, "embedding": 4, "hidden": 6}
    options = {"cell": "lstm", "attention": True, "bidirectional": True, "dropout": 0.0}
    network = EncoderDecoder(**sizes, **options, one_hot=False)
    assert isinstance(network, Embedder)
    shapes = {name: tuple(vectors.shape) for name, vectors in network.embeddings.items()}
    assert shapes == {"source-": (5, 4), "": (7, 4)}
    assert EncoderDecoder(**sizes, **options, one_hot=True).embeddings == {}


def test_network_without_embeddings_is_reported(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elman_training.token_embeddings.load_best", lambda run: torch.nn.Linear(2, 2))
    with pytest.raises(TrainingError, match="run: its network has no embedding"):
        load_embeddings(run)
