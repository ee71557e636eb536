"""The options of `elman train`, generated from the configuration models."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from elman.cli.application import app
from elman_training.config import FeaturesConfig, RunConfig, TextConfig, TranslationConfig, TreeConfig, parse_config
from elman_training.options import TASKS, corpus_formats, ineffective, training_options
from elman_training.presets import DEFAULT_PRESETS, PRESET_NOTES, PRESETS

MODELS: tuple[type[RunConfig], ...] = (TextConfig, FeaturesConfig, TreeConfig, TranslationConfig)
OPTIONS = {option.name: option for option in training_options()}
ALL = ("lm", "classify", "tag", "features", "tree", "translate")
TEXT = ("lm", "classify", "tag")
# The options that existing scripts may use.
OF_OLD = {
    "task", "corpus", "preset", "output", "resume", "cell", "layers", "hidden", "embedding", "dropout", "vocabulary",
    "source_vocabulary", "vocabulary_size", "source_vocabulary_size", "lower_case", "minimum_count", "longest_source",
    "longest_target", "attention", "bidirectional", "one_hot", "label_smoothing", "scheduled_sampling", "curriculum",
    "steps", "lanes", "window", "learning_rate", "held_out", "validate_every", "corpus_limit", "precision",
    "weight_decay", "average_decay", "restart", "seed", "stop_after", "max_minutes",
}  # fmt: skip


def train_parameters() -> dict[str, Any]:
    command = get_command(app).commands["train"]  # type: ignore[attr-defined]
    return {str(parameter.name): parameter for parameter in command.params}


@pytest.mark.parametrize("model", MODELS)
def test_each_described_field_is_an_option(model: type[RunConfig]) -> None:
    parameters = train_parameters()
    for name, field in model.model_fields.items():
        if name in ("preset", "label_names"):
            assert not field.description
            continue
        assert field.description
        assert field.description.endswith(".")
        assert f"--{name.replace('_', '-')}" in parameters[name].opts


def test_no_option_was_removed() -> None:
    assert train_parameters().keys() >= OF_OLD


def test_options_know_their_tasks() -> None:
    assert TASKS == ALL
    tasks = {name: option.tasks for name, option in OPTIONS.items()}
    assert tasks["seed"] == tasks["hidden"] == ALL
    assert tasks["lower_case"] == (*TEXT, "tree")
    assert tasks["window"] == tasks["corpus_limit"] == ("lm", "tag")
    assert tasks["restart"] == ("lm",)
    assert tasks["bidirectional"] == ("classify", "translate")
    assert tasks["attention"] == ("translate",)
    assert list(corpus_formats()) == ["lm, classify, tag", "features", "tree", "translate"]


def test_options_know_their_values() -> None:
    assert OPTIONS["cell"].choices == ("elman", "lstm", "gru", "child-sum", "binary", "recursive")
    assert (OPTIONS["attention"].kind, OPTIONS["corpus_limit"].kind, OPTIONS["seed"].default) == (bool, int, "0")
    assert OPTIONS["source_deviation"].kind is float
    assert OPTIONS["held_out"].default == "lm, classify, tag, features: 0.1; translate: 0.05"
    assert OPTIONS["steps"].default == ""  # differs between presets


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [
        ({"task": "lm"}, ["window"], None),
        ({"task": "classify"}, ["seed", "window"], ("window", {"task": "classify"}, ("lm", "tag"))),
        ({"task": "tree", "corpus": "trees"}, ["vocabulary_size", "minimum_count"], None),
        (
            {"task": "lm", "vocabulary": "bytes"},
            ["minimum_count"],
            ("minimum_count", {"vocabulary": "bytes"}, ("characters", "words", "symbols")),
        ),
        ({"task": "translate", "corpus": "x", "vocabulary": "symbols"}, ["minimum_count"], None),
        (
            {"task": "translate", "corpus": "x"},
            ["minimum_count"],
            (
                "minimum_count",
                {"vocabulary": "subwords", "source_vocabulary": "subwords"},
                ("characters", "words", "symbols"),
            ),
        ),
    ],
)
def test_fields_without_effect_are_detected(values: dict[str, Any], given: list[str], expected: Any) -> None:
    assert ineffective(parse_config(values), given) == expected


def test_every_preset_is_described_and_every_task_has_a_preset() -> None:
    assert PRESET_NOTES.keys() == PRESETS.keys()
    assert tuple(DEFAULT_PRESETS) == ALL
    assert all(PRESETS[preset]["task"] == task for task, preset in DEFAULT_PRESETS.items())


def test_help_groups_options_by_task() -> None:
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    panels = re.findall(r"╭─ ([A-Z][a-z ]*) ─", result.stdout)
    expected = ["Options", "Every task", "Several tasks", "Only lm and tag", "Only lm", "Only classify and translate"]
    assert panels == [*expected, "Only classify", "Only features", "Only translate"]
    for preset in PRESETS:
        assert re.search(rf"^ +{preset} \(", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "error_message"),
    [
        (("--task", "chess"), "--task: got chess; expected one of lm, classify, tag, features, tree, translate"),
        (("--preset", "nope"), "--preset: got nope; expected one of python, python-words"),
        (("--cell", "child-sum"), "--cell: got child-sum; input should be 'elman', 'lstm' or 'gru'"),
        (("--steps", "many"), "--steps: got many; input should be a valid integer"),
        (("--no-bidirectional",), "--bidirectional: got false; it has no effect with --task lm, only with classify"),
    ],
)
def test_invalid_values_are_rejected_with_the_rule(options: tuple[str, ...], error_message: str) -> None:
    result = CliRunner().invoke(app, ["train", *options], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert error_message in result.output


def test_help_does_not_import_torch() -> None:
    code = "import sys; from elman.cli.application import app; sys.modules['torch'] = None; app(['train', '--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=100)
    assert result.returncode == 0, result.stderr
    assert "--learning-rate" in result.stdout
