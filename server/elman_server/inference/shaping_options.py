"""How a request wants the logits to be changed before a token is chosen: the options, their ranges and defaults."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from elman_server.decoding.host.shaping import Shaping
from elman_server.errors import InvalidFieldError
from elman_server.inference.model import ServedModel

MAX_BIASES = 4096
MAX_BIAS = 1e4


@dataclass(frozen=True)
class ShapingOptions:
    """What changes the logits before a token is chosen. `Shaping` has the meaning of each field."""

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    min_tokens: int = 0
    forced_token_ids: Sequence[int] = ()
    forbidden_token_ids: Sequence[int] = ()


def check_shaping(options: ShapingOptions, model: ServedModel, max_tokens: int) -> Shaping:
    """Check options and return what the decoder applies.

    Raises:
        InvalidFieldError: one is out of range, or does not go with another.
    """
    if len(options.logit_bias) > MAX_BIASES:
        rule = f"at most {MAX_BIASES} are allowed"
        raise InvalidFieldError("shaping.logit_bias", f"{len(options.logit_bias)} tokens", rule)
    _check_ids(options.logit_bias, "shaping.logit_bias", model)
    for token, bias in options.logit_bias.items():
        _check_bias(bias, f"shaping.logit_bias[{token}]")
    repetition = options.repetition_penalty
    if not (math.isfinite(repetition) and repetition > 0):
        raise InvalidFieldError("shaping.repetition_penalty", repetition, "must be finite and above 0")
    _check_bias(options.frequency_penalty, "shaping.frequency_penalty")
    _check_bias(options.presence_penalty, "shaping.presence_penalty")
    if not 0 <= options.min_tokens <= max_tokens:
        rule = f"must be 0 to max_tokens, {max_tokens}"
        raise InvalidFieldError("shaping.min_tokens", options.min_tokens, rule)
    _check_forced(options, model, max_tokens)
    return Shaping(
        logit_bias=dict(options.logit_bias),
        repetition_penalty=repetition,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        forbidden_tokens=tuple(sorted(set(options.forbidden_token_ids))),
        min_tokens=options.min_tokens,
        forced_tokens=tuple(options.forced_token_ids),
    )


def _check_bias(value: float, name: str) -> None:
    if not abs(value) <= MAX_BIAS:
        raise InvalidFieldError(name, value, f"must be {-MAX_BIAS:g} to {MAX_BIAS:g}")


def _check_forced(options: ShapingOptions, model: ServedModel, max_tokens: int) -> None:
    forced, forbidden = options.forced_token_ids, options.forbidden_token_ids
    # Before anything goes through them.
    if len(forced) > max_tokens:
        rule = f"at most max_tokens, {max_tokens}, are allowed"
        raise InvalidFieldError("shaping.forced_token_ids", f"{len(forced)} tokens", rule)
    if len(forbidden) > model.vocabulary_size:
        rule = f"{model.name!r} has {model.vocabulary_size}"
        raise InvalidFieldError("shaping.forbidden_token_ids", f"{len(forbidden)} tokens", rule, "Name each one once")
    _check_ids(forced, "shaping.forced_token_ids", model)
    _check_ids(forbidden, "shaping.forbidden_token_ids", model)
    excluded = {*forbidden, *model.ungenerated_ids}
    wrong = next((token for token in forced if token in excluded), None)
    if wrong is not None:
        raise InvalidFieldError("shaping.forced_token_ids", f"token {wrong}", "this token must never be generated")
    if model.end_token is not None and model.end_token in forced[:-1]:
        rule = "the generation ends with it, so it can only be the last one"
        raise InvalidFieldError("shaping.forced_token_ids", f"the end token, {model.end_token}", rule)
    if model.end_token is not None and options.min_tokens > len(forced):
        excluded.add(model.end_token)
    if excluded.issuperset(range(model.vocabulary_size)):
        rule = "no token is left to choose, everything that could follow is forbidden"
        raise InvalidFieldError("shaping.forbidden_token_ids", "every token", rule)


def _check_ids(ids: Collection[int], name: str, model: ServedModel) -> None:
    size = model.vocabulary_size
    given = np.fromiter(ids, np.int64, len(ids))
    outside = np.flatnonzero((given < 0) | (given >= size))
    if outside.size:
        wrong = given[outside[0]]
        rule = f"the ids of {model.name!r} are 0 to {size - 1}"
        raise InvalidFieldError(name, f"token {wrong}", rule)
