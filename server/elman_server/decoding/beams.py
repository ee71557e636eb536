"""Beam search: which continuations of a sequence are followed, and which ones come out best.

Breadth first and `width` wide (Sutskever et al. 2014), with scores that a power of the length divides (after Wu et al.
2016, in the simpler form that transformers has). What is found, and how it is scored, is what transformers 5.23 finds
with num_beams, early_stopping, length_penalty and num_return_sequences: at each step the width best continuations that
do not end go on; one that ends counts only if it is among the width best of all; and a width of 1 is greedy search.
Unlike there a continuation of probability 0 is never taken and no beam is followed twice, so that there may be fewer
than width beams and fewer hypotheses than asked for.

Pure logic: the caller runs the model. Axes: N live beams, V tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

# At such a power the length decides alone, whatever the probabilities. At much more, float64 would overflow.
LARGEST_LENGTH_PENALTY = 10.0


class EarlyStopping(Enum):
    """When a search ends before max_tokens; in each form not before `width` hypotheses have ended.

    Attributes:
        FIRST: at once then (in transformers: True).
        LIKELY: then, as soon as the best live beam would score no better than the worst of the `width` best hypotheses
            if it ended at its present length (False). A heuristic: a beam may gain by growing longer.
        CERTAIN: the same at the length at which it would score best, so that what is given up could not
            have become better ("never").
    """

    FIRST = "first"
    LIKELY = "likely"
    CERTAIN = "certain"


@dataclass(frozen=True)
class BeamParams:
    """How a search goes and when it ends.

    Attributes:
        width: how many beams are followed, and how many hypotheses are kept, at least 1.
        result_count: how many hypotheses are wanted, 1 to width.
        max_tokens: the largest number of tokens, the end token among them, at least 1.
        end_token: the token that ends a hypothesis, if there is one.
        length_penalty: the power of the length that divides a hypothesis's log-probability, LARGEST_LENGTH_PENALTY at
            most in either direction. Above 0 it favours long ones, below 0 short ones.
        early_stopping: whether to go on when `width` hypotheses have ended. Of no meaning if width is 1.
    """

    width: int
    result_count: int
    max_tokens: int
    end_token: int | None = None
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = EarlyStopping.LIKELY


@dataclass(frozen=True)
class Hypothesis:
    """One result of a search.

    Attributes:
        tokens: without the end token.
        score: log_probability / length ** length_penalty, where the end token counts in the length.
        log_probability: the sum of the scores of its tokens, the end token among them, in nats.
        ended: whether by the end token; else it has been cut off.
    """

    tokens: tuple[int, ...]
    score: float
    log_probability: float
    ended: bool


@dataclass(frozen=True)
class Branches:
    """The beams after a step, the best first; none if the search is done.

    Attributes:
        sources: int64 [N], the beam before the step that each one continues; any number may continue the same one.
        tokens: int64 [N], and with which token.
    """

    sources: NDArray[np.int64]
    tokens: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """The tokens that lead to a beam: the last one, and those before it, which beams share."""

    token: int
    before: _Path | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A hypothesis whose tokens have not been gathered."""

    path: _Path | None
    score: float
    log_probability: float
    ended: bool


class BeamSearch:
    """One search, advanced step by step.

    Log-probabilities are summed in float64: in the float32 of transformers the sum of a thousand tokens is rounded to
    1e-4, and what differs by less is a tie. Where sums are short both choose the same.

    Args:
        params: how to search.
        vocabulary_size: V.

    Attributes:
        done: whether the search is over. There is no live beam then.
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
        """N: 1 before the first step, then `width`, or as many as there are continuations; 0 when done."""
        return len(self._paths)

    def advance(self, scores: NDArray[np.float32]) -> Branches:
        """Take a step with every beam.

        Args:
            scores: float32 [N, V], the log-probability of every token after every beam; -inf for what must not follow.

        Raises:
            ValueError: the search is done, `scores` has another shape, or there is NaN or +inf in it. The search is
                where it was.
        """
        self._check(scores)
        width = self._params.width
        # At most one continuation of a beam ends, and no more than width others go on.
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
        """The best hypotheses, the best first, of equals the one that ended first: result_count of them, or all if
        there are fewer; none if nothing that ends, or is max_tokens long, is possible.

        At any time: of a search that is not done those that it would have if it were cut off here.
        """
        best = self._best_with_live()[: self._params.result_count]
        return [
            Hypothesis(_tokens(candidate.path), candidate.score, candidate.log_probability, candidate.ended)
            for candidate in best
        ]

    def tokens_of(self, beam: int) -> tuple[int, ...]:
        """The tokens of a live beam so far, gathered anew at each call.

        Raises:
            IndexError: there is no such beam.
        """
        return _tokens(self._paths[beam])

    def _check(self, scores: NDArray[np.float32]) -> None:
        if self.done:
            raise ValueError("the search is done: there is no beam to advance")
        shape = (self.width_now, self._vocabulary_size)
        if scores.shape != shape:
            raise ValueError(f"the scores have the shape {scores.shape}, but must have {shape}")

    def _best_continuations(
        self, scores: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The beams, tokens and sums of each beam's `count` best continuations or more, the best of all first; of
        equals the lower (beam, token) first."""
        # Within a beam the best sums are the best scores. Beam by beam, so that no table [N, V] of sums is made.
        chosen = [_best_tokens(row, count, beam) for beam, row in enumerate(scores)]
        beams = np.repeat(np.arange(len(chosen)), [len(tokens) for tokens in chosen])
        tokens = np.concatenate(chosen)
        sums = self._sums[beams] + scores[beams, tokens]
        order = np.argsort(-sums, kind="stable")
        return beams[order], tokens[order], sums[order]

    def _finish(self, sources: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        """Keep hypotheses that have ended, beside those that did before, as far as they are among the best."""
        ended = [
            self._candidate(self._paths[source], log_probability, ended=True)
            for source, log_probability in zip(sources.tolist(), sums.tolist(), strict=True)
        ]
        self._finished = self._best([*self._finished, *ended])

    def _follow(self, branches: Branches, sums: NDArray[np.float64]) -> None:
        """Let these be the live beams."""
        pairs = zip(branches.sources.tolist(), branches.tokens.tolist(), strict=True)
        self._paths = [_Path(token, self._paths[source]) for source, token in pairs]
        self._sums = sums

    def _best_with_live(self) -> list[_Candidate]:
        """The best of what has ended and of the live beams, cut off where they are."""
        if self._step_count == 0:
            return []
        pairs = zip(self._paths, self._sums.tolist(), strict=True)
        return self._best([*self._finished, *(self._candidate(path, total, ended=False) for path, total in pairs)])

    def _candidate(self, path: _Path | None, log_probability: float, *, ended: bool) -> _Candidate:
        """A hypothesis of as many tokens as steps have been taken."""
        return _Candidate(path, self._normalized(log_probability, self._step_count), log_probability, ended)

    def _best(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """As many as are kept, the best first; of equals the one that comes first."""
        return sorted(candidates, key=lambda candidate: -candidate.score)[: self._params.width]

    def _normalized(self, log_probability: float, length: int) -> float:
        return float(log_probability / length**self._params.length_penalty)

    def _should_stop(self) -> bool:
        """Whether the live beams are given up."""
        params = self._params
        if len(self._finished) < params.width:
            return False
        if params.width == 1 or params.early_stopping is EarlyStopping.FIRST:
            return True
        # Where the length is to be favoured, what may still come is bounded by the greatest length.
        bounded = params.early_stopping is EarlyStopping.CERTAIN and params.length_penalty > 0
        length = params.max_tokens if bounded else self._step_count
        return self._normalized(float(self._sums[0]), length) <= self._finished[-1].score


def _best_tokens(row: NDArray[np.float32], count: int, beam: int) -> NDArray[np.int64]:
    """The `count` tokens of the highest scores [V], in ascending order: fewer if fewer are possible, more where others
    equal the last of them."""
    first = max(0, len(row) - count)
    highest = np.partition(row, first)[first:]  # NaN counts as the highest
    if not highest.max() < np.inf:
        raise ValueError(f"the scores of beam {beam} hold NaN or +inf")
    return np.flatnonzero((row >= highest[0]) & (row > -np.inf))


def _tokens(path: _Path | None) -> tuple[int, ...]:
    tokens = []
    while path is not None:
        tokens.append(path.token)
        path = path.before
    return tuple(reversed(tokens))
