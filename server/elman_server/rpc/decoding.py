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
from elman_server.rpc.errors import FieldError
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
        FieldError: something is outside its range, or does not go with something else.
    """
    default = min(DEFAULT_MAX_TOKENS, limits.max_tokens)
    max_tokens = request.max_tokens if request.HasField("max_tokens") else default
    if not 1 <= max_tokens <= limits.max_tokens:
        raise FieldError(
            "max_tokens", f"is {max_tokens}, but must be 1 to {limits.max_tokens}", limit=limits.max_tokens
        )
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
        raise FieldError("sampling.temperature", f"is {temperature}, but must be finite and not negative")
    top_k = sampling.top_k if sampling.HasField("top_k") else model.vocabulary.size
    if top_k < 1:
        raise FieldError("sampling.top_k", f"is {top_k}, but must be at least 1")
    top_p = sampling.top_p if sampling.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        raise FieldError("sampling.top_p", f"is {top_p}, but must be above 0 and at most 1")
    min_p = sampling.min_p
    if not 0 <= min_p <= 1:
        raise FieldError("sampling.min_p", f"is {min_p}, but must be 0 to 1")
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
        raise FieldError("shaping.logit_bias", f"has {len(asked.logit_bias)} tokens, but may have {MOST_BIASES}")
    _check_ids(asked.logit_bias, "shaping.logit_bias", model)
    for token, bias in asked.logit_bias.items():
        if not abs(bias) <= LARGEST_BIAS:
            message = f"is {bias}, but must be {-LARGEST_BIAS:g} to {LARGEST_BIAS:g}"
            raise FieldError(f"shaping.logit_bias[{token}]", message)
    repetition = asked.repetition_penalty if asked.HasField("repetition_penalty") else 1.0
    if not (math.isfinite(repetition) and repetition > 0):
        raise FieldError("shaping.repetition_penalty", f"is {repetition}, but must be finite and above 0")
    for name in ("frequency_penalty", "presence_penalty"):
        if not abs(penalty := getattr(asked, name)) <= LARGEST_BIAS:
            message = f"is {penalty}, but must be {-LARGEST_BIAS:g} to {LARGEST_BIAS:g}"
            raise FieldError(f"shaping.{name}", message)
    if not 0 <= asked.min_tokens <= max_tokens:
        raise FieldError("shaping.min_tokens", f"is {asked.min_tokens}, but must be 0 to max_tokens, {max_tokens}")
    for field in ("forced_token_ids", "forbidden_token_ids"):
        _check_ids(getattr(asked, field), f"shaping.{field}", model)
    excluded = {*asked.forbidden_token_ids, model.vocabulary.unknown_id}
    wrong = next((token for token in asked.forced_token_ids if token in excluded), None)
    if wrong is not None:
        raise FieldError("shaping.forced_token_ids", f"names the token {wrong}, which must never be generated")
    if excluded.issuperset(range(model.vocabulary.size)):
        message = "names every token: no token is left to choose, everything that could follow is forbidden"
        raise FieldError("shaping.forbidden_token_ids", message)
    if len(asked.forced_token_ids) > max_tokens:
        message = f"has {len(asked.forced_token_ids)} tokens, more than max_tokens, {max_tokens}"
        raise FieldError("shaping.forced_token_ids", message)
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
        raise FieldError(field, f"names the token {wrong}, but the ids of {model.name!r} are 0 to {size - 1}")


def _constraint(request: v1.GenerateRequest, model: ServedModel) -> Constraint | None:
    if not request.HasField("constraint"):
        return None
    if model.text_spec.kind == v1.VOCABULARY_KIND_SYMBOLS:
        message = (
            f"is given, but the tokens of {model.name!r} are symbols, with spaces between them that none of them has"
        )
        raise FieldError("constraint", f"{message}: leave it out")
    kind = request.constraint.WhichOneof("expression")
    if kind is None:
        raise FieldError("constraint", "is empty: give a regex, a json_schema or a lark_grammar")
    return Constraint(_KINDS[kind], getattr(request.constraint, kind))


def _sample_count(request: v1.GenerateRequest, model: ServedModel) -> int:
    count, most = request.sampling.sample_count, model.scheduler.slot_count
    if not request.sampling.HasField("sample_count"):
        return 1
    if not 1 <= count <= most:
        raise FieldError("sampling.sample_count", f"is {count}, but must be 1 to {most}", limit=most)
    return count


def _beams(request: v1.GenerateRequest, model: ServedModel, max_tokens: int) -> BeamParams | None:
    if not request.HasField("beam"):
        return None
    asked, most = request.beam, model.scheduler.slot_count
    if not 1 <= asked.width <= most:
        raise FieldError("beam.width", f"is {asked.width}, but must be 1 to {most}", limit=most)
    result_count = asked.result_count if asked.HasField("result_count") else 1
    if not 1 <= result_count <= asked.width:
        raise FieldError("beam.result_count", f"is {result_count}, but must be 1 to width, {asked.width}")
    length_penalty = asked.length_penalty if asked.HasField("length_penalty") else 1.0
    if not abs(length_penalty) <= LARGEST_LENGTH_PENALTY:
        message = f"is {length_penalty}, but must be {-LARGEST_LENGTH_PENALTY:g} to {LARGEST_LENGTH_PENALTY:g}"
        raise FieldError("beam.length_penalty", message)
    if asked.early_stopping not in _EARLY_STOPPING:
        raise FieldError("beam.early_stopping", f"is {asked.early_stopping}, which is none of the known ones")
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
        message = f"are {len(request.stop_sequences)}, but may be {MOST_STOP_SEQUENCES}"
        raise FieldError("stop_sequences", message)
    for number, sequence in enumerate(request.stop_sequences):
        if not 1 <= len(sequence) <= LONGEST_STOP_SEQUENCE:
            message = f"has {len(sequence)} characters, but must have 1 to {LONGEST_STOP_SEQUENCE}"
            raise FieldError(f"stop_sequences[{number}]", message)
    return tuple(request.stop_sequences)


def _report_count(request: v1.GenerateRequest) -> int | None:
    if not request.HasField("log_probabilities"):
        return None
    count = request.log_probabilities.most_likely_count
    if not 0 <= count <= MOST_LIKELY:
        raise FieldError("log_probabilities.most_likely_count", f"is {count}, but must be 0 to {MOST_LIKELY}")
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
                raise FieldError(field, "cannot be had together with a beam search")
    if in_session and decoding.sample_count > 1:
        raise FieldError("sampling.sample_count", "must be 1 in a session, which goes on in one way: fork it first")
    if decoding.report_count is not None and request.session.request_id:
        raise FieldError("log_probabilities", "are not recorded: they need a call without a session.request_id")
