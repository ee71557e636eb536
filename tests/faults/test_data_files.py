"""Data files as strangers have them: headings, labels with white space, stray files in folders. What is left out of the
training is said, and the classes are printed before it begins."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from elman_training import FeaturesConfig, TextConfig, TrainingError, TreeConfig, train
from elman_training.class_labels import check_labels, clean_label
from elman_training.encoder_decoder.pair_corpus import read_pairs
from elman_training.families import make_task
from elman_training.features.table_corpus import read_table
from elman_training.labels.example_corpus import LabelledExample, read_labelled_examples
from elman_training.labels.tagged_text import read_labelled_text
from elman_training.language.text_corpus import read_text
from elman_training.trees.treebank import read_treebank

ROWS = "5.1,3.5,1.4,cat\n4.9,3.0,1.4,dog\n6.3,2.5,5.0,cat\n5.8,2.7,5.1,dog\n"


def table(folder: Path, content: str, name: str = "table.csv") -> tuple[Any, list[str]]:
    (folder / name).write_text(content, encoding="utf-8")
    notes: list[str] = []
    return read_table(str(folder / name), notes.append), notes


@pytest.mark.parametrize(
    ("headings", "names"),
    [
        ("0,1,2,label", ("0", "1", "2")),
        ("1,2,3,label", ("1", "2", "3")),
        ("0,1,2,3", ("0", "1", "2")),
        ("1999,2000,2001,city", ("1999", "2000", "2001")),
        ("wide,2,long,Species", ("wide", "2", "long")),
        ("wide,high,long,beast", ("wide", "high", "long")),
        (" wide , high,long, kind", ("wide", "high", "long")),
    ],
)
def test_headings_of_numbers_are_no_example(headings: str, names: tuple[str, ...], tmp_path: Path) -> None:
    read, notes = table(tmp_path, f"{headings}\n{ROWS}")
    assert read.features == names
    assert read.labels == ["cat", "dog", "cat", "dog"]
    (note,) = notes
    assert note.startswith(f"{tmp_path}/table.csv:1: read as headings: ")


@pytest.mark.parametrize("first", ["0,1,2,cat", "7,8,9,dog", "0.5,1,2,bird", "1,1,1,bird"])
def test_a_first_row_of_numbers_is_an_example(first: str, tmp_path: Path) -> None:
    read, notes = table(tmp_path, f"{first}\n{ROWS}")
    assert read.values[0].tolist() == [float(cell) for cell in first.split(",")[:3]]
    assert read.labels[0] == first.rpartition(",")[2]
    assert notes == []


def test_a_first_row_without_numbers_whose_label_occurs_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"table\.csv:1: column 1: expected a finite number, found 'NA'"):
        table(tmp_path, f"NA,NA,NA,cat\n{ROWS}")


@pytest.mark.parametrize("heading", ["", "Unnamed: 0"])
def test_the_index_that_pandas_writes_is_refused(heading: str, tmp_path: Path) -> None:
    rows = "".join(f"{row},{line}\n" for row, line in enumerate(ROWS.splitlines()))
    with pytest.raises(
        TrainingError, match=r"table\.csv:1: column 1 has no heading and counts the rows, .* index=False"
    ):
        table(tmp_path, f"{heading},a,b,c,label\n{rows}")
    read, _ = table(tmp_path, f"{heading},a,b,label\n{ROWS}")
    assert len(read.features) == 3


def test_labels_of_tables_have_no_white_space_around_them(tmp_path: Path) -> None:
    read, _ = table(tmp_path, '1,2,"cat"\n3,4," cat"\n5,6, "cat "\n7,8,\u00a0dog\ufeff\n')
    assert read.labels == ["cat", "cat", "cat", "dog"]
    read, _ = table(tmp_path, "1\t2\tcat \n3\t4\tdog\n", "TABLE.TSV")
    assert read.labels == ["cat", "dog"]
    with pytest.raises(TrainingError, match=r"table\.csv:2: has no label in its last column"):
        table(tmp_path, "1,2,cat\n3,4,  \n")


def test_labels_of_arrays_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez(path, values=np.zeros((3, 2)), labels=np.array([b"cat ", b" dog", b"cat"]))
    assert read_table(str(path)).labels == ["cat", "dog", "cat"]
    for labels in (np.array([1.0, np.nan, 2.0]), np.array(["cat", " ", "dog"])):
        np.savez(path, values=np.zeros((3, 2)), labels=labels)
        with pytest.raises(TrainingError, match=r'row 1 of "labels" has no label'):
            read_table(str(path))


@pytest.mark.parametrize(
    "headings", ["sentence\tlabel", "Text\tCategory", "review\tis_positive", "whatever\tsentiment"]
)
def test_headings_of_texts_are_no_example(headings: str, tmp_path: Path) -> None:
    path = tmp_path / "examples.tsv"
    path.write_text(f"\n{headings}\ngood film\tpos \nbad film\t neg\n")
    notes: list[str] = []
    assert read_labelled_examples(str(path), notes.append) == [
        LabelledExample("good film", "pos"),
        LabelledExample("bad film", "neg"),
    ]
    assert notes == [f"{path}:2: read as headings: {headings!r}"]


def test_a_first_text_whose_label_occurs_again_is_an_example(tmp_path: Path) -> None:
    path = tmp_path / "examples.tsv"
    path.write_text("name\tlabel\nx\tlabel\ny\tother\n")
    assert len(read_labelled_examples(str(path))) == 3


def test_columns_besides_text_and_label_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.tsv"
    path.write_text("id\tsentence\tlabel\n1\tgood\tpos\n2\tbad\tneg\n")
    with pytest.raises(TrainingError, match=r"examples\.tsv: got 3 columns in every line; expected text TAB label"):
        read_labelled_examples(str(path))
    path.write_text("good\tpos\n  \tneg\n")
    with pytest.raises(TrainingError, match=r"examples\.tsv:2: expected text TAB label"):
        read_labelled_examples(str(path))


def test_headings_of_pieces_are_no_piece(tmp_path: Path) -> None:
    path = tmp_path / "tags.tsv"
    path.write_text("token\ttag\nab\tx\nc\t y \n\nd\tx\n")
    notes: list[str] = []
    read = read_labelled_text(str(path), note=notes.append)
    assert (read.text, read.labels, read.starts) == ("abcd", ["x", "x", "y", "x"], [0, 3])
    assert notes == [f"{path}:1: read as headings: 'token\\ttag'"]


@pytest.mark.parametrize("headings", ["source\ttarget", "English\tGerman", "word\tpronunciation"])
def test_headings_of_pairs_are_no_pair(headings: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(f"{headings}\n" + "".join(f"{letter}\t{letter * 2}\n" for letter in "abcdef"))
    notes: list[str] = []
    corpus = read_pairs(str(path), held_out=0.1, note=notes.append)
    assert {pair.source for pair in (*corpus.training, *corpus.validation, *corpus.test)} == set("abcdef")
    assert notes == [f"{path}:1: read as headings: {headings!r}"]


def test_what_a_folder_of_classes_leaves_out_is_said(tmp_path: Path) -> None:
    files = {
        "Pos.TXT": "good\nfine\n", "neg.txt": "bad\n", "neu.tsv": "so so\n", "none.txt": " \n\n",
        "README.txt": "About\n", "license.txt": "Free\n", "._neg.txt": "\0\5", ".DS_Store": "\0",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "more.txt").mkdir()
    notes: list[str] = []
    found = read_labelled_examples(str(tmp_path), notes.append)
    assert {(example.text, example.label) for example in found} == {("good", "Pos"), ("fine", "Pos"), ("bad", "neg")}
    assert notes == [
        f"{tmp_path}: left out: .DS_Store (hidden), ._neg.txt (hidden), README.txt (about the others), license.txt "
        "(about the others), more.txt (not a file), neu.tsv (not named CLASS.txt), none.txt (holds no example)"
    ]


def test_hidden_files_are_not_learned_from(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "old.py").write_text("print 'x'\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"\xff")
    (tmp_path / ".git" / "hook.py").write_text("y = 2\n")
    notes: list[str] = []
    assert "text" in read_text(str(tmp_path), notes.append)
    assert read_labelled_text(str(tmp_path), note=notes.append).text.count("=") == 1
    assert notes[0] == f"{tmp_path}: left out: .git/config, .git/hook.py"
    assert notes[1].startswith(f"{tmp_path}: left out: .git/hook.py")


def test_trees_that_are_left_out_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("(1 a)\n(0 b)\n")
    (tmp_path / "dev.txt").write_text("(1 a)\n")
    (tmp_path / "test.txt").write_text("(0 c)\n")
    notes: list[str] = []
    assert len(read_treebank(str(tmp_path), notes.append).training) == 1
    assert notes == [f"{tmp_path / 'train.txt'}: left out: 1 trees that are in dev.txt or test.txt, too"]


@pytest.mark.parametrize(
    "twins",
    [("1", "1.0"), ("1", "01"), ("0.5", ".50"), ("1e3", "1000"), ("New York", "New  York"),
     ("New York", "New\u00a0York"), ("caf\u00e9", "cafe\u0301"), ("cat", "c\u200bat"), ("cat", '"cat"')],
)  # fmt: skip
def test_labels_that_are_most_probably_one_are_refused(twins: tuple[str, str]) -> None:
    counts = {twins[0]: 7, "other": 3, twins[1]: 2}
    with pytest.raises(TrainingError) as caught:
        check_labels("table.csv", counts, lambda _: None)
    assert f"table.csv: got the labels {twins[0]!r} 7, {twins[1]!r} 2; they are most probably one class" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "others", [("1", "2"), ("a", "b"), ("v1", "v1.0"), ("nan", "NaN."), ("-1", "1"), ("1_0", "10")]
)
def test_other_labels_are_classes(others: tuple[str, str]) -> None:
    check_labels("table.csv", dict.fromkeys(others, 2), lambda _: None)


def test_labels_are_stripped_of_what_nobody_sees() -> None:
    assert clean_label("\ufeff cat\u00a0\u200b\t") == "cat"
    assert clean_label(" \u200b ") == ""


def test_classes_are_told_with_what_is_odd_about_them() -> None:
    notes: list[str] = []
    check_labels("c", {"Polish": 5, "polish": 4, "label": 1}, notes.append)
    assert notes == [
        "3 classes: 'Polish' 5, 'polish' 4, 'label' 1",
        "classes that differ in upper and lower case alone: 'Polish', 'polish'",
        "classes that occur once: 'label'",
    ]
    check_labels("c", {f"class {number}": 2 for number in range(40)}, notes.append)
    assert notes[-1].startswith("40 classes: 'class 0' 2, ")
    assert notes[-1].endswith(" and 10 more")


def test_the_parts_of_a_corpus_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="got the classes 'train', 'Test', which are the parts of a corpus"):
        check_labels("c", {"train": 9, "Test": 3}, lambda _: None)


def test_training_prints_classes_and_counts_before_it_begins(tmp_path: Path) -> None:
    path, output = tmp_path / "table.csv", StringIO()
    path.write_text("0,1,[red]\n" + "1,2,[red]\n3,4,dog\n" * 4)
    config = FeaturesConfig(task="features", corpus=str(path), steps=1, layers=1, hidden=2)
    train(config, tmp_path / "run", console=Console(file=output, markup=True, width=40))
    assert output.getvalue().splitlines()[0] == "2 classes: '[red]' 5, 'dog' 4"


def test_every_task_with_labels_counts_them(tmp_path: Path) -> None:
    names, notes = tmp_path / "names.tsv", list[str]()
    names.write_text("name\tclass\n" + "ab\tx\ncd\ty\n" * 4)
    make_task(TextConfig(task="classify", corpus=str(names)), notes.append)
    assert notes == [f"{names}:1: read as headings: 'name\\tclass'", "2 classes: 'x' 4, 'y' 4"]
    names.write_text("token\ttag\n" + "ab\tx\ncd\ty\n\n" * 80)
    make_task(TextConfig(task="tag", corpus=str(names), lanes=1, window=2), notes.append)
    assert notes[3] == "2 classes: 'x' 160, 'y' 160"
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}.txt").write_text(f"(1 (0 {part}) (1 b))\n")
    make_task(TreeConfig(task="tree", corpus=str(tmp_path)), notes.append)
    assert notes[4:] == ["2 classes: '0' 3, '1' 6"]
