"""A chart of the trained models' metrics: one line per metric, with the required range marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.cases.tasks import as_percent, bound, shown
from benchmarks.report.tables import Rows

_RANGE, _SMALL = "#bbf7d0", "#475569"
_COLOURS = {True: "#15803d", False: "#b91c1c", None: "#475569"}
_MEANINGS = {True: "reached", False: "missed", None: "no floor"}


def draw_tasks(rows: Rows, picture: Path) -> None:
    """Draw every row of tasks.json, grouped by preset.

    Args:
        rows: the rows returned by `gather_tasks`.
        picture: path of the PNG file to write.
    """
    ordered = sorted(rows, key=lambda row: (row["preset"], row["metric"]))
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.36 * len(ordered)), dpi=120)
    for position, row in enumerate(ordered):
        _draw_row(axes, position, row, first=position == 0 or ordered[position - 1]["preset"] != row["preset"])
    axes.set_yticks(range(len(ordered)), [f"{row['preset']}: {_readable(row['metric'])}" for row in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent; BLEU on its own scale")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(handles=_legend(rows), loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize=9)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, bbox_inches="tight")
    pyplot.close(figure)


def _draw_row(axes: Axes, position: int, row: dict[str, Any], *, first: bool) -> None:
    value, floor = as_percent(row, "value"), as_percent(row, "floor")
    assert value is not None
    if floor is not None:
        start, width = (0.0, floor) if row["lower_is_better"] else (floor, 100 - floor)
        axes.barh(position, width, left=start, height=0.62, color=_RANGE)
        axes.plot([floor, floor], [position - 0.31, position + 0.31], color="#166534", linewidth=1.5)
    colour = _COLOURS[row["reached"]]
    axes.plot(value, position, "o", color=colour, markersize=8, zorder=3, clip_on=False)
    _annotate(axes, position, 52, shown(row, "value"), ha="right", fontsize=9, color=colour, fontweight="bold")
    _annotate(axes, position, 62, bound(row))
    if first:
        axes.axhline(position - 0.5, color="#e2e8f0", linewidth=0.8, zorder=0)
        trained = f"{row['minutes']:.1f} min, {_millions(row['parameters'])}"
        _annotate(axes, position, 142, trained)


def _annotate(axes: Axes, position: int, points: int, text: str, **style: Any) -> None:
    """Write `text` to the right of the axes, at an offset of `points`."""
    style = {"fontsize": 8, "color": _SMALL, **style}
    axes.annotate(text, (100, position), xytext=(points, 0), textcoords="offset points", va="center", **style)


def _legend(rows: Rows) -> list[Patch | Line2D]:
    statuses = [reached for reached in _COLOURS if any(row["reached"] is reached for row in rows)]
    points = [
        Line2D([], [], marker="o", linestyle="", color=_COLOURS[reached], label=_MEANINGS[reached])
        for reached in statuses
    ]
    return [
        Patch(color=_RANGE, label="required range"),
        Line2D([], [], color="#166534", label="floor (for errors: ceiling)"),
        *points,
    ]


def _readable(metric: str) -> str:
    return metric.removeprefix("test_").replace("_", " ").replace("bleu", "BLEU")


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M parameters" if parameters >= 100_000 else f"{parameters:,} parameters"
