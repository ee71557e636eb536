"""Which rows finish in a run, where in it, and why."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import structlog

from elman_server.engine import Results
from elman_server.errors import EngineError, ModelFailedError
from elman_server.scheduling.events import FinishReason
from elman_server.scheduling.interface import INTERNAL, MODEL_FAILED
from elman_server.scheduling.isolation import log_defect
from elman_server.scheduling.rows.choices import Choices
from elman_server.scheduling.rows.table import Progress, RowTable
from elman_server.scheduling.sequence import Beams, Generation

NOT_FINITE = ModelFailedError("the model's output is not finite, so no token can be chosen")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Ending:
    """The end of a row in a run.

    Attributes:
        steps: after how many of the run's steps.
        tokens: how many of the run's tokens it keeps.
        reason: why, if it is a generation that finishes well.
        error: why, if not.
        taken_back: whether the last step's choice is not kept: the end token, or nothing.
    """

    steps: int
    tokens: int
    reason: FinishReason | None = None
    error: Exception | None = None
    taken_back: bool = False

    @property
    def kept_steps(self) -> int:
        """The number of steps after which the state is kept. The last token is never read: a row that finishes for
        MAX_TOKENS has not got there, and a step whose choice is taken back has read the last token that is kept."""
        return self.steps - 1 if self.taken_back else self.steps


DEFECT = Ending(0, 0, error=INTERNAL)


class Endings:
    """Finds the rows that finish in a run.

    Args:
        name: the model's name, for the log.
        table: the rows.
    """

    def __init__(self, name: str, table: RowTable) -> None:
        self._name = name
        self._table = table

    def find(
        self, progress: Progress, results: Results, failures: dict[int, EngineError], choices: Choices | None
    ) -> dict[int, Ending]:
        """Returns the rows that finish; rows of beam searches only if they fail.

        Args:
            progress: what the run has brought each row.
            results: its results.
            failures: the rows that failed.
            choices: what was chosen on the host, if anything.
        """
        sequences = self._table.sequences
        endings = {
            row: Ending(int(progress.left[row]), int(progress.gained[row]), FinishReason.MAX_TOKENS)
            for row in np.flatnonzero(progress.left <= progress.counts).tolist()
            if not isinstance(sequences[row], Beams)
        }
        if results.tokens.size:
            self._find_end_tokens(progress, results, endings)
        if choices is not None:
            _add_choices(choices, progress, endings)
        for row in np.flatnonzero(self._table.records["stops"]).tolist():
            try:
                self._find_stop_sequence(row, progress, results, endings)
            except Exception:
                log_defect(self._name)
                endings[row] = DEFECT
        for row in np.flatnonzero(self._table.records["time_limit"] <= time.perf_counter()).tolist():
            ending = Ending(int(progress.counts[row]), int(progress.gained[row]), FinishReason.TIME_LIMIT)
            endings.setdefault(row, ending)
        for row, failure in failures.items():
            position, steps = int(progress.position[row]), int(progress.counts[row])
            _log.error("step failed", model=self._name, position=position, steps=steps, error=str(failure))
            endings[row] = Ending(0, 0, error=MODEL_FAILED)
        return endings

    def _find_end_tokens(self, progress: Progress, results: Results, endings: dict[int, Ending]) -> None:
        """Rows that have chosen their end token, or could choose nothing, in a step whose choice counts."""
        stopping = results.failed | (results.tokens == self._table.end_tokens)
        for row in np.flatnonzero(stopping.any(axis=1)).tolist():
            first, gained = int(progress.first[row]), int(progress.gained[row])
            steps = np.flatnonzero(stopping[row, first : first + gained])
            if steps.size:
                try:
                    endings[row] = self._ending_at(row, int(steps[0]), progress, results)
                except Exception:
                    log_defect(self._name)
                    endings[row] = DEFECT

    def _ending_at(self, row: int, tokens: int, progress: Progress, results: Results) -> Ending:
        """A row keeps `tokens` of the run's tokens; the next one is its end token, or none at all."""
        step = int(progress.first[row]) + tokens
        if not results.failed[row, step]:
            return Ending(step + 1, tokens, FinishReason.END_TOKEN, taken_back=True)
        _log.error("no token can be chosen", model=self._name, position=int(progress.position[row]) + step)
        return Ending(step + 1, tokens, error=NOT_FINITE)

    def _find_stop_sequence(self, row: int, progress: Progress, results: Results, endings: dict[int, Ending]) -> None:
        """The row's new tokens may complete a stop sequence."""
        sequence, known = self._table.sequences[row], endings.get(row)
        assert isinstance(sequence, Generation)
        assert sequence.stop is not None
        first, kept = int(progress.first[row]), int(progress.gained[row]) if known is None else known.tokens
        count = sequence.stop.feed(results.tokens[row, first : first + kept].tolist())
        if count is not None:
            endings[row] = Ending(first + count, count, FinishReason.STOP_SEQUENCE)


def _add_choices(choices: Choices, progress: Progress, endings: dict[int, Ending]) -> None:
    """The rows that could choose nothing on the host, or need choose no more."""
    counts, gained = progress.counts.tolist(), progress.gained.tolist()
    found = {row: Ending(counts[row], gained[row], FinishReason.CONSTRAINT) for row in choices.complete}
    for row in choices.exhausted:
        found[row] = Ending(counts[row], gained[row] - 1, FinishReason.CONSTRAINT, taken_back=True)
    for row, error in choices.errors.items():
        found[row] = Ending(counts[row], gained[row] - 1, error=error)
    for row, ending in found.items():
        if row not in endings or endings[row].reason is FinishReason.MAX_TOKENS:
            endings[row] = ending
