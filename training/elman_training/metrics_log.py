"""The log of a run: metrics.jsonl, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from elman_training.atomic_files import replace_file


def write_record(file: TextIO, **record: object) -> None:
    """Append a record and flush it."""
    file.write(json.dumps(record) + "\n")
    file.flush()


def read_records(metrics: Path) -> list[dict[str, Any]]:
    """The records of a log, without a last line that was cut off when the run was killed."""
    lines = metrics.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def drop_records_after(metrics: Path, step: int) -> None:
    """Drop the records after a checkpoint; the resumed run computes and logs these steps again."""
    if metrics.exists():
        kept = [record for record in read_records(metrics) if record["step"] <= step]
        replace_file(metrics, lambda part: part.write_text("".join(json.dumps(record) + "\n" for record in kept)))


def training_seconds(metrics: Path) -> float:
    """The time a run has been trained so far, with its validations, in seconds; 0 if its log does not say."""
    records = read_records(metrics) if metrics.exists() else []
    return max((float(record.get("seconds", 0)) for record in records), default=0.0)
