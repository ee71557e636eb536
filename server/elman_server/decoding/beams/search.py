"""Beam search: which continuations of a sequence are followed, and which are the best in the end.

Breadth first, `width` beams wide (Sutskever et al. 2014). Scores are log-probabilities divided by a power of the length
(after Wu et al. 2016, in the simpler form of transformers). The hypotheses and their scores are those of transformers
5.23 for the same num_beams, early_stopping, length_penalty and num_return_sequences: at each step the `width` best
continuations that do not end are followed; one that ends counts only if it is among the `width` best of all; a width of
1 is greedy search. Unlike there, a continuation of probability 0 is never followed and no beam is followed twice, so
there may be fewer than `width` beams, and fewer hypotheses than requested.

The caller runs the model. Axes: N live beams, V tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.beams.params import BeamParams, EarlyStopping, Hypothesis


class ScoresError(ValueError):
    """A score is neither finite nor -inf."""


@dataclass(frozen=True)
class Branches:
    """The live beams after a step, the best first; none if the search is done.

    Attributes:
        sources: int64 [N], the beam before the step that each one continues; several may continue the same one.
        tokens: int64 [N], the token that continues it.
    """

    sources: NDArray[np.int64]
    tokens: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """The tokens of a beam as a linked list, whose beginning beams share."""

    token: int
    before: _Path | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A hypothesis whose tokens are not collected yet."""

    path: _Path | None
    score: float
    log_probability: float
    ended: bool


class BeamSearch:
    """A search, advanced step by step.

    Log-probabilities are summed in float64. transformers sums in float32, where the sum of a thousand tokens is rounded
    to 1e-4 and smaller differences are ties; for short sums both find the same.

    Args:
        params: the parameters.
        vocabulary_size: V.

    Attributes:
        done: whether the search is over; there is no live beam then.
    """

    def __init__(self, params: BeamParams, vocabulary_size: int) -> None:
        self._params = params
        self._vocabulary_size = vocabulary_size
        self._paths: list[_Path | None] = [None]
        self._sums = np.zeros(1)  # [N], in descending order
        self._finished: list[_Candidate] = []  # the best first, at most width
        self._step_count = 0
        self.done = False

    @property
    def width_now(self) -> int:
        """N: 1 before the first step, then `width` or the number of possible continuations; 0 when done."""
        return len(self._paths)

    def advance(self, scores: NDArray[np.float32]) -> Branches:
        """Take a step with every beam.

        Args:
            scores: float32 [N, V], the log-probability of every token after every beam; -inf for one that must not
                follow.

        Raises:
            ValueError: the search is done, or `scores` has another shape. The search is unchanged.
            ScoresError: `scores` holds NaN or +inf. The search is unchanged.
        """
        self._check(scores)
        width = self._params.width
        # At most one continuation of each beam ends, and at most width others are followed.
        sources, tokens, sums = self._best_continuations(scores, width + 1)
        self._step_count += 1
        ends = tokens == (-1 if self._params.end_token is None else self._params.end_token)
        best_ends = np.flatnonzero(ends[:width])
        self._finish(sources[best_ends], sums[best_ends])
        live = np.flatnonzero(~ends)[:width]
        branches = Branches(sources[live], tokens[live])
        self._follow(branches, sums[live])
        cut_off = self._step_count == self._params.max_tokens
        if cut_off:
            self._finished = self._best_with_live()
        self.done = cut_off or not self._paths or self._should_stop()
        if self.done:
            nothing = np.empty(0, np.int64)
            branches = Branches(nothing, nothing)
            self._follow(branches, np.empty(0))
        return branches

    def results(self) -> list[Hypothesis]:
        """Return the best hypotheses, the best first, of equals the one that ended first.

        Returns:
            `result_count` hypotheses, or fewer if fewer are possible. For a search that is not done, those that it
            would have if it were cut off here.
        """
        best = self._best_with_live()[: self._params.result_count]
        return [
            Hypothesis(_tokens(candidate.path), candidate.score, candidate.log_probability, candidate.ended)
            for candidate in best
        ]

    def tokens_of(self, beam: int) -> tuple[int, ...]:
        """Return the tokens of a live beam so far; collected anew at each call.

        Raises:
            IndexError: there is no such beam.
        """
        return _tokens(self._paths[beam])

    def _check(self, scores: NDArray[np.float32]) -> None:
        if self.done:
            raise ValueError("the search is done: there is no beam to advance")
        shape = (self.width_now, self._vocabulary_size)
        if scores.shape != shape:
            raise ValueError(f"scores: got shape {scores.shape}; must be {shape}")

    def _best_continuations(
        self, scores: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return the beams, tokens and sums of the `count` best continuations of each beam or more, the best of all
        first, of equals the lower (beam, token) first."""
        # Within a beam the best sums are the best scores. Beam by beam, so that no table [N, V] of sums is built.
        chosen = [_best_tokens(row, count, beam) for beam, row in enumerate(scores)]
        beams = np.repeat(np.arange(len(chosen)), [len(tokens) for tokens in chosen])
        tokens = np.concatenate(chosen)
        sums = self._sums[beams] + scores[beams, tokens]
        order = np.argsort(-sums, kind="stable")
        return beams[order], tokens[order], sums[order]

    def _finish(self, sources: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        """Add hypotheses that have ended, as far as they are among the best."""
        ended = [
            self._candidate(self._paths[source], log_probability, ended=True)
            for source, log_probability in zip(sources.tolist(), sums.tolist(), strict=True)
        ]
        self._finished = self._best([*self._finished, *ended])

    def _follow(self, branches: Branches, sums: NDArray[np.float64]) -> None:
        """Replace the live beams."""
        pairs = zip(branches.sources.tolist(), branches.tokens.tolist(), strict=True)
        self._paths = [_Path(token, self._paths[source]) for source, token in pairs]
        self._sums = sums

    def _best_with_live(self) -> list[_Candidate]:
        """Return the best of the hypotheses that have ended and the live beams as they are."""
        if self._step_count == 0:
            return []
        pairs = zip(self._paths, self._sums.tolist(), strict=True)
        return self._best([*self._finished, *(self._candidate(path, total, ended=False) for path, total in pairs)])

    def _candidate(self, path: _Path | None, log_probability: float, *, ended: bool) -> _Candidate:
        """Return a hypothesis with as many tokens as steps have been taken."""
        return _Candidate(path, self._normalized(log_probability, self._step_count), log_probability, ended)

    def _best(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Return the `width` best candidates, the best first, of equals the one that comes first."""
        return sorted(candidates, key=lambda candidate: -candidate.score)[: self._params.width]

    def _normalized(self, log_probability: float, length: int) -> float:
        return float(log_probability / length**self._params.length_penalty)

    def _should_stop(self) -> bool:
        """Return whether the live beams are discarded."""
        params = self._params
        if len(self._finished) < params.width:
            return False
        if params.width == 1 or params.early_stopping is EarlyStopping.FIRST:
            return True
        # If the penalty favours length, the greatest length bounds the score that a beam can reach.
        bounded = params.early_stopping is EarlyStopping.CERTAIN and params.length_penalty > 0
        length = params.max_tokens if bounded else self._step_count
        return self._normalized(float(self._sums[0]), length) <= self._finished[-1].score


def _best_tokens(row: NDArray[np.float32], count: int, beam: int) -> NDArray[np.int64]:
    """Return the `count` tokens with the highest scores [V], in ascending order: fewer if fewer are possible, more if
    others equal the last of them."""
    first = max(0, len(row) - count)
    highest = np.partition(row, first)[first:]  # NaN sorts as the highest
    if not highest.max() < np.inf:
        raise ScoresError(
            f"scores: got NaN or +inf for beam {beam}; must be finite or -inf. Give smaller values of logit_bias, or a "
            "repetition_penalty closer to 1"
        )
    return np.flatnonzero((row >= highest[0]) & (row > -np.inf))


def _tokens(path: _Path | None) -> tuple[int, ...]:
    tokens = []
    while path is not None:
        tokens.append(path.token)
        path = path.before
    return tuple(reversed(tokens))
