"""Corpora: embedded and user-supplied, with errors that name the location."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elman_training.labels.example_corpus import LabelledExample, read_labelled_examples
from elman_training.labels.python_tokens import token_classes
from elman_training.labels.tagged_text import read_labelled_text
from elman_training.language.contiguous_batches import ContiguousBatches, align_documents
from elman_training.language.text_corpus import read_text
from elman_training.splits import split_by_class
from elman_training.task import IGNORED
from elman_training.training_error import TrainingError


def test_embedded_text_is_python_and_deterministic() -> None:
    text = read_text("stdlib")
    assert len(text) > 1_000_000
    assert "def " in text
    assert text == read_text("stdlib")


def test_text_is_read_from_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first é", encoding="utf-8")
    assert read_text(str(tmp_path / "a.txt")) == "first é"
    assert read_text(str(tmp_path)) == "first é\nsecond"


def test_invalid_text_is_reported_with_its_location(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(TrainingError, match=r"latin\.txt: byte 3 is not UTF-8"):
        read_text(str(tmp_path))
    with pytest.raises(TrainingError, match="there is no such file or folder"):
        read_text(str(tmp_path / "nope"))
    (tmp_path / "empty").write_text("")
    with pytest.raises(TrainingError, match="holds no text"):
        read_text(str(tmp_path / "empty"))


def test_labelled_examples_from_folder_and_tsv(tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    (folder / "Czech.txt").write_text("Abl\nAdsit\n\n", encoding="utf-8")
    (folder / "German.txt").write_text("Bähr\n", encoding="utf-8")
    expected = [LabelledExample("Abl", "Czech"), LabelledExample("Adsit", "Czech"), LabelledExample("Bähr", "German")]
    assert read_labelled_examples(str(folder)) == expected
    tsv = tmp_path / "names.tsv"
    tsv.write_text("".join(f"{example.text}\t{example.label}\n" for example in expected), encoding="utf-8")
    assert read_labelled_examples(str(tsv)) == expected


def test_invalid_labelled_examples_are_rejected(tmp_path: Path) -> None:
    tsv = tmp_path / "bad.tsv"
    tsv.write_text("good\tlabel\nno label here\n")
    with pytest.raises(TrainingError, match=r"bad\.tsv:2: expected text TAB label"):
        read_labelled_examples(str(tsv))
    tsv.write_text("good\tlabel\n")
    with pytest.raises(TrainingError, match="at least two classes"):
        read_labelled_examples(str(tsv))


def test_classes_of_embedded_examples_have_a_minimum_size() -> None:
    counts = Counter(example.label for example in read_labelled_examples("stdlib"))
    assert len(counts) == 10
    assert min(counts.values()) >= 50


def test_python_tokens_are_classified() -> None:
    source = 'def f(x):  # no\n    return "é" + x * 2\n'
    classes = token_classes(source)
    assert len(classes) == len(source)
    result = {source[start:end]: {*classes[start:end]} for start, end in ((0, 3), (4, 5), (11, 15), (27, 30), (37, 38))}
    assert result == {"def": {"keyword"}, "f": {"name"}, "# no": {"comment"}, '"é"': {"string"}, "2": {"number"}}
    assert classes[3] == classes[15] == "space"
    assert classes[5] == "operator"


def test_labelled_text_from_tsv_unescapes(tmp_path: Path) -> None:
    tsv = tmp_path / "tags.tsv"
    tsv.write_text("ab\\n\tword\n\\t\tspace\n\\\\n\tslash\n")
    labelled = read_labelled_text(str(tsv))
    assert labelled.text == "ab\n\t\\n"
    assert labelled.labels == ["word"] * 3 + ["space"] + ["slash"] * 2
    assert labelled.starts == [0]
    tsv.write_text("a\tx\nb\ty\n\n\nc\tx\n\n")
    assert read_labelled_text(str(tsv)).starts == [0, 2]


def test_python_is_split_into_documents_at_statements() -> None:
    labelled = read_labelled_text("stdlib", limit=200_000)
    assert labelled.starts[0] == 0
    assert len(labelled.starts) > 50
    for start in labelled.starts[1:]:
        assert labelled.text[start - 1] == "\n"
        assert not labelled.text[start].isspace()


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 5), st.integers(0, 2))
def test_document_streams_restart_at_each_document_and_lose_nothing(sizes: list[int], window: int, epoch: int) -> None:
    length = sum(sizes)
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    inputs, targets, aligned = align_documents(np.arange(1, length + 1), np.arange(length), starts, window)
    assert inputs[targets != IGNORED].tolist() == list(range(1, length + 1))
    assert targets[aligned].tolist() == starts
    made = ContiguousBatches(inputs, targets, rows=1, window=window, seed=0, starts=aligned)
    seen = []
    for index in range(made.windows_per_epoch):
        result = made.window(epoch * made.windows_per_epoch + index)
        kept = result.targets[0][result.targets[0] != IGNORED].tolist()
        seen.extend(kept)
        assert bool(result.fresh[0]) == (kept[0] in starts or index == 0)
    assert sorted(seen) == list(range(length))


def test_streams_restart_occasionally() -> None:
    made = ContiguousBatches(np.arange(10_000), np.arange(10_000), rows=10, window=10, seed=0, restart=0.1)
    share = np.mean([made.window(index).fresh.mean() for index in range(1, 99)])
    assert 0.05 < share < 0.15


def test_labelled_text_from_python_files(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_text("x = (\n")
    labelled = read_labelled_text(str(tmp_path))
    assert labelled.text == "x = 1\n"
    (tmp_path / "good.py").unlink()
    with pytest.raises(TrainingError, match="holds no Python files to label"):
        read_labelled_text(str(tmp_path))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 200), st.integers(0, 3))
def test_streams_are_contiguous_and_cover_the_text(lanes: int, window: int, extra: int, epochs: int) -> None:
    length = lanes * window + extra
    text = np.arange(length)
    made = ContiguousBatches(text, text + 1, rows=lanes, window=window, seed=0)
    for epoch in range(epochs + 1):
        first = epoch * made.windows_per_epoch
        windows = [made.window(first + index) for index in range(made.windows_per_epoch)]
        assert [set(result.fresh.tolist()) for result in windows] == [{True}] + [{False}] * (len(windows) - 1)
        rows = np.concatenate([result.inputs for result in windows], axis=1)
        assert (np.diff(rows, axis=1) % length == 1 % length).all()  # Each stream continues where it stopped.
        assert len(np.unique(rows)) == rows.size  # No token is read twice in an epoch.
        assert rows.size > length - lanes * window - lanes
        for result in windows:
            assert (result.targets == result.inputs + 1).all()


def test_text_shorter_than_its_streams_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"got 10 steps; 4 rows .* need at least 12"):
        ContiguousBatches(np.arange(10), np.arange(10), rows=4, window=3, seed=0)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.integers(0, 5))
def test_split_is_stratified_and_a_partition(sizes: list[int], seed: int) -> None:
    examples = [
        LabelledExample(f"{label}-{index}", str(label)) for label, size in enumerate(sizes) for index in range(size)
    ]
    training, held_out = split_by_class(examples, attrgetter("label"), 0.1, seed)
    assert sorted(example.text for example in training + held_out) == sorted(example.text for example in examples)
    counts = Counter(example.label for example in held_out)
    assert all(counts[str(label)] == max(1, round(size * 0.1)) for label, size in enumerate(sizes))
    assert split_by_class(examples, attrgetter("label"), 0.1, seed) == (training, held_out)


def test_limit_cuts_labelled_text_between_documents(tmp_path: Path) -> None:
    path = tmp_path / "tags.tsv"
    path.write_text("abc\tone\nde\ttwo\n\n" * 4)
    for limit, documents in ((1, 1), (5, 1), (6, 2), (20, 4), (None, 4)):
        labelled = read_labelled_text(str(path), limit)
        assert labelled.text == "abcde" * documents
        assert labelled.starts == [5 * place for place in range(documents)]
