"""Metrics of trained models compared with their floors, read from the folders of training runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes.worker import MeasurementError
from benchmarks.report.tables import Column, Rows
from elman_training.checkpoint import CONFIG, METRICS, RESULT
from elman_training.metrics_log import training_seconds


@dataclass(frozen=True)
class Figure:
    """One figure of a preset.

    Attributes:
        metric: its key in a run's result.json.
        floor: the value to reach; None if there is no requirement.
        lower_is_better: whether the floor is an upper bound.
    """

    metric: str
    floor: float | None
    lower_is_better: bool = False

    def reached(self, value: float) -> bool | None:
        if self.floor is None:
            return None
        return value <= self.floor if self.lower_is_better else value >= self.floor


_ACCURACY = (Figure("test_accuracy", 0.78),)
_TREES = (Figure("test_root_accuracy", 0.43), Figure("test_root_accuracy_binary", 0.80))
FIGURES: Mapping[str, tuple[Figure, ...]] = {
    "phonemes": (
        Figure("test_word_error_rate", 0.35, lower_is_better=True),
        Figure("test_phoneme_error_rate", 0.09, lower_is_better=True),
    ),
    "german-english": (Figure("test_bleu", 20.0),),
    "stories": (
        Figure("test_answered_1_fact", 0.95),
        Figure("test_chosen_1_fact", 0.95),
        Figure("test_answered_2_facts", 0.70),
        Figure("test_chosen_2_facts", 0.70),
        Figure("test_answered_3_facts", None),
        Figure("test_chosen_3_facts", None),
    ),
    "sentiment": _ACCURACY,
    "sentiment-bidirectional": _ACCURACY,
    "names": (Figure("validation_accuracy", 0.82),),
    "sentiment-tree": _TREES,
    "sentiment-binary-tree": _TREES,
    "sentiment-recursive": _TREES,
    "digits": (Figure("test_accuracy", 0.97),),
}


def gather_tasks(runs: Iterable[Path]) -> Rows:
    """Return one row per figure and run.

    Raises:
        MeasurementError: a folder holds no finished run of one of the presets, or two are of the same preset.
    """
    runs_by_preset: dict[str, Path] = {}
    rows: Rows = []
    for run in runs:
        config, result = _read(run, CONFIG), _read(run, RESULT)
        preset = str(config.get("preset"))
        if preset not in FIGURES:
            raise MeasurementError(f"{run}: is of the preset {preset!r}, but there are floors for {', '.join(FIGURES)}")
        if preset in runs_by_preset:
            raise MeasurementError(
                f"{run}: is of the preset {preset!r}, as {runs_by_preset[preset]} is: give one of the two"
            )
        if not result.get("finished"):
            raise MeasurementError(f"{run}: is not finished: go on with it by elman train --resume {run}")
        runs_by_preset[preset] = run
        minutes = training_seconds(run / METRICS) / 60
        for figure in FIGURES[preset]:
            if figure.metric not in result:
                raise MeasurementError(f"{run / RESULT}: has no {figure.metric!r}: train it again with this version")
            rows.append(
                {
                    "preset": preset,
                    "metric": figure.metric,
                    "value": float(result[figure.metric]),
                    "floor": figure.floor,
                    "lower_is_better": figure.lower_is_better,
                    "reached": figure.reached(result[figure.metric]),
                    "minutes": minutes,
                    "parameters": result["parameters"],
                    "seed": config["seed"],
                }
            )
    return rows


def _read(run: Path, name: str) -> dict[str, Any]:
    try:
        read = json.loads((run / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise MeasurementError(f"{run}: holds no run that has been trained: {name}: {error.strerror}") from error
    except ValueError as error:
        raise MeasurementError(f"{run / name}: is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise MeasurementError(f"{run / name}: holds no object")
    return read


def as_percent(row: Mapping[str, Any], name: str) -> float | None:
    """Return a value or floor on a scale of 0 to 100, which BLEU already has."""
    value = row[name]
    return None if value is None else float(value) * (1 if row["metric"].endswith("bleu") else 100)


def shown(row: Mapping[str, Any], name: str) -> str:
    """Format a value or floor."""
    value = as_percent(row, name)
    if value is None:
        return ""
    return f"{value:.1f}" if row["metric"].endswith("bleu") else f"{value:.1f} %"


def bound(row: Mapping[str, Any]) -> str:
    """Format the requirement on a value."""
    if row["floor"] is None:
        return ""
    return f"{'at most' if row['lower_is_better'] else 'at least'} {shown(row, 'floor')}"


def _verdict(row: dict[str, Any]) -> str:
    return {None: "", True: "[green]reached[/]", False: "[bold red]missed[/]"}[row["reached"]]


TASK_COLUMNS = (
    Column("preset", lambda row: str(row["preset"])),
    Column("figure", lambda row: str(row["metric"]).replace("_", " ")),
    Column("value", lambda row: shown(row, "value")),
    Column("required", bound),
    Column("", _verdict),
    Column("minutes", lambda row: f"{row['minutes']:.1f}"),
    Column("parameters", lambda row: f"{row['parameters']:,}"),
    Column("seed", lambda row: str(row["seed"])),
)
TASK_LEGEND = "Minutes: training time on one machine, including validation. Seed: the random seed of the run."
