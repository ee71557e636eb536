"""How probable candidates are behind a context: the context is read once, every candidate goes on from its state."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence

import numpy as np
from numpy.typing import NDArray

from elman_bundle.vocabulary import TokenIds
from elman_protos import v1
from elman_server.engine import Arrays, Wanted
from elman_server.errors import ModelFailedError
from elman_server.rpc.lengthy import by_length
from elman_server.rpc.mailbox import Mailbox
from elman_server.rpc.models import ServedModel
from elman_server.rpc.reading import run_readings
from elman_server.scheduling import Reading, Source


class Scoring:
    """Scores candidates behind a context.

    Args:
        model: what scores them.
        context: what goes before each of them.
        state: the state before the context's last token, which every candidate reads for itself: what the model
            shows after it is the candidate's first score. None for the initial state.
        source: what the encoder reads before all of it, where the model has one.
        totals_only: leave out single tokens.
        longest: how many of these one part of a score may have.
        field: the request's, for complaints.
    """

    def __init__(
        self,
        model: ServedModel,
        context: TokenIds,
        state: Arrays | None,
        source: Source | None = None,
        *,
        totals_only: bool,
        longest: int,
        field: str = "candidates",
    ) -> None:
        self._model = model
        self._context = context
        self._state = state
        self._source = source
        self._field = field
        self._totals_only = totals_only
        self._longest = longest

    async def scores(self, candidates: Sequence[TokenIds]) -> AsyncGenerator[list[v1.CandidateScore], None]:
        """The scores of candidates, in their order and as soon as they are there; long ones in several parts.

        Raises:
            ModelFailedError: the model failed on a candidate, or has shown what is no number.
            DomainError: what else keeps one from its end.
        """
        readings = (self._reading(ids) for ids in candidates)
        done = 0
        async with contextlib.aclosing(run_readings(self._model, readings)) as endings:
            try:
                async for ended in endings:
                    parts: list[v1.CandidateScore] = []
                    failure: ModelFailedError | None = None
                    for finished in ended:
                        try:
                            parts += await self._written(done, candidates[done], finished.log_probabilities)
                        except ModelFailedError as error:
                            failure = error
                            break
                        done += 1
                    yield parts
                    if failure is not None:
                        raise failure
            except ModelFailedError as error:
                raise ModelFailedError(f"{self._field}[{done}]: {error}") from error

    def _reading(self, ids: TokenIds) -> Reading:
        """What finds the log-probabilities of a candidate's tokens, without its first if nothing goes before it."""
        read = np.concatenate([self._context[-1:], ids])
        return Reading(
            read[:-1],
            Mailbox(),
            self._state,
            source=self._source,
            position=max(len(self._context) - 1, 0),
            every_step=False,
            wanted=Wanted(log_probabilities=True),
            targets=read[1:],
        )

    async def _written(
        self, index: int, ids: TokenIds, log_probabilities: NDArray[np.float32]
    ) -> list[v1.CandidateScore]:
        """A candidate's score, from the log-probabilities of all its tokens or of all but the first."""
        if np.isnan(log_probabilities).any():
            raise ModelFailedError(f"{self._field}[{index}]: the model's output is not finite, so it has no score")
        count = len(log_probabilities)
        likelihood = float(log_probabilities.sum(dtype=np.float64))
        with np.errstate(over="ignore"):  # A perplexity beyond all numbers is infinite.
            perplexity = float(np.exp(np.float64(-likelihood / count)))
        total = v1.TotalScore(
            log_likelihood=likelihood,
            token_count=count,
            perplexity=perplexity,
            unknown_token_count=self._model.count_unknown(ids),
        )
        if self._totals_only:
            return [v1.CandidateScore(candidate_index=index, total=total)]
        parts = await by_length(count, lambda: self._parts(index, ids, log_probabilities))
        parts[-1].total.CopyFrom(total)
        return parts

    def _parts(self, index: int, ids: TokenIds, log_probabilities: NDArray[np.float32]) -> list[v1.CandidateScore]:
        count = len(log_probabilities)
        texts, scored = self._model.token_texts(ids)[-count:], ids[-count:]
        parts: list[v1.CandidateScore] = []
        for start in range(0, count, self._longest):
            part = slice(start, start + self._longest)
            tokens = v1.TokenScores(
                ids=scored[part].tolist(), log_probabilities=log_probabilities[part].tolist(), texts=texts[part]
            )
            parts.append(v1.CandidateScore(candidate_index=index, tokens=tokens))
        return parts
