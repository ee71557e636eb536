"""Makes rows of results into rows of tables: what belongs together stands in one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.cases.ablation_variants import DELETED, VARIANTS
from benchmarks.cases.comparison import CASES
from benchmarks.report.tables import Column, Rows

_FIGURES = {
    "tokens_per_s": "tokens/s",
    "ttft_p50_ms": "first token, median",
    "ttft_p99_ms": "first token, 99 %",
    "gap_p99_ms": "between messages, 99 %",
    "whole_p50_ms": "all tokens, median",
}
_COMPARED = [(case, figure) for case, found in CASES.items() for figure in found.higher_is_better]


def by_precision(rows: Rows) -> Rows:
    """One row for both precisions of a way to decode; the cells are named `fp32` and `int8`."""
    ways: dict[str, dict[str, Any]] = {}
    for row in rows:
        ways.setdefault(row["way"], {"way": row["way"]})[row["precision"]] = _range(row, "share_of_plain")
    return list(ways.values())


def by_heuristic(rows: Rows) -> Rows:
    """One row for each heuristic, the deleted ones last; the cells are named after case and figure."""
    descriptions = {name: variant.heuristic for name, variant in VARIANTS.items()}
    descriptions |= {name: f"{heuristic} (deleted)" for name, heuristic in DELETED.items()}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["program"]
        if name in descriptions:
            cells = found.setdefault(name, {"heuristic": descriptions[name]})
            cells[_name(row["case"], row["figure"])] = f"{row['ratio']:.2f}"
    return [found[name] for name in descriptions if name in found]


def before_and_now(rows: Rows) -> Rows:
    """One row for each precision, case and figure; the medians are named `before` and `now`."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        cells = found.setdefault((row["precision"], row["case"], row["figure"]), {})
        cells[row["program"]] = f"{row['median']:,.1f}" if row["median"] < 1000 else f"{row['median']:,.0f}"
        if row["program"] == "now":
            cells |= {
                "precision": row["precision"],
                "what": _heading(row["case"], row["figure"]),
                "ratio": _range(row, "ratio"),
            }
    return [cells for cells in found.values() if "ratio" in cells]


def heuristic_columns() -> list[Column]:
    """The columns of `by_heuristic`."""
    cases = [Column(_heading(*key), _cell(_name(*key))) for key in _COMPARED]
    return [Column("without", _cell("heuristic")), *cases]


def comparison_columns() -> list[Column]:
    """The columns of `before_and_now`."""
    names = {"precision": "precision", "what": "case", "before": "before", "now": "now", "ratio": "ratio"}
    return [Column(heading, _cell(name)) for name, heading in names.items()]


def _name(case: str, figure: str) -> str:
    return f"{case}, {figure}"


def _heading(case: str, figure: str) -> str:
    return f"{case}: {_FIGURES.get(figure, figure)}"


def _cell(name: str) -> Any:
    return lambda row: row.get(name, "")


def _range(row: Mapping[str, Any], name: str) -> str:
    """A median with the lowest and the highest of the repeats."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*(row[f"{name}{end}"] for end in ("", "_lowest", "_highest")))
