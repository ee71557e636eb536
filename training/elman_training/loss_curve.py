"""The picture of a run: the loss over the steps, as PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from elman_training.metrics_log import read_records

_TRAINING_COLOUR, _HELD_OUT_COLOUR = "#9db4c8", "#c2410c"
_SKIPPED_SHARE = 1 / 20  # of the steps at the beginning, whose losses are far above the rest


def draw_loss_curve(metrics: Path, picture: Path, unit: str) -> None:
    """Draw the training and validation loss of a metrics log.

    Args:
        metrics: the log, JSON lines.
        picture: the PNG to write.
        unit: what the loss is counted per, such as "character".
    """
    records = read_records(metrics)
    training = [(record["step"], record["nats"]) for record in records if "nats" in record]
    held_out = [(record["step"], record["validation_nats"]) for record in records if "validation_nats" in record]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    if training:
        axes.plot(*zip(*training, strict=True), color=_TRAINING_COLOUR, linewidth=1, label="training")
    if held_out:
        best = min(held_out, key=lambda point: point[1])
        axes.plot(
            *zip(*held_out, strict=True),
            color=_HELD_OUT_COLOUR, linewidth=2, marker="o", markersize=3, label="held out",
        )  # fmt: skip
        axes.axhline(best[1], color=_HELD_OUT_COLOUR, linewidth=0.5, linestyle=":")
        axes.annotate(f"{best[1]:.3f} nats", best, xytext=(-4, 10), textcoords="offset points", ha="right")
        later = training[int(len(training) * _SKIPPED_SHARE) :]
        values = [value for _, value in held_out] + [value for _, value in later]
        axes.set_ylim(min(values) - 0.05 * (max(values) - min(values)), max(values) * 1.02)
    axes.set_xlabel("step")
    axes.set_ylabel(f"nats per {unit}")
    right = axes.secondary_yaxis("right", functions=(_bits_of_nats, _nats_of_bits))
    right.set_ylabel(f"bits per {unit}")
    axes.spines[["top"]].set_visible(False)
    if training or held_out:
        axes.legend(frameon=False, loc="upper right")
    figure.savefig(picture)
    pyplot.close(figure)


def _bits_of_nats(nats: Any) -> Any:
    return nats / math.log(2)


def _nats_of_bits(bits: Any) -> Any:
    return bits * math.log(2)
