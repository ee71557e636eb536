"""The picture of a run: loss over steps, as PNG."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw_curve(metrics: Path, picture: Path, unit: str) -> None:
    """Draw the training and validation loss of a metrics log.

    Args:
        metrics: the log, JSON lines.
        picture: the PNG to write.
        unit: what the loss is counted per.
    """
    records = read_metrics(metrics)
    training = [(record["step"], record["nats"]) for record in records if "nats" in record]
    held_out = [(record["step"], record["validation_nats"]) for record in records if "validation_nats" in record]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    if training:
        axes.plot(*zip(*training, strict=True), color="#9db4c8", linewidth=1, label="training")
    if held_out:
        best = min(held_out, key=lambda point: point[1])
        axes.plot(
            *zip(*held_out, strict=True), color="#c2410c", linewidth=2, marker="o", markersize=3, label="held out"
        )
        axes.axhline(best[1], color="#c2410c", linewidth=0.5, linestyle=":")
        axes.annotate(f"{best[1]:.3f} nats", best, xytext=(-4, 10), textcoords="offset points", ha="right")
        # The first steps are far above everything that matters.
        values = [value for _, value in held_out] + [value for _, value in training[len(training) // 20 :]]
        axes.set_ylim(min(values) - 0.05 * (max(values) - min(values)), max(values) * 1.02)
    axes.set_xlabel("step")
    axes.set_ylabel(f"nats per {unit}")
    right = axes.secondary_yaxis("right", functions=(_bits_of_nats, _nats_of_bits))
    right.set_ylabel(f"bits per {unit}")
    axes.spines[["top"]].set_visible(False)
    if training or held_out:
        axes.legend(frameon=False)
    figure.savefig(picture)
    pyplot.close(figure)


def read_metrics(metrics: Path) -> list[dict[str, Any]]:
    """The records of a metrics log; a last line that was cut off when the run was killed is left out."""
    lines = metrics.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _bits_of_nats(nats: Any) -> Any:
    return nats / math.log(2)


def _nats_of_bits(bits: Any) -> Any:
    return bits * math.log(2)


def seconds_of(metrics: Path) -> float:
    """How long a run has been trained so far, its validations included; 0 where its log does not say."""
    records = read_metrics(metrics) if metrics.exists() else []
    return max((float(record.get("seconds", 0)) for record in records), default=0.0)
