"""Classification of texts: treebanks as corpora, bidirectional networks, and test metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from elman_bundle import load_bundle
from elman_export import ExportError, export_run
from elman_training import PRESETS, TextConfig, TrainingError, resume, train
from elman_training.cells.cell import Cell
from elman_training.checkpoint import BEST, LAST, RESULT, load_best, load_config, load_labels, load_vocabularies
from elman_training.labels.bidirectional_classifier import BidirectionalClassifier
from elman_training.labels.example_corpus import LabelledExample
from elman_training.labels.example_parts import read_example_parts
from elman_training.length_buckets import make_buckets
from tests.support.paths import SHARED_DATA
from tests.support.serving import serving

QUIET = Console(quiet=True)
GOOD = "(4 (2 a) (3 (3 (3 good) (2 (2 old) (2 film))) (2 .)))"
BAD = "(1 (2 a) (1 (0 (1 bad) (2 film)) (2 .)))"
HELD_OUT = BAD.replace("a", "the", 1)


@pytest.fixture
def treebank(tmp_path: Path) -> Path:
    folder = tmp_path / "treebank"
    folder.mkdir()
    (folder / "train.txt").write_text(f"{GOOD}\n{BAD}\n{HELD_OUT}\n{GOOD.replace('old', 'new')}\n" * 8)
    (folder / "dev.txt").write_text(f"{GOOD.replace('a', 'the', 1)}\n{HELD_OUT}\n")
    (folder / "test.txt").write_text(
        f"{GOOD.replace('film', 'play')}\n{BAD.replace('film', 'play')}\n{BAD.replace('a', 'no', 1)}\n"
    )
    return folder


def config(corpus: Path | str, **changes: object) -> TextConfig:
    values = {
        "cell": "lstm", "layers": 1, "embedding": 8, "hidden": 12, "dropout": 0.1, "lanes": 8, "steps": 60,
        "learning_rate": 2e-2, "warmup_steps": 5, "validate_every": 20, "vocabulary": "symbols", "minimum_count": 1,
    }  # fmt: skip
    return TextConfig(task="classify", corpus=str(corpus), **{**values, **changes})


def test_treebank_keeps_its_own_splits(treebank: Path) -> None:
    parts = read_example_parts(config(treebank))
    # Examples of dev.txt and test.txt are excluded from training, and duplicates are merged.
    assert parts.training == [
        LabelledExample("a good old film .", "4"),
        LabelledExample("a bad film .", "1"),
        LabelledExample("a good new film .", "4"),
    ]
    assert [example.label for example in parts.held_out] == ["4", "1"]
    assert [example.text for example in parts.test] == ["a good old play .", "a bad play .", "no bad film ."]


def test_polarity_excludes_neutral_examples(treebank: Path) -> None:
    parts = read_example_parts(config(treebank, polarity=True, phrases=True))
    actual = {example.text: example.label for example in parts.training}
    assert actual["a good old film ."] == actual["good"] == actual["good old film"] == "positive"
    assert len(actual) == len(parts.training)
    assert not {"a", "old film", ".", "a film"} & actual.keys()
    # Only whole sentences are evaluated.
    assert [(example.text, example.label) for example in parts.held_out] == [
        ("the good old film .", "positive"),
        ("the bad film .", "negative"),
    ]


def test_invalid_treebank_is_reported_with_its_location(treebank: Path) -> None:
    (treebank / "test.txt").write_text("(NP (DT the) (NN film))\n")
    with pytest.raises(TrainingError, match="treebank: got the label 'NP'; polarity needs the labels 0 to 4"):
        read_example_parts(config(treebank, polarity=True))
    with pytest.raises(TrainingError, match=r"test\.txt: the label 'NP' does not occur in train\.txt"):
        read_example_parts(config(treebank, phrases=True))
    (treebank / "test.txt").write_text("(2 (2 a) (2 film))\n")
    with pytest.raises(TrainingError, match=r"test\.txt: holds no example to measure on"):
        read_example_parts(config(treebank, phrases=True, polarity=True))
    (treebank / "train.txt").write_text(f"{GOOD}\n((\n")
    with pytest.raises(TrainingError, match=r"train\.txt: line 2, column 2: a bracket without a label"):
        read_example_parts(config(treebank))


@pytest.mark.parametrize("name", ["phrases", "polarity"])
def test_treebank_options_are_rejected_for_other_corpora(name: str, tmp_path: Path) -> None:
    (tmp_path / "examples.tsv").write_text("good film\tyes\nbad film\tno\n")
    with pytest.raises(TrainingError, match=rf"examples\.tsv: {name} needs a treebank: a folder with train\.txt"):
        read_example_parts(config(tmp_path / "examples.tsv", **{name: True}))


@pytest.mark.parametrize("name", ["bidirectional", "phrases", "polarity"])
def test_classification_options_are_rejected_for_other_tasks(name: str) -> None:
    with pytest.raises(ValidationError, match="only the task classify has it"):
        TextConfig(**{**PRESETS["python"], name: True})


@given(st.lists(st.integers(1, 40), min_size=1, max_size=300), st.integers(1, 30), st.integers(0, 3))
def test_buckets_contain_every_example_once(lengths: list[int], size: int, seed: int) -> None:
    batches = make_buckets(lengths, size, np.random.default_rng(seed))
    assert len(batches) == -(-len(lengths) // size)
    assert all(0 < len(batch) <= size for batch in batches)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))


def test_buckets_are_shuffled_and_contain_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 5000).tolist()
    batches = make_buckets(lengths, 32, np.random.default_rng(1))
    longest = [max(lengths[index] for index in batch) for batch in batches]
    padded = sum(most * len(batch) for most, batch in zip(longest, batches, strict=True))
    assert sum(lengths) > 0.95 * padded
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3
    other = make_buckets(lengths, 32, np.random.default_rng(2))
    assert {*map(tuple, batches)} != {*map(tuple, other)}


def network(cell: str, layers: int) -> BidirectionalClassifier:
    torch.manual_seed(3)
    return BidirectionalClassifier(
        cell=cell, tokens=20, outputs=3, layers=layers, embedding=5, hidden=7, dropout=0.5
    ).eval()


def read_by_steps(model: BidirectionalClassifier, tokens: torch.Tensor) -> torch.Tensor:
    """Return the features [4H] of one text [T], computed step by step in each direction."""

    def run(layer: Cell, inputs: torch.Tensor) -> torch.Tensor:
        state, shown = layer.initial_state(1), []
        for row in inputs:
            output, state = layer.step(row[None], state)
            shown.append(output[0])
        return torch.stack(shown)

    shown = model.embedding(tokens)
    for ahead, back in zip(model.forwards, model.backwards, strict=True):
        onward, backward = run(ahead, shown), run(back, shown.flip(0)).flip(0)
        shown = torch.cat([onward, backward], dim=1)
    return torch.cat([onward[-1], backward[0], shown.max(0).values])


@torch.no_grad()
@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_bidirectional_forward_equals_steps_in_both_directions(cell: str, layers: int) -> None:
    model = network(cell, layers)
    lengths = torch.tensor([9, 1, 4, 8])
    tokens = torch.randint(1, 20, (4, 9), generator=torch.Generator().manual_seed(0))
    together = model.features(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = read_by_steps(model, tokens[row, :length])
        torch.testing.assert_close(together[row], expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_padding_does_not_change_the_result(cell: str) -> None:
    model = network(cell, 2)
    lengths = torch.tensor([6, 1, 4])
    tokens = torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    short = model.last_logits(tokens, lengths)
    # Longer padding of arbitrary tokens does not change a bit.
    padded = torch.randint(0, 20, (3, 11), generator=torch.Generator().manual_seed(1))
    real = torch.arange(11) < lengths[:, None]
    padded[:, :6] = torch.where(real[:, :6], tokens, padded[:, :6])
    assert torch.equal(model.last_logits(padded, lengths), short)


@pytest.mark.parametrize(
    "bidirectional", [False, pytest.param(True, marks=pytest.mark.slow("trains a second classifier"))]
)
def test_sentiment_model_learns_resumes_and_is_tested(treebank: Path, tmp_path: Path, bidirectional: bool) -> None:
    chosen = config(treebank, polarity=True, phrases=True, bidirectional=bidirectional)
    result = train(chosen, tmp_path / "unbroken", console=QUIET)
    assert result.validation.accuracy == result.measured["test_accuracy"] == 1.0
    assert result.measured["test_majority"] == 2 / 3
    written = json.loads((tmp_path / "unbroken" / RESULT).read_text())
    assert written["test_accuracy"] == 1.0
    train(chosen, tmp_path / "broken", console=QUIET, stop_after=30)
    assert "test_accuracy" not in json.loads((tmp_path / "broken" / RESULT).read_text())
    resume(tmp_path / "broken", console=QUIET)
    for name in (LAST, BEST, RESULT):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    assert isinstance(load_best(tmp_path / "broken"), BidirectionalClassifier) == bidirectional


@pytest.mark.slow("reads a whole treebank")
@pytest.mark.shared_data
@pytest.mark.parametrize("preset", ["sentiment", "sentiment-bidirectional"])
def test_presets_match_their_treebank(preset: str, tmp_path: Path) -> None:
    path = SHARED_DATA / "sst"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    small = {**PRESETS[preset], "hidden": 8, "embedding": 8}
    result = train(TextConfig(**small, corpus=str(path)), tmp_path / "run", console=QUIET, stop_after=2)
    assert result.step == 2
    parts = read_example_parts(TextConfig(**small, corpus=str(path)))
    assert (len(parts.held_out), len(parts.test)) == (872, 1821)  # as in the literature


def probabilities(run: Path, text: str) -> dict[str, float]:
    """Return the probability of each class, computed by torch."""
    model = load_best(run)
    tokens = torch.from_numpy(load_vocabularies(run, load_config(run))[""].encode(text))
    with torch.no_grad():
        actual = model.last_logits(tokens[None], torch.tensor([len(tokens)]))[0].double().softmax(0)  # type: ignore[operator]
    return dict(zip(load_labels(run) or (), actual.tolist(), strict=True))


@pytest.mark.parametrize(
    "bidirectional",
    [False, pytest.param(True, marks=pytest.mark.slow("trains and exports a second classifier"))],
)
async def test_served_probabilities_equal_those_of_torch(treebank: Path, tmp_path: Path, bidirectional: bool) -> None:
    run = tmp_path / "run"
    chosen = config(treebank, polarity=True, phrases=True, bidirectional=bidirectional, steps=10, lower_case=True)
    train(chosen, run, console=QUIET)
    export_run(run, tmp_path / "bundle", name="judge")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.spec.HasField("encoder") == bidirectional
    assert bundle.spec.metrics["test_accuracy"] >= 0
    texts = ["A good film .", "bad", "a a a a the film bad , good unknown", "the new film . " * 40]
    async with serving(bundle) as running:
        lone = [await running.client.classify(text) for text in texts]
        together = await asyncio.gather(*(running.client.classify(text) for text in texts * 8))
    assert together == lone * 8  # bit-exact, independent of the batch
    for text, prediction in zip(texts, lone, strict=True):
        expected = probabilities(run, text)
        assert {label.name: label.probability for label in prediction.labels} == pytest.approx(expected, abs=1e-6)


def test_bidirectional_models_cannot_be_quantized(treebank: Path, tmp_path: Path) -> None:
    train(config(treebank, bidirectional=True, steps=1, phrases=True), tmp_path / "run", console=QUIET)
    with pytest.raises(ExportError, match="run: only networks that go step by step become int8, not 1 x bidir"):
        export_run(tmp_path / "run", tmp_path / "bundle", name="judge", quantize="int8")
    assert not (tmp_path / "bundle").exists()
