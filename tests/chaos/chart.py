"""The picture of a trial: tokens as they came, and the moments at which a server was killed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tests.chaos.trial import Outcome

_WIDTH = 0.25  # seconds of one point
_MESSAGES, _KILLS = "#1f5f8b", "#c0392b"


def draw(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Draw trials below each other, as PNG."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 2.3 * len(outcomes) + 0.3), layout="constrained")
        for axes, (name, outcome) in zip(np.ravel(figure.subplots(len(outcomes))), outcomes.items(), strict=True):
            times, counts = np.array(outcome.received).T
            edges = np.arange(0, outcome.seconds + _WIDTH, _WIDTH)
            tokens, _ = np.histogram(times, edges, weights=counts)
            axes.fill_between(edges[:-1], tokens / _WIDTH, step="post", color=_MESSAGES, alpha=0.8, linewidth=0)
            for moment in outcome.killed:
                axes.axvline(moment, color=_KILLS, linewidth=0.9)
            verdict = outcome.verdict
            axes.set_title(
                f"{name}: {verdict.sessions} sessions, {outcome.kills} kills (red); of {verdict.tokens:,} tokens "
                f"{verdict.lost} lost, {verdict.doubled} doubled, {verdict.different} different",
                loc="left",
                fontsize=9,
            )
            axes.set_xlim(0, outcome.seconds)
            axes.set_ylabel("tokens/s")
            axes.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("seconds")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
