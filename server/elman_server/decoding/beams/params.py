"""The parameters of a beam search, and its results."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# At this power the length alone decides, whatever the probabilities. At a much larger one float64 would overflow.
LARGEST_LENGTH_PENALTY = 10.0


class EarlyStopping(Enum):
    """When a search ends before max_tokens. No form ends it before `width` hypotheses have ended.

    Attributes:
        FIRST: as soon as they have (transformers: True).
        LIKELY: as soon as the best live beam, if it ended at its present length, would score no better than the worst
            of the `width` best hypotheses (transformers: False). A heuristic: a longer beam may score better.
        CERTAIN: the same for the length at which the beam would score best, so no discarded beam could have become
            better (transformers: "never").
    """

    FIRST = "first"
    LIKELY = "likely"
    CERTAIN = "certain"


@dataclass(frozen=True)
class BeamParams:
    """The parameters of a search.

    Attributes:
        width: number of beams that are followed, and of hypotheses that are kept, at least 1.
        result_count: number of hypotheses that are requested, 1 to width.
        max_tokens: largest number of tokens, including the end token, at least 1.
        end_token: the token that ends a hypothesis, if any.
        length_penalty: power of the length that divides a log-probability, at most LARGEST_LENGTH_PENALTY in absolute
            value. Above 0 it favours long hypotheses, below 0 short ones.
        early_stopping: whether to continue when `width` hypotheses have ended. Ignored if width is 1.
    """

    width: int
    result_count: int
    max_tokens: int
    end_token: int | None = None
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = EarlyStopping.LIKELY


@dataclass(frozen=True)
class Hypothesis:
    """A result of a search.

    Attributes:
        tokens: the tokens without the end token.
        score: log_probability / length ** length_penalty; the length includes the end token.
        log_probability: sum of the scores of the tokens, including the end token, in nats.
        ended: whether the end token ended it; otherwise it was cut off.
    """

    tokens: tuple[int, ...]
    score: float
    log_probability: float
    ended: bool
