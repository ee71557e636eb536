"""Charts of the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

Rows = list[dict[str, Any]]
COLOURS = {"fp32": "#c2410c", "int8": "#1d4ed8"}
_PARTS = {
    "products_us": ("matrix products", "#334155"),
    "rest_of_step_us": ("rest of U's step", "#94a3b8"),
    "edge_us": ("sampling, scheduling, network, clients", "#f59e0b"),
}
_FACTOR_NAMES = {
    "hidden": "hidden units",
    "vocabulary": "tokens in the vocabulary",
    "prompt_tokens": "tokens of each prompt",
    "streams": "concurrent streams",
}


def draw_serving(rows: Rows, picture: Path) -> None:
    """Draw the share of U (left) and tokens per second (right) by number of streams."""
    figure, (shares, speeds) = pyplot.subplots(1, 2, figsize=(11, 4.5), dpi=120, layout="constrained")
    streams = sorted({row["streams"] for row in rows})
    precisions = sorted({row["precision"] for row in rows})
    width = 0.8 / len(precisions)
    for index, precision in enumerate(precisions):
        of_precision = [row for row in rows if row["precision"] == precision]
        positions = [
            streams.index(row["streams"]) + (index - (len(precisions) - 1) / 2) * width for row in of_precision
        ]
        values = [row["share_of_raw"] for row in of_precision]
        spread = [
            [row["share_of_raw"] - row["share_of_raw_lowest"] for row in of_precision],
            [row["share_of_raw_highest"] - row["share_of_raw"] for row in of_precision],
        ]
        bars = shares.bar(
            positions, values, width, yerr=spread, color=COLOURS[precision], label=precision, ecolor="#475569"
        )
        shares.bar_label(bars, fmt="%.2f", fontsize=8, label_type="center", color="white")
        _speed_lines(speeds, of_precision, streams, precision)
    shares.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    shares.set_ylim(0, 1.15 * max(1.0, *(row["share_of_raw_highest"] for row in rows)))
    shares.legend(frameon=False, fontsize=8, loc="upper left", ncols=len(precisions))
    speeds.legend(frameon=False, fontsize=8)
    shares.set_title("tokens/s as a share of U (onnxruntime alone)", fontsize=10)
    speeds.set_title("tokens/s", fontsize=10)
    _scale_speeds(speeds)
    for axes in (shares, speeds):
        axes.set_xticks(range(len(streams)), [str(count) for count in streams])
        axes.set_xlabel("concurrent streams")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, picture)


def _speed_lines(axes: Axes, rows: Rows, streams: list[int], precision: str) -> None:
    positions = [streams.index(row["streams"]) for row in rows]
    for name, label, style in (
        ("tokens_per_s", "elman, clients included", "-"),
        ("raw_tokens_per_s", "U", "--"),
        ("limit_tokens_per_s", "matrix products alone", ":"),
    ):
        axes.plot(
            positions,
            [row[name] for row in rows],
            style,
            color=COLOURS[precision],
            marker="o" if style == "-" else None,
            markersize=4,
            label=f"{precision}: {label}",
        )


def draw_growth(rows: Rows, picture: Path) -> None:
    """Draw a column per factor: tokens per second above, the breakdown of a step's time below."""
    factors = [factor for factor in _FACTOR_NAMES if any(row["factor"] == factor for row in rows)]
    precisions = sorted({row["precision"] for row in rows})
    figure, grid = pyplot.subplots(
        1 + len(precisions),
        len(factors),
        figsize=(3.6 * len(factors) + 1, 3 * (1 + len(precisions))),
        dpi=110,
        layout="constrained",
        squeeze=False,
    )
    for column, factor in enumerate(factors):
        of_factor = [row for row in rows if row["factor"] == factor]
        _growth_speeds(grid[0][column], of_factor, precisions)
        for line, precision in enumerate(precisions, start=1):
            _growth_parts(grid[line][column], [row for row in of_factor if row["precision"] == precision])
            grid[line][column].set_xlabel(_FACTOR_NAMES[factor])
            grid[line][0].set_ylabel(f"{precision}: share of the time")
    grid[0][0].set_ylabel("tokens/s")
    grid[0][0].legend(frameon=False, fontsize=8)
    handles, labels = grid[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, picture)


def _growth_speeds(axes: Axes, rows: Rows, precisions: Sequence[str]) -> None:
    for precision in precisions:
        points = sorted((row for row in rows if row["precision"] == precision), key=lambda row: int(row["value"]))
        values = [row["value"] for row in points]
        for name, label, style in (("tokens_per_s", "", "o-"), ("raw_tokens_per_s", ", U", "--")):
            axes.plot(
                values,
                [row[name] for row in points],
                style,
                color=COLOURS[precision],
                label=precision + label,
                markersize=4,
            )
    axes.set_xscale("log")
    _scale_speeds(axes)
    axes.set_xticks([row["value"] for row in rows], [f"{row['value']:,}" for row in rows], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)


def _growth_parts(axes: Axes, rows: Rows) -> None:
    """Draw stacked bars of shares, labelled with the microseconds per row and step."""
    points = sorted(rows, key=lambda row: int(row["value"]))
    positions = range(len(points))
    bottom = [0.0] * len(points)
    for name, (label, colour) in _PARTS.items():
        # With a better graph than U's, a step may take less time than U's step; the edge is then zero.
        heights = [
            max(0.0, min(1.0 - low, row[name] / row["us_per_row_step"]))
            for low, row in zip(bottom, points, strict=True)
        ]
        axes.bar(positions, heights, bottom=bottom, color=colour, label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for position, row in zip(positions, points, strict=True):
        axes.text(position, 1.02, _microseconds(row["us_per_row_step"]), ha="center", fontsize=7)
    axes.set_ylim(0, 1.1)
    axes.set_xticks(positions, [f"{row['value']:,}" for row in points], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _microseconds(value: float) -> str:
    return f"{value:,.0f} µs" if value >= 100 else f"{value:.3g} µs"


def _scale_speeds(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=8)


def _save(figure: Any, picture: Path) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    pyplot.close(figure)
