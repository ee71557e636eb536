"""How a client says how tokens are chosen, and what it is told of whole continuations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypedDict

from google.protobuf.duration_pb2 import Duration

from elman_protos import v1


class FinishReason(Enum):
    """Why a generation ended."""

    MAX_TOKENS = v1.FINISH_REASON_MAX_TOKENS
    END_TOKEN = v1.FINISH_REASON_END_TOKEN
    STOP_SEQUENCE = v1.FINISH_REASON_STOP_SEQUENCE
    TIME_LIMIT = v1.FINISH_REASON_TIME_LIMIT
    CONSTRAINT = v1.FINISH_REASON_CONSTRAINT


class EarlyStopping(Enum):
    """When a beam search ends before max_tokens."""

    LIKELY = v1.EARLY_STOPPING_LIKELY
    FIRST = v1.EARLY_STOPPING_FIRST
    CERTAIN = v1.EARLY_STOPPING_CERTAIN


class Decoding(TypedDict, total=False):
    """What may be said about how tokens are chosen and when a generation ends; all of it may be left out.

    Attributes:
        max_tokens: the largest number of tokens to generate; default 256, or the server's limit if that is less.
        temperature: below 1 sharper, above 1 flatter, 0 greedy; default 1.
        top_k: only so many of the most probable tokens are drawn from; default all.
        top_p: only the most probable tokens that together reach this probability are drawn from; default 1, all.
        min_p: only tokens at least so probable, beside the most probable one, are drawn from; default 0, all.
        seed: of the random numbers; default a random one.
        logit_bias: added to the logits of tokens, by id.
        repetition_penalty: above 1 what has occurred becomes less probable, in the prompt, too; default 1.
        frequency_penalty: taken from a token's logit as often as it has been generated.
        presence_penalty: taken from the logit of every token that has been generated.
        min_tokens: the end token is not generated before so many others.
        forced_tokens: the ids that the generation begins with.
        forbidden_tokens: the ids that are never generated.
        regex: a regular expression that the whole text must match.
        json_schema: a JSON schema that the text must satisfy, as text or as what `json.dumps` takes.
        lark_grammar: a grammar in the syntax of Lark that the text must satisfy.
        stop: texts at which the generation ends, before them.
        time_limit: seconds after which it ends with what there is.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    logit_bias: Mapping[int, float]
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    min_tokens: int
    forced_tokens: Sequence[int]
    forbidden_tokens: Sequence[int]
    regex: str
    json_schema: str | Mapping[str, Any]
    lark_grammar: str
    stop: Sequence[str]
    time_limit: float


@dataclass(frozen=True)
class TokenReport:
    """How probable a generated token was, by the model itself.

    Attributes:
        log_probability: the natural logarithm of its probability.
        most_likely: the most probable tokens in its place, the most probable first: id, text, log-probability.
    """

    log_probability: float
    most_likely: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True)
class Usage:
    """What a generation has used; times in seconds since the server got the request.

    Attributes:
        step_count: how many steps the model has taken for it.
        waiting_time: when the first one was taken.
        first_token_time: when the first token was there.
        total_time: when the last one was.
    """

    step_count: int
    waiting_time: float
    first_token_time: float
    total_time: float


@dataclass(frozen=True)
class Continuation:
    """One whole continuation of a prompt.

    Attributes:
        text: its text.
        token_ids: its tokens.
        finish_reason: why it ended.
        stop_sequence: the stop sequence that ended it, or "".
        score: of a beam search, the sum of the log-probabilities divided by the length's power; else None.
        reports: of its tokens, where they were asked for.
        usage: what it has used.
        unknown_token_count: how many tokens of its prompt stand for what the vocabulary does not have.
        source_unknown_count: how many positions of its source stand for what the encoder's vocabulary does not have.
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


_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_SHAPING = ("repetition_penalty", "frequency_penalty", "presence_penalty", "min_tokens")
_IDS = {"forced_tokens": "forced_token_ids", "forbidden_tokens": "forbidden_token_ids"}
_EXPRESSIONS = ("regex", "lark_grammar")
_LONGEST_DURATION = 315_576_000_000  # seconds: 10,000 years


def set_decoding(request: v1.GenerateRequest, decoding: Decoding) -> None:
    """Say in a request how to decode.

    Raises:
        ValueError, TypeError, OverflowError: it cannot be said.
    """
    said: dict[str, Any] = {name: value for name, value in decoding.items() if value is not None}
    unknown = sorted(said.keys() - Decoding.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no option {unknown[0]!r}")
    for name in ("max_tokens", "seed"):
        if name in said:
            setattr(request, name, said[name])
    for name in _SAMPLING:
        if name in said:
            setattr(request.sampling, name, said[name])
    for name in _SHAPING:
        if name in said:
            setattr(request.shaping, name, said[name])
    for name, field in _IDS.items():
        if name in said:
            getattr(request.shaping, field).extend(said[name])
    for token, bias in said.get("logit_bias", {}).items():
        request.shaping.logit_bias[token] = bias
    expressions = [name for name in (*_EXPRESSIONS, "json_schema") if name in said]
    if len(expressions) > 1:
        raise ValueError(f"{' and '.join(expressions)} exclude each other")
    for name in _EXPRESSIONS:
        if name in said:
            setattr(request.constraint, name, said[name])
    if "json_schema" in said:
        schema = said["json_schema"]
        request.constraint.json_schema = schema if isinstance(schema, str) else json.dumps(schema)
    stop = said.get("stop", ())
    request.stop_sequences.extend([stop] if isinstance(stop, str) else stop)
    if "time_limit" in said:
        set_duration(request.time_limit, said["time_limit"], "time_limit")


def set_duration(duration: Duration, seconds: float, name: str) -> None:
    """Say a span of time.

    Args:
        duration: where to say it.
        seconds: how long it is.
        name: what it is called, for the message.

    Raises:
        ValueError: it is longer than can be said, or no number.
    """
    if not -_LONGEST_DURATION <= seconds <= _LONGEST_DURATION:
        raise ValueError(f"{name} is {seconds}, but must be a number of seconds, at most {_LONGEST_DURATION}")
    duration.FromNanoseconds(round(seconds * 1e9))


def reports_of(chunk: v1.GenerateChunk) -> tuple[TokenReport, ...]:
    """What a chunk reports of its tokens."""
    return tuple(
        TokenReport(
            report.log_probability,
            tuple((likely.token_id, likely.text, likely.log_probability) for likely in report.most_likely),
        )
        for report in chunk.reports
    )


def usage_of(finished: v1.GenerateFinished) -> Usage | None:
    """What a generation has used, if that is told."""
    if not finished.HasField("usage"):
        return None
    usage = finished.usage
    times = (usage.waiting_time, usage.first_token_time, usage.total_time)
    return Usage(usage.step_count, *(time.ToNanoseconds() / 1e9 for time in times))


class Gathering:
    """Puts several continuations together from the responses that bring them in parts."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._ids: dict[int, list[int]] = {}
        self._reports: dict[int, list[TokenReport]] = {}
        self._finished: dict[int, v1.GenerateFinished] = {}
        self._started = v1.GenerateStarted()

    def take(self, response: v1.GenerateResponse) -> None:
        """The next response."""
        if response.HasField("started"):
            self._started = response.started
        index = response.sequence_index
        self._texts.setdefault(index, []).append(response.chunk.text)
        self._ids.setdefault(index, []).extend(response.chunk.token_ids)
        self._reports.setdefault(index, []).extend(reports_of(response.chunk))
        if response.HasField("finished"):
            self._finished[index] = response.finished

    def continuations(self) -> list[Continuation]:
        """All of them, in order."""
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
