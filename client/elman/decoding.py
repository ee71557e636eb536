"""The options of generation: how tokens are chosen, and when a generation ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypedDict

from google.protobuf.duration_pb2 import Duration

from elman_protos import v1


class EarlyStopping(Enum):
    """When a beam search ends before max_tokens.

    Attributes:
        LIKELY: when no live beam, if it ended now, would score higher than the worst of `width` finished ones.
        FIRST: when `width` continuations have finished.
        CERTAIN: when no live beam can still score higher than the worst of `width` finished ones.
    """

    LIKELY = v1.EARLY_STOPPING_LIKELY
    FIRST = v1.EARLY_STOPPING_FIRST
    CERTAIN = v1.EARLY_STOPPING_CERTAIN


class Decoding(TypedDict, total=False):
    """The options of a generation, all of them optional.

    Attributes:
        max_tokens: the largest number of tokens to generate; default 256, or the server's limit if it is lower.
        temperature: below 1 sharpens the distribution, above 1 flattens it, 0 is greedy; default 1.
        top_k: sample only from this number of most probable tokens; default all.
        top_p: sample only from the most probable tokens that together reach this probability; default 1, all.
        min_p: sample only from tokens whose probability relative to the most probable one is at least this; default 0,
            all.
        seed: the seed of the random numbers; default a random one.
        logit_bias: numbers to add to the logits of tokens, by id.
        repetition_penalty: above 1 makes tokens that have occurred, also in the prompt, less probable; default 1.
        frequency_penalty: subtracted from the logit of a token each time it is generated; default 0.
        presence_penalty: subtracted once from the logit of every token that has been generated; default 0.
        min_tokens: the number of tokens before which the end token is not generated; default 0.
        forced_tokens: the ids that the generation starts with.
        forbidden_tokens: ids that are never generated.
        regex: a regular expression that the whole text must match.
        json_schema: a JSON schema that the text must satisfy, as text or as an object for `json.dumps`.
        lark_grammar: a grammar in the syntax of Lark that the text must satisfy.
        stop: texts before which the generation ends.
        time_limit: seconds after which the generation ends with the tokens it has.
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


_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_SHAPING = ("repetition_penalty", "frequency_penalty", "presence_penalty", "min_tokens")
_IDS = {"forced_tokens": "forced_token_ids", "forbidden_tokens": "forbidden_token_ids"}
_EXPRESSIONS = ("regex", "lark_grammar")
_LONGEST_DURATION = 315_576_000_000  # seconds: 10,000 years


def set_decoding(request: v1.GenerateRequest, decoding: Decoding) -> None:
    """Write options into a request.

    Raises:
        ValueError, TypeError, OverflowError: an option does not exist, excludes another one, or has a value that the
            protocol cannot express.
    """
    given: dict[str, Any] = {name: value for name, value in decoding.items() if value is not None}
    unknown = sorted(given.keys() - Decoding.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no option {unknown[0]!r}")
    for names, message in (
        (("max_tokens", "seed"), request),
        (_SAMPLING, request.sampling),
        (_SHAPING, request.shaping),
    ):
        for name in names:
            if name in given:
                setattr(message, name, given[name])
    for name, field in _IDS.items():
        if name in given:
            getattr(request.shaping, field).extend(given[name])
    for token, bias in given.get("logit_bias", {}).items():
        request.shaping.logit_bias[token] = bias
    _set_constraint(request.constraint, given)
    stop = given.get("stop", ())
    request.stop_sequences.extend([stop] if isinstance(stop, str) else stop)
    if "time_limit" in given:
        set_duration(request.time_limit, given["time_limit"], "time_limit")


def _set_constraint(constraint: v1.Constraint, given: Mapping[str, Any]) -> None:
    named = [name for name in (*_EXPRESSIONS, "json_schema") if name in given]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} exclude each other")
    for name in _EXPRESSIONS:
        if name in given:
            setattr(constraint, name, given[name])
    if "json_schema" in given:
        schema = given["json_schema"]
        constraint.json_schema = schema if isinstance(schema, str) else json.dumps(schema)


def set_duration(duration: Duration, seconds: float, name: str) -> None:
    """Write a time span into a message.

    Args:
        duration: the message.
        seconds: the span.
        name: the name of the option, for the error message.

    Raises:
        ValueError: the span is not a number or is longer than the protocol can express.
    """
    if not -_LONGEST_DURATION <= seconds <= _LONGEST_DURATION:
        raise ValueError(f"{name}: got {seconds}; it must be a number of seconds, at most {_LONGEST_DURATION}")
    duration.FromNanoseconds(round(seconds * 1e9))
