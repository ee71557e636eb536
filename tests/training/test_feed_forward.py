"""Classification of numeric tables: parsing, feature scaling, training, and serving unscaled numbers."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from elman_bundle import load_bundle
from elman_export import ExportError, export_run
from elman_training import PRESETS, FeaturesConfig, TrainingError, resume, train
from elman_training.checkpoint import BEST, LAST, RESULT, load_best, load_features, load_labels
from elman_training.features.features_task import FeaturesTask
from elman_training.features.feed_forward_network import FeedForwardNetwork
from elman_training.features.table_corpus import Table, read_table
from tests.support.serving import serving

QUIET = Console(quiet=True)


@pytest.fixture
def iris(tmp_path: Path) -> Path:
    """Three kinds of flower with different petals and sepals; the last feature is constant."""
    random = np.random.default_rng(0)
    lines = ["petal,sepal,leaves,kind"]
    for kind, petal, sepal in (("small", 1.0, 2000.0), ("wide", 4.0, 2000.0), ("long", 4.0, 9000.0)):
        lines += [f"{petal + random.normal() / 3:.3f},{sepal + 300 * random.normal():.1f},2,{kind}" for _ in range(40)]
    path = tmp_path / "iris.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def config(corpus: Path | str, **changes: object) -> FeaturesConfig:
    values = {"layers": 1, "hidden": 16, "lanes": 16, "steps": 80, "learning_rate": 2e-2, "validate_every": 20}
    return FeaturesConfig(task="features", corpus=str(corpus), **{**values, **changes})  # type: ignore[arg-type]


def test_tables_are_read_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('\ufeffwide,"long, in cm",kind\n1,2.5,"a,b"\n\n-3e2,4,c\n', encoding="utf-8")
    table = read_table(str(path))
    assert table.values.tolist() == [[1.0, 2.5], [-300.0, 4.0]]
    assert table.values.dtype == np.float32
    assert table.labels == ["a,b", "c"]
    assert table.features == ("wide", "long, in cm")
    path = tmp_path / "table.tsv"
    path.write_text("1\t2\tyes\n3\t4\tno\n")
    assert read_table(str(path)).features == ("column 1", "column 2")
    assert read_table(str(path)).labels == ["yes", "no"]


def test_tables_are_read_from_arrays(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez(path, values=np.arange(24, dtype=np.uint8).reshape(3, 2, 4), labels=np.array([7, 8, 7]))
    table = read_table(str(path))
    assert table.values.tolist() == np.arange(24.0).reshape(3, 8).tolist()
    assert table.labels == ["7", "8", "7"]
    assert len(table.features) == 8


@pytest.mark.parametrize(
    ("content", "error_message"),
    [
        ("a,b,label\n1,2,x\n1,two,y\n", r"table\.csv:3: b: expected a finite number, found 'two'"),
        ("a,b,label\n1,2,x\n1,nan,y\n", r"table\.csv:3: b: expected a finite number, found 'nan'"),
        ("1,2,x\n1,1e39,y\n", r"table\.csv:2: column 2: expected a finite number, found '1e39'"),
        ("1,2,x\n1,y\n", r"table\.csv:2: expected 2 numbers and a label, found 2 columns"),
        ("1,2,x\n1,2,3,y\n", r"table\.csv:2: expected 2 numbers and a label, found 4 columns"),
        ("1,2,x\n1,2,\n", r"table\.csv:2: has no label in its last column"),
        ("1,2,x\n3,4,x\n", r"table\.csv: classification needs examples of at least two classes"),
        ("a,b\n", r"table\.csv: holds no rows of numbers and a label"),
        ("", r"table\.csv: holds no rows of numbers and a label"),
        ('1,"2,x\n', r"table\.csv: cannot be read as a table: unexpected end of data"),
        (b"\xff1,2,x\n", r"table\.csv: byte 0 is not UTF-8"),
    ],
)
def test_invalid_table_is_reported_with_its_location(content: str | bytes, error_message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TrainingError, match=error_message):
        read_table(str(path))


def test_invalid_table_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nowhere\.csv: there is no such file \(the embedded corpus is call"):
        read_table(str(tmp_path / "nowhere.csv"))
    with pytest.raises(TrainingError, match=r"is no \.csv, \.tsv or \.npz file"):
        read_table(str(tmp_path))
    path = tmp_path / "table.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(TrainingError, match=r"table\.npz: cannot be read as \.npz"):
        read_table(str(path))
    np.savez(path, x=np.zeros((2, 2)))
    with pytest.raises(TrainingError, match=r'needs the arrays "values" \[N, \.\.\.\] and "labels" \[N\]'):
        read_table(str(path))
    np.savez(path, values=np.zeros((2, 2)), labels=np.zeros(3))
    with pytest.raises(TrainingError, match=r"but they are float64 \[2, 2\] and \[3\]"):
        read_table(str(path))
    np.savez(path, values=np.array([[0.0], [np.inf]]), labels=np.arange(2))
    with pytest.raises(TrainingError, match=r'row 1 of "values" is not finite'):
        read_table(str(path))
    np.savez(path, values=np.array([[{}]]), labels=np.arange(1))
    with pytest.raises(TrainingError, match=r"table\.npz: cannot be read as \.npz: Object arrays"):
        read_table(str(path))


def test_splits_are_disjoint_and_contain_every_class() -> None:
    labels = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    table = Table(np.arange(100, dtype=np.float32)[:, None], labels, ("number",))
    task = FeaturesTask(config("none", seed=3), table)
    parts = [task._training, task._held_out, task._test]
    assert sorted(np.concatenate([values[:, 0] for values, _ in parts]).tolist()) == list(range(100))
    assert [sorted(Counter(ids.tolist()).items()) for _, ids in parts] == [
        [(0, 36), (1, 22), (2, 14)],
        [(0, 4), (1, 2), (2, 2)],
        [(0, 10), (1, 6), (2, 4)],
    ]
    other = FeaturesTask(config("none", seed=4), table)
    assert {*other._test[0][:, 0].tolist()} != {*task._test[0][:, 0].tolist()}


def test_unscaled_features_are_learned_and_resumed_bit_exactly(iris: Path, tmp_path: Path) -> None:
    result = train(config(iris), tmp_path / "unbroken", console=QUIET)
    assert result.measured["test_accuracy"] > 0.9  # one feature is a thousand times larger than the other
    assert load_labels(tmp_path / "unbroken") == ("long", "small", "wide")
    assert load_features(tmp_path / "unbroken") == ("petal", "sepal", "leaves")
    train(config(iris), tmp_path / "broken", console=QUIET, stop_after=35)
    resume(tmp_path / "broken", console=QUIET)
    for name in (LAST, BEST, RESULT):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    network = load_best(tmp_path / "broken")
    assert isinstance(network, FeedForwardNetwork)
    # A feature that was constant in training has no effect.
    values = torch.tensor([[4.0, 2000.0, 2.0], [4.0, 2000.0, 1e6]])
    actual = network(values)
    assert torch.equal(actual[0], actual[1])


def test_noise_is_added_only_in_training() -> None:
    torch.manual_seed(0)
    network = FeedForwardNetwork(features=3, outputs=2, layers=1, hidden=4, dropout=0.0, input_noise=0.5)
    values = torch.ones(5, 3)
    assert not torch.equal(network(values), network(values))
    network.eval()
    assert torch.equal(network(values), network(values))


async def test_served_model_takes_unscaled_features(iris: Path, tmp_path: Path) -> None:
    train(config(iris), tmp_path / "run", console=QUIET)
    export_run(tmp_path / "run", tmp_path / "bundle", name="flowers")
    table = read_table(str(iris))
    network, labels = load_best(tmp_path / "run"), load_labels(tmp_path / "run")
    assert labels is not None
    with torch.no_grad():
        expected = network(torch.from_numpy(table.values)).double().softmax(1)
    async with serving(load_bundle(tmp_path / "bundle")) as running:
        lone = await running.client.classify(table.values[:1])
        actual = await asyncio.gather(*(running.client.classify(row[None]) for row in table.values))
    assert actual[0] == lone
    for prediction, row in zip(actual, expected, strict=True):
        probabilities = {label.name: label.probability for label in prediction.labels}
        assert probabilities == pytest.approx(dict(zip(labels, row.tolist(), strict=True)), abs=1e-6)
    right = sum(max(prediction.labels, key=lambda label: label.probability).name == label
                for prediction, label in zip(actual, table.labels, strict=True))  # fmt: skip
    assert right > 0.9 * len(table.labels)


def test_feed_forward_network_cannot_be_quantized(iris: Path, tmp_path: Path) -> None:
    train(config(iris, steps=1), tmp_path / "run", console=QUIET)
    with pytest.raises(ExportError, match="that go step by step become int8, not 1 hidden layers of 16"):
        export_run(tmp_path / "run", tmp_path / "bundle", name="flowers", quantize="int8")


@pytest.mark.slow("trains a whole preset")
def test_digits_preset_reaches_its_floor(tmp_path: Path) -> None:
    """Train the whole preset, which takes seconds."""
    table = read_table("digits")
    assert table.values.shape == (1797, 64)
    assert table.values.min() == 0
    assert table.values.max() == 16
    result = train(FeaturesConfig(**PRESETS["digits"]), tmp_path / "run", console=QUIET)
    assert result.measured["test_accuracy"] >= 0.97
    assert round(result.measured["test_majority"] * 359) in range(30, 42)
