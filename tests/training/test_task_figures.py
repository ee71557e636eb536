"""`python -m benchmarks tasks`: metrics of training runs compared with their floors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import app
from benchmarks.cases.tasks import FIGURES, gather_tasks
from benchmarks.processes.worker import MeasurementError
from typer.testing import CliRunner

from elman_training import PRESETS


def make_run(folder: Path, preset: str | None, *, finished: bool = True, seed: int = 0, **figures: float) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"preset": preset, "seed": seed, "task": "classify"}))
    result = {"finished": finished, "parameters": 2_200_000, "step": 10, **figures}
    (folder / "result.json").write_text(json.dumps(result))
    records: list[dict[str, Any]] = [{"step": 5, "nats": 1.0, "seconds": 30.0}, {"step": 10, "seconds": 90.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_every_metric_is_compared_with_its_floor(tmp_path: Path) -> None:
    rows = gather_tasks(
        [
            make_run(tmp_path / "a", "sentiment", seed=3, test_accuracy=0.8, validation_accuracy=0.1),
            make_run(tmp_path / "b", "phonemes", test_word_error_rate=0.3, test_phoneme_error_rate=0.1),
        ]
    )
    assert rows[0] == {
        "preset": "sentiment",
        "metric": "test_accuracy",
        "value": 0.8,
        "floor": 0.78,
        "lower_is_better": False,
        "reached": True,
        "minutes": 1.5,
        "parameters": 2_200_000,
        "seed": 3,
    }
    # Lower error rates are better.
    assert [(row["metric"], row["reached"]) for row in rows[1:]] == [
        ("test_word_error_rate", True),
        ("test_phoneme_error_rate", False),
    ]


def test_metric_without_floor_is_neither_reached_nor_missed(tmp_path: Path) -> None:
    answered = {figure.metric: 0.5 for figure in FIGURES["stories"]}
    rows = gather_tasks([make_run(tmp_path / "a", "stories", **answered)])
    assert {row["metric"]: row["reached"] for row in rows if row["floor"] is None} == {
        "test_answered_3_facts": None,
        "test_chosen_3_facts": None,
    }
    assert not any(row["reached"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "error_message"),
    [
        ({"preset": "shakespeare"}, "a: is of the preset 'shakespeare', but there are floors for phonemes, "),
        ({"preset": None}, "a: is of the preset 'None', but there are floors for phonemes, "),
        ({"finished": False}, "a: is not finished: go on with it by elman train --resume"),
        ({}, r"a/result\.json: has no 'test_accuracy': train it again with this version"),
    ],
)
def test_unsuitable_run_is_reported(changes: dict[str, Any], error_message: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", **{"preset": "sentiment", **changes})
    with pytest.raises(MeasurementError, match=error_message):
        gather_tasks([run])


def test_invalid_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"holds no run that has been trained: config\.json: No such file"):
        gather_tasks([tmp_path])
    run = make_run(tmp_path / "a", "sentiment", test_accuracy=0.8)
    with pytest.raises(MeasurementError, match=r"b: is of the preset 'sentiment', as .*a is: give one of the two"):
        gather_tasks([run, make_run(tmp_path / "b", "sentiment", test_accuracy=0.8)])
    (run / "result.json").write_text("{")
    with pytest.raises(MeasurementError, match=r"result\.json: is no JSON"):
        gather_tasks([run])


def test_command_writes_json_and_chart_and_keeps_other_presets(tmp_path: Path) -> None:
    everything = [
        make_run(tmp_path / preset, preset, **{figure.metric: 0.5 for figure in figures})
        for preset, figures in FIGURES.items()
    ]
    again = make_run(tmp_path / "again", "names", validation_accuracy=0.123456)
    for runs in (everything, [again]):
        actual = CliRunner().invoke(app, ["tasks", *map(str, runs), "--output", str(tmp_path / "results")])
        assert actual.exit_code == 0, actual.output
    rows = json.loads((tmp_path / "results" / "tasks.json").read_text())
    assert len(rows) == sum(map(len, FIGURES.values()))
    assert {row["preset"]: row["value"] for row in rows}["names"] == 0.1235
    assert (tmp_path / "results" / "tasks.png").read_bytes().startswith(b"\x89PNG")


def test_presets_that_have_floors_are_presets() -> None:
    assert {"sentiment", "sentiment-bidirectional", "names", "digits"} <= FIGURES.keys() & PRESETS.keys()
