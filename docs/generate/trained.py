"""Tables of what training reaches: benchmarks/results/tasks.json and benchmarks/results/training.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cases.tasks import shown
from benchmarks.processes.machine import RESULTS

_Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Task:
    """One row of the table of tasks.

    Attributes:
        preset: of `elman train`.
        shape: how inputs and outputs correspond.
        model: the data and the network, with its source.
        metrics: the names of the figures in tasks.json, and how the table names them.
        corpus: the folder of the corpus, where it is not part of elman.
    """

    preset: str
    shape: str
    model: str
    metrics: Mapping[str, str]
    corpus: str = ""

    @property
    def command(self) -> str:
        return f"elman train --preset {self.preset}{f' --corpus {self.corpus}' if self.corpus else ''}"


_TREE_METRICS = {"test_root_accuracy": "root of five", "test_root_accuracy_binary": "of two"}
_TAI = "([Tai et al. 2015](https://arxiv.org/abs/1503.00075))"
_FACTS = ("1_fact", "2_facts", "3_facts")

_TASKS = (
    _Task(
        "phonemes",
        "many to many through one vector",
        "graphemes to phonemes without stress: LSTM of 512 ([Sutskever et al. 2014](https://arxiv.org/abs/1409.3215)), "
        "CMUdict, beam 5",
        {"test_word_error_rate": "word error rate", "test_phoneme_error_rate": "phoneme error rate"},
        "cmudict",
    ),
    _Task(
        "german-english",
        "many to many with attention",
        "German to English: LSTM of 384, additive attention "
        "([Bahdanau et al. 2015](https://arxiv.org/abs/1409.0473)), Multi30k, beam 5",
        {"test_bleu": "BLEU"},
        "multi30k",
    ),
    _Task(
        "stories",
        "writing an answer",
        "stories with 1, 2, 3 supporting facts: LSTM with attention",
        {f"test_answered_{facts}": "" for facts in _FACTS},
    ),
    _Task(
        "stories",
        "choosing an answer",
        "the same model, four choices",
        {f"test_chosen_{facts}": "" for facts in _FACTS},
    ),
    _Task(
        "sentiment",
        "many to one, as it streams",
        "sentiment of sentences: LSTM of 192, SST binary",
        {"test_accuracy": ""},
        "sst",
    ),
    _Task(
        "sentiment-bidirectional",
        "many to one, in both directions",
        "the same: bidirectional LSTM of 128",
        {"test_accuracy": ""},
        "sst",
    ),
    _Task(
        "names",
        "many to one, as it streams",
        "surnames of 18 languages: LSTM of 256, a held-out tenth",
        {"validation_accuracy": ""},
        "names",
    ),
    _Task(
        "sentiment-tree",
        "recursive",
        f"sentiment of trees: child-sum Tree-LSTM of 128 {_TAI}, SST",
        _TREE_METRICS,
        "sst",
    ),
    _Task(
        "sentiment-binary-tree",
        "recursive",
        f"sentiment of trees: binary Tree-LSTM of 128 {_TAI}, SST",
        _TREE_METRICS,
        "sst",
    ),
    _Task(
        "sentiment-recursive",
        "recursive",
        "sentiment of trees: plain recursive network of 128 "
        "([Socher et al. 2013](https://aclanthology.org/D13-1170)), SST",
        _TREE_METRICS,
        "sst",
    ),
    _Task(
        "digits",
        "one to one",
        "digits of 8 by 8 pixels: feed-forward network, a stratified fifth",
        {"test_accuracy": ""},
    ),
)

_TASKS_LEGEND = """\
*Seed 0. Floor: what the figure must reach. Minutes: of training on one core of a machine that ran other work as well,
validation included.*

Gathered by `python -m benchmarks tasks runs/*` from runs of the commands above; AMD EPYC, AVX-512.
"""


def tasks_table() -> str:
    """Models of sequences with their floors, in Markdown."""
    found: dict[str, dict[str, Any]] = {}
    for row in json.loads((RESULTS / "tasks.json").read_text()):
        found.setdefault(row["preset"], {})[row["metric"]] = row
    lines = ["| shape | model, data | reached | floor | parameters | minutes | command |", f"|{'---|' * 7}"]
    lines += [_task_line(task, [found[task.preset][name] for name in task.metrics]) for task in _TASKS]
    return "\n".join(lines) + f"\n\n{_TASKS_LEGEND}"


def _task_line(task: _Task, rows: _Rows) -> str:
    names = task.metrics.values()
    reached = ", ".join(f"{name} {shown(row, 'value')}".strip() for name, row in zip(names, rows, strict=True))
    floor = ", ".join(shown(row, "floor") or "none" for row in rows)
    size, minutes = rows[0]["parameters"] / 1e6, rows[0]["minutes"]
    cells = (task.shape, task.model, reached, floor, f"{size:.2g} M", f"{minutes:.2g}", f"`{task.command}`")
    return f"| {' | '.join(cells)} |"


def training_table(name: str) -> str:
    """One of the tables of training.json in Markdown: figures that commands print at their end.

    Args:
        name: of the table: text, int8 or options.
    """
    rows = [row for row in json.loads((RESULTS / "training.json").read_text()) if row["table"] == name]
    return "\n".join(_training_lines(rows)) + "\n"


def _training_lines(rows: _Rows) -> Iterator[str]:
    timed = any("minutes" in row for row in rows)
    yield f"| model | figure |{' minutes |' if timed else ''} command |"
    yield f"|{'---|' * (4 if timed else 3)}"
    for row in rows:
        minutes = f" {row.get('minutes', '')} |" if timed else ""
        command = f"`{row['command']}`" if row["command"] else ""
        yield f"| {row['what']} | {row['figure']} |{minutes} {command} |"
    yield ""
    yield "Printed by the commands in the table; 2 cores of AMD EPYC, AVX-512; at commit b8167f8 or earlier."
