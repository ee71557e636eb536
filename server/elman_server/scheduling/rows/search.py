"""Beam searches: each has several rows, which branch after every step."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.beams import ScoresError
from elman_server.engine import Engine, Results
from elman_server.errors import DomainError, InvalidFieldError
from elman_server.scheduling.isolation import log_defect
from elman_server.scheduling.rows.endings import DEFECT, NOT_FINITE, Ending
from elman_server.scheduling.rows.host_sampler import HostSampler, log_softmax
from elman_server.scheduling.rows.inputs import RowInputs
from elman_server.scheduling.rows.table import RowTable
from elman_server.scheduling.sequence import Beams


@dataclass(frozen=True)
class Branching:
    """How a search continues.

    Attributes:
        beams: the search.
        sources: which of its beams are continued.
        tokens: the token that continues each.
    """

    beams: Beams
    sources: list[int]
    tokens: list[int]


class BeamRows:
    """Advances the beam searches among the rows.

    Args:
        name: the model's name, for the log.
        engine: has the state of the rows.
        table: the rows.
        inputs: builds the inputs of runs.
        host: shapes scores.
        forbidden_tokens: the tokens that are never generated.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        table: RowTable,
        inputs: RowInputs,
        host: HostSampler,
        forbidden_tokens: Several[int],
    ) -> None:
        self._name = name
        self._engine = engine
        self._table = table
        self._inputs = inputs
        self._host = host
        self._forbidden_tokens = list(forbidden_tokens)

    def advance(self, rows: list[int], results: Results, endings: dict[int, Ending]) -> list[Branching]:
        """Advance the searches that are beyond their prompt.

        Args:
            rows: the rows whose logits are needed.
            results: the run's results.
            endings: the rows that finish; those of a search that finishes are added.

        Returns:
            How the others continue.
        """
        if not self._table.count(Beams):
            return []
        searches = {id(found): found for row in rows if isinstance(found := self._table.sequences[row], Beams)}
        branchings = []
        for beams in searches.values():
            ended = next((endings[row] for row in beams.rows if row in endings), None)
            if ended is None and results.failed[beams.rows].any():
                ended = Ending(1, 0, error=NOT_FINITE)
            if ended is None:
                try:
                    branching = self._advance(beams, results)
                except ScoresError as error:
                    ended = Ending(1, 0, error=_overflow(beams, results, error))
                except Exception:
                    log_defect(self._name)
                    ended = DEFECT
                else:
                    if branching is not None:
                        branchings.append(branching)
                        continue
            for row in beams.rows:
                endings[row] = ended or Ending(1, 0)
        return branchings

    def _advance(self, beams: Beams, results: Results) -> Branching | None:
        """Take a step of a search; returns how it continues, None if it is done."""
        assert beams.search is not None
        assert results.logits is not None
        beams.step_count += len(beams.rows)
        branches = beams.search.advance(self._scores(beams, results.logits))
        return None if beams.search.done else Branching(beams, branches.sources.tolist(), branches.tokens.tolist())

    def branch(self, branchings: list[Branching]) -> tuple[list[int], list[Beams]]:
        """Turn rows into the continuations that searches chose.

        Returns:
            The rows that are not needed any more, and the searches that failed, none of whose rows is.
        """
        surplus: list[int] = []
        failed: list[Beams] = []
        for branching in branchings:
            try:
                surplus += self._branch(branching)
            except Exception:
                log_defect(self._name)
                surplus += branching.beams.rows
                failed.append(branching.beams)
        return surplus, failed

    def _branch(self, branching: Branching) -> list[int]:
        beams = branching.beams
        origins = [beams.rows[source] for source in branching.sources]
        while len(beams.rows) < len(origins):
            self._inputs.append(self._table.append_copy(beams), beams)
        rows = beams.rows[: len(origins)]
        self._table.records["last_token"][rows] = branching.tokens
        if beams.shaping is not None:
            self._host.branch(beams, rows, origins, branching.tokens)
        self._engine.rearrange(rows, origins)
        return beams.rows[len(rows) :]

    def _scores(self, beams: Beams, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The log-probabilities of what may follow each beam, [beams, V]."""
        found = log_softmax(logits[beams.rows])
        if self._forbidden_tokens:
            found[:, self._forbidden_tokens] = -np.inf
        return found if beams.shaping is None else self._host.shape(beams.rows, found)


def _overflow(beams: Beams, results: Results, error: ScoresError) -> DomainError:
    """The error of a search whose scores are not finite: by the options of the caller, or by the model."""
    assert results.logits is not None
    if beams.shaping is None or not (results.logits[beams.rows].max(axis=1) < np.inf).all():
        return NOT_FINITE
    return InvalidFieldError("shaping", "values that overflow", str(error))
