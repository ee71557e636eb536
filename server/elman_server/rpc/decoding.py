"""From a Generate request to how its tokens are chosen and when it ends. Every complaint names the field, what is wrong
and what would be right."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from elman_protos import v1
from elman_server.decoding.beams import LARGEST_LENGTH_PENALTY, BeamParams, EarlyStopping
from elman_server.decoding.constraints import Constraint, ConstraintKind
from elman_server.decoding.shaping import Shaping
from elman_server.errors import InvalidFieldError
from elman_server.rpc.models import ServedModel
from elman_server.rpc.validation import Limits, duration_seconds
from elman_server.scheduling import SamplingParams

DEFAULT_MAX_TOKENS = 256
MOST_STOP_SEQUENCES = 16
LONGEST_STOP_SEQUENCE = 256  # characters
MOST_LIKELY = 32  # tokens that are reported beside each generated one
MOST_BIASES = 4096
LARGEST_BIAS = 1e4
_EARLY_STOPPING = {
    v1.EARLY_STOPPING_UNSPECIFIED: EarlyStopping.LIKELY,
    v1.EARLY_STOPPING_LIKELY: EarlyStopping.LIKELY,
    v1.EARLY_STOPPING_FIRST: EarlyStopping.FIRST,
    v1.EARLY_STOPPING_CERTAIN: EarlyStopping.CERTAIN,
}
_KINDS = {
    "regex": ConstraintKind.REGEX,
    "json_schema": ConstraintKind.JSON_SCHEMA,
    "lark_grammar": ConstraintKind.LARK,
}


@dataclass(frozen=True)
class Decoding:
    """What a request asks for.

    Attributes:
        params: how tokens are drawn; without the grammar, which has to be compiled.
        constraint: what to compile, if anything.
        sample_count: how many continuations are drawn.
        beams: how to search instead, if that is asked for.
        stop_sequences: texts that end it.
        time_limit: seconds after which it ends with what there is.
        report_count: how many of the most probable tokens are reported with each; None: nothing is reported.
    """

    params: SamplingParams
    constraint: Constraint | None
    sample_count: int
    beams: BeamParams | None
    stop_sequences: tuple[str, ...]
    time_limit: float | None
    report_count: int | None


def requested_decoding(request: v1.GenerateRequest, seed: int, model: ServedModel, limits: Limits) -> Decoding:
    """How to choose tokens and when to stop, under a seed that is the request's or has been chosen for it.

    Raises:
        InvalidFieldError: something is outside its range, or does not go with something else.
    """
    default = min(DEFAULT_MAX_TOKENS, limits.max_tokens)
    max_tokens = request.max_tokens if request.HasField("max_tokens") else default
    if not 1 <= max_tokens <= limits.max_tokens:
        raise InvalidFieldError("max_tokens", max_tokens, f"must be 1 to {limits.max_tokens}", limit=limits.max_tokens)
    decoding = Decoding(
        _params(request, seed, model, max_tokens),
        _constraint(request, model),
        _sample_count(request, model),
        _beams(request, model, max_tokens),
        _stop_sequences(request),
        duration_seconds(request.time_limit, "time_limit") if request.HasField("time_limit") else None,
        _report_count(request),
    )
    _check_together(request, decoding)
    return decoding


def _params(request: v1.GenerateRequest, seed: int, model: ServedModel, max_tokens: int) -> SamplingParams:
    sampling = request.sampling
    temperature = 1.0
    if request.HasField("greedy"):
        temperature = 0.0
    elif sampling.HasField("temperature"):
        temperature = sampling.temperature
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InvalidFieldError("sampling.temperature", temperature, "must be finite and not negative")
    top_k = sampling.top_k if sampling.HasField("top_k") else model.vocabulary.size
    if top_k < 1:
        raise InvalidFieldError("sampling.top_k", top_k, "must be at least 1")
    top_p = sampling.top_p if sampling.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        raise InvalidFieldError("sampling.top_p", top_p, "must be above 0 and at most 1")
    min_p = sampling.min_p
    if not 0 <= min_p <= 1:
        raise InvalidFieldError("sampling.min_p", min_p, "must be 0 to 1")
    return SamplingParams(
        temperature,
        seed,
        max_tokens,
        top_k=min(top_k, model.vocabulary.size),
        top_p=top_p,
        min_p=min_p,
        end_token=model.end_token,
        shaping=_shaping(request.shaping, model, max_tokens) if request.HasField("shaping") else None,
    )


def _shaping(asked: v1.Shaping, model: ServedModel, max_tokens: int) -> Shaping:
    if len(asked.logit_bias) > MOST_BIASES:
        raise InvalidFieldError(
            "shaping.logit_bias", f"{len(asked.logit_bias)} tokens", f"at most {MOST_BIASES} are allowed"
        )
    _check_ids(asked.logit_bias, "shaping.logit_bias", model)
    for token, bias in asked.logit_bias.items():
        if not abs(bias) <= LARGEST_BIAS:
            rule = f"must be {-LARGEST_BIAS:g} to {LARGEST_BIAS:g}"
            raise InvalidFieldError(f"shaping.logit_bias[{token}]", bias, rule)
    repetition = asked.repetition_penalty if asked.HasField("repetition_penalty") else 1.0
    if not (math.isfinite(repetition) and repetition > 0):
        raise InvalidFieldError("shaping.repetition_penalty", repetition, "must be finite and above 0")
    for name in ("frequency_penalty", "presence_penalty"):
        if not abs(penalty := getattr(asked, name)) <= LARGEST_BIAS:
            rule = f"must be {-LARGEST_BIAS:g} to {LARGEST_BIAS:g}"
            raise InvalidFieldError(f"shaping.{name}", penalty, rule)
    if not 0 <= asked.min_tokens <= max_tokens:
        raise InvalidFieldError("shaping.min_tokens", asked.min_tokens, f"must be 0 to max_tokens, {max_tokens}")
    for field in ("forced_token_ids", "forbidden_token_ids"):
        _check_ids(getattr(asked, field), f"shaping.{field}", model)
    excluded = {*asked.forbidden_token_ids, model.vocabulary.unknown_id}
    wrong = next((token for token in asked.forced_token_ids if token in excluded), None)
    if wrong is not None:
        raise InvalidFieldError("shaping.forced_token_ids", f"token {wrong}", "this token must never be generated")
    if excluded.issuperset(range(model.vocabulary.size)):
        rule = "no token is left to choose, everything that could follow is forbidden"
        raise InvalidFieldError("shaping.forbidden_token_ids", "every token", rule)
    if len(asked.forced_token_ids) > max_tokens:
        got = f"{len(asked.forced_token_ids)} tokens"
        raise InvalidFieldError("shaping.forced_token_ids", got, f"at most max_tokens, {max_tokens}, are allowed")
    return Shaping(
        logit_bias=dict(asked.logit_bias),
        repetition_penalty=repetition,
        frequency_penalty=asked.frequency_penalty,
        presence_penalty=asked.presence_penalty,
        forbidden_tokens=tuple(asked.forbidden_token_ids),
        min_tokens=asked.min_tokens,
        forced_tokens=tuple(asked.forced_token_ids),
    )


def _check_ids(ids: Iterable[int], field: str, model: ServedModel) -> None:
    size = model.vocabulary.size
    wrong = next((token for token in ids if not 0 <= token < size), None)
    if wrong is not None:
        raise InvalidFieldError(field, f"token {wrong}", f"the ids of {model.name!r} are 0 to {size - 1}")


def _constraint(request: v1.GenerateRequest, model: ServedModel) -> Constraint | None:
    if not request.HasField("constraint"):
        return None
    if model.text_spec.kind == v1.VOCABULARY_KIND_SYMBOLS:
        rule = f"the tokens of {model.name!r} are symbols, separated by spaces that no token holds"
        raise InvalidFieldError("constraint", "a constraint", rule, "Leave it out")
    kind = request.constraint.WhichOneof("expression")
    if kind is None:
        raise InvalidFieldError(
            "constraint", "no expression", "one is needed", "Give a regex, a json_schema or a lark_grammar"
        )
    return Constraint(_KINDS[kind], getattr(request.constraint, kind))


def _sample_count(request: v1.GenerateRequest, model: ServedModel) -> int:
    count, most = request.sampling.sample_count, model.scheduler.slot_count
    if not request.sampling.HasField("sample_count"):
        return 1
    if not 1 <= count <= most:
        raise InvalidFieldError("sampling.sample_count", count, f"must be 1 to {most}", limit=most)
    return count


def _beams(request: v1.GenerateRequest, model: ServedModel, max_tokens: int) -> BeamParams | None:
    if not request.HasField("beam"):
        return None
    asked, most = request.beam, model.scheduler.slot_count
    if not 1 <= asked.width <= most:
        raise InvalidFieldError("beam.width", asked.width, f"must be 1 to {most}", limit=most)
    result_count = asked.result_count if asked.HasField("result_count") else 1
    if not 1 <= result_count <= asked.width:
        raise InvalidFieldError("beam.result_count", result_count, f"must be 1 to width, {asked.width}")
    length_penalty = asked.length_penalty if asked.HasField("length_penalty") else 1.0
    if not abs(length_penalty) <= LARGEST_LENGTH_PENALTY:
        rule = f"must be {-LARGEST_LENGTH_PENALTY:g} to {LARGEST_LENGTH_PENALTY:g}"
        raise InvalidFieldError("beam.length_penalty", length_penalty, rule)
    if asked.early_stopping not in _EARLY_STOPPING:
        raise InvalidFieldError(
            "beam.early_stopping", asked.early_stopping, f"must be {min(_EARLY_STOPPING)} to {max(_EARLY_STOPPING)}"
        )
    return BeamParams(
        asked.width,
        result_count,
        max_tokens,
        model.end_token,
        length_penalty,
        _EARLY_STOPPING[asked.early_stopping],
    )


def _stop_sequences(request: v1.GenerateRequest) -> tuple[str, ...]:
    if len(request.stop_sequences) > MOST_STOP_SEQUENCES:
        rule = f"at most {MOST_STOP_SEQUENCES} are allowed"
        raise InvalidFieldError("stop_sequences", len(request.stop_sequences), rule)
    for number, sequence in enumerate(request.stop_sequences):
        if not 1 <= len(sequence) <= LONGEST_STOP_SEQUENCE:
            got, rule = f"{len(sequence)} characters", f"must have 1 to {LONGEST_STOP_SEQUENCE}"
            raise InvalidFieldError(f"stop_sequences[{number}]", got, rule)
    return tuple(request.stop_sequences)


def _report_count(request: v1.GenerateRequest) -> int | None:
    if not request.HasField("log_probabilities"):
        return None
    count = request.log_probabilities.most_likely_count
    if not 0 <= count <= MOST_LIKELY:
        raise InvalidFieldError("log_probabilities.most_likely_count", count, f"must be 0 to {MOST_LIKELY}")
    return count


def _check_together(request: v1.GenerateRequest, decoding: Decoding) -> None:
    in_session = request.HasField("session")
    if decoding.beams is not None:
        alone = {
            "session": in_session,
            "constraint": decoding.constraint is not None,
            "stop_sequences": bool(decoding.stop_sequences),
            "log_probabilities": decoding.report_count is not None,
        }
        for field, asked in alone.items():
            if asked:
                raise InvalidFieldError(field, "a value", "not available in a beam search", "Leave it out")
    if in_session and decoding.sample_count > 1:
        raise InvalidFieldError(
            "sampling.sample_count", decoding.sample_count, "must be 1 in a session", "Fork the session"
        )
    if decoding.report_count is not None and request.session.request_id:
        raise InvalidFieldError(
            "log_probabilities", "a report", "reports are not recorded", "Leave out session.request_id"
        )
