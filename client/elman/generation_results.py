"""The results of generation: continuations, how probable their tokens are, and what they used."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from elman_protos import v1


class FinishReason(Enum):
    """Why a generation ended.

    Attributes:
        MAX_TOKENS: it has the largest number of tokens.
        END_TOKEN: the model generated its end token.
        STOP_SEQUENCE: a stop sequence was generated.
        TIME_LIMIT: the time limit has passed.
        CONSTRAINT: the constraint allows no further token.
    """

    MAX_TOKENS = v1.FINISH_REASON_MAX_TOKENS
    END_TOKEN = v1.FINISH_REASON_END_TOKEN
    STOP_SEQUENCE = v1.FINISH_REASON_STOP_SEQUENCE
    TIME_LIMIT = v1.FINISH_REASON_TIME_LIMIT
    CONSTRAINT = v1.FINISH_REASON_CONSTRAINT


@dataclass(frozen=True)
class TokenReport:
    """The probability of a generated token according to the model, before any shaping.

    Attributes:
        log_probability: the natural logarithm of its probability.
        most_likely: the most probable tokens at its position, the most probable first: id, text, log-probability.
    """

    log_probability: float
    most_likely: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True)
class Usage:
    """What a generation used. Times are in seconds since the server received the request.

    Attributes:
        step_count: the number of steps that the model took.
        waiting_time: until the first step.
        first_token_time: until the first token.
        total_time: until the last token.
    """

    step_count: int
    waiting_time: float
    first_token_time: float
    total_time: float


@dataclass(frozen=True)
class Continuation:
    """One complete continuation of a prompt.

    Attributes:
        text: its text.
        token_ids: its tokens.
        finish_reason: why it ended.
        stop_sequence: the stop sequence that ended it, or "".
        score: for a beam search, the sum of the log-probabilities divided by the length to the power of the length
            penalty; otherwise None.
        reports: the probabilities of its tokens, if they were requested.
        usage: what it used; None if the server did not report it.
        unknown_token_count: the number of tokens of the prompt that are unknown to the vocabulary.
        source_unknown_count: the number of positions of the source that are unknown to the encoder's vocabulary.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_sequence: str
    score: float | None
    reports: tuple[TokenReport, ...]
    usage: Usage | None
    unknown_token_count: int
    source_unknown_count: int = 0


@dataclass(frozen=True)
class Chunk:
    """Newly generated tokens.

    Attributes:
        text: complete characters only, so it may lag behind the ids.
        token_ids: the ids of the tokens.
        reports: the probabilities of the tokens, if they were requested.
    """

    text: str
    token_ids: tuple[int, ...]
    reports: tuple[TokenReport, ...] = ()


@dataclass(frozen=True)
class ChoiceScore:
    """The probability of one of several continuations.

    Attributes:
        log_likelihood: the sum of the log-probabilities of its tokens, in nats.
        token_count: the number of scored tokens, with the end token.
        probability: its share of the probability of all choices together; 0 if the model excludes all of them.
        unknown_token_count: the number of its tokens that are unknown to the vocabulary.
    """

    log_likelihood: float
    token_count: int
    probability: float
    unknown_token_count: int


@dataclass(frozen=True)
class Choice:
    """The most probable of several continuations.

    Attributes:
        index: its index among the choices.
        scores: the scores of all choices, in their order.
        source_unknown_count: the number of positions of the source that are unknown to the encoder's vocabulary.
        unknown_token_count: the number of tokens of the prompt that are unknown to the vocabulary.
    """

    index: int
    scores: tuple[ChoiceScore, ...]
    source_unknown_count: int
    unknown_token_count: int = 0


def reports_of(chunk: v1.GenerateChunk) -> tuple[TokenReport, ...]:
    return tuple(
        TokenReport(
            report.log_probability,
            tuple((likely.token_id, likely.text, likely.log_probability) for likely in report.most_likely),
        )
        for report in chunk.reports
    )


def usage_of(finished: v1.GenerateFinished) -> Usage | None:
    if not finished.HasField("usage"):
        return None
    usage = finished.usage
    times = (usage.waiting_time, usage.first_token_time, usage.total_time)
    return Usage(usage.step_count, *(time.ToNanoseconds() / 1e9 for time in times))


class ContinuationCollector:
    """Assembles several continuations from the responses that carry parts of them."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._ids: dict[int, list[int]] = {}
        self._reports: dict[int, list[TokenReport]] = {}
        self._finished: dict[int, v1.GenerateFinished] = {}
        self._started = v1.GenerateStarted()

    def add(self, response: v1.GenerateResponse) -> None:
        """Add the next response."""
        if response.HasField("started"):
            self._started = response.started
        index = response.sequence_index
        self._texts.setdefault(index, []).append(response.chunk.text)
        self._ids.setdefault(index, []).extend(response.chunk.token_ids)
        self._reports.setdefault(index, []).extend(reports_of(response.chunk))
        if response.HasField("finished"):
            self._finished[index] = response.finished

    def continuations(self) -> list[Continuation]:
        """All finished continuations, in order."""
        return [self._continuation(index, finished) for index, finished in sorted(self._finished.items())]

    def _continuation(self, index: int, finished: v1.GenerateFinished) -> Continuation:
        return Continuation(
            "".join(self._texts[index]),
            tuple(self._ids[index]),
            FinishReason(finished.finish_reason),
            finished.stop_sequence,
            finished.score if finished.HasField("score") else None,
            tuple(self._reports[index]),
            usage_of(finished),
            self._started.unknown_token_count,
            self._started.source_unknown_count,
        )
