"""How a request wants tokens to be chosen, to end and to be delivered: the options, their ranges and defaults.

A new option is a field of `GenerationOptions`, a check in `check_options`, and a line of each door that offers it, such
as `elman_server.rpc.requests.generate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from elman_bundle import normalize_newlines
from elman_bundle.spec import VOCABULARY_KIND_SYMBOLS
from elman_server.decoding.beams import LARGEST_LENGTH_PENALTY, BeamParams, EarlyStopping
from elman_server.decoding.constraints import Constraint
from elman_server.errors import InvalidFieldError
from elman_server.inference.limits import Limits
from elman_server.inference.model import ServedModel
from elman_server.inference.shaping_options import ShapingOptions, check_shaping
from elman_server.scheduling import SamplingParams
from elman_server.sessions import Target

DEFAULT_MAX_TOKENS = 256
MAX_STOP_SEQUENCES = 16
MAX_STOP_CHARACTERS = 256
MAX_INTERVAL = 60  # seconds
MAX_REPORTED_TOKENS = 32  # most probable tokens, reported with each generated one


@dataclass(frozen=True)
class Sampling:
    """Each token is drawn from the distribution of the model. `SamplingParams` has the meaning of each field.

    Attributes:
        temperature: 0 is greedy.
        top_k: None for all tokens.
        top_p: 1 for all tokens.
        min_p: 0 for all tokens.
        sample_count: number of continuations that are drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    sample_count: int = 1


@dataclass(frozen=True)
class Beam:
    """The most probable continuations are searched for. `BeamParams` has the meaning of each field."""

    width: int
    result_count: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = EarlyStopping.LIKELY


@dataclass(frozen=True)
class GenerationOptions:
    """What a request says about choosing tokens, ending, and delivering them.

    Attributes:
        method: how tokens are chosen.
        max_tokens: None for the default.
        shaping: what changes the logits, if anything.
        constraint: what the text must match, if anything.
        stop_sequences: texts that end the generation.
        time_limit: seconds after which it ends with what there is; None for no limit.
        report_count: number of most probable tokens that are reported with each; None for no report.
        interval: seconds for which tokens may be coalesced; None for the server's choice.
        single_tokens: whether each token is an update of its own.
    """

    method: Sampling | Beam = Sampling()
    max_tokens: int | None = None
    shaping: ShapingOptions | None = None
    constraint: Constraint | None = None
    stop_sequences: tuple[str, ...] = ()
    time_limit: float | None = None
    report_count: int | None = None
    interval: float | None = None
    single_tokens: bool = False


@dataclass(frozen=True)
class GenerationSettings:
    """Options that have been checked against a model, with defaults filled in.

    Attributes:
        params: how tokens are drawn; its seed and its grammar are set later.
        sample_count: number of continuations that are drawn.
        beams: how to search instead, if that is asked for.
        stop_sequences: texts that end it, as they are looked for, with those that the request has.
        constraint, time_limit, report_count, interval, single_tokens: see `GenerationOptions`.
    """

    params: SamplingParams
    sample_count: int
    beams: BeamParams | None
    constraint: Constraint | None
    stop_sequences: Mapping[str, str]
    time_limit: float | None
    report_count: int | None
    interval: float | None
    single_tokens: bool


def check_options(
    options: GenerationOptions, model: ServedModel, limits: Limits, session: Target | None = None
) -> GenerationSettings:
    """Check options and fill in defaults.

    Args:
        options: the options.
        model: the model.
        limits: what a request may ask for.
        session: the session that the request continues, if any.

    Raises:
        InvalidFieldError: one is out of range, or does not go with another.
    """
    default = min(DEFAULT_MAX_TOKENS, limits.max_tokens)
    max_tokens = default if options.max_tokens is None else options.max_tokens
    if not 1 <= max_tokens <= limits.max_tokens:
        raise InvalidFieldError("max_tokens", max_tokens, f"must be 1 to {limits.max_tokens}", limit=limits.max_tokens)
    method, size = options.method, model.vocabulary_size
    sampling = method if isinstance(method, Sampling) else Sampling()
    _check_sampling(sampling, model)
    beams = _beam_params(options, method, model, max_tokens) if isinstance(method, Beam) else None
    if session is not None:
        _check_session(options, sampling, session)
    _check_constraint(options.constraint, model)
    _check_ending_and_delivery(options)
    shaping = None if options.shaping is None else check_shaping(options.shaping, model, max_tokens)
    return GenerationSettings(
        SamplingParams(
            sampling.temperature,
            0,
            max_tokens,
            top_k=size if sampling.top_k is None else min(sampling.top_k, size),
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            end_token=model.end_token,
            shaping=shaping,
        ),
        sampling.sample_count,
        beams,
        options.constraint,
        {normalize_newlines(sequence, model.vocabulary): sequence for sequence in options.stop_sequences},
        options.time_limit,
        options.report_count,
        interval=0.0 if options.single_tokens else options.interval,
        single_tokens=options.single_tokens,
    )


def _check_sampling(sampling: Sampling, model: ServedModel) -> None:
    temperature, top_k, slots = sampling.temperature, sampling.top_k, model.slot_count
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InvalidFieldError("sampling.temperature", temperature, "must be finite and not negative")
    if top_k is not None and top_k < 1:
        raise InvalidFieldError("sampling.top_k", top_k, "must be at least 1")
    if not 0 < sampling.top_p <= 1:
        raise InvalidFieldError("sampling.top_p", sampling.top_p, "must be above 0 and at most 1")
    if not 0 <= sampling.min_p <= 1:
        raise InvalidFieldError("sampling.min_p", sampling.min_p, "must be 0 to 1")
    if not 1 <= sampling.sample_count <= slots:
        raise InvalidFieldError("sampling.sample_count", sampling.sample_count, f"must be 1 to {slots}", limit=slots)


def _check_session(options: GenerationOptions, sampling: Sampling, session: Target) -> None:
    if isinstance(options.method, Beam):
        raise InvalidFieldError("session", "a session", "not available in a beam search", "Leave it out")
    if sampling.sample_count > 1:
        rule = "must be 1 in a session"
        raise InvalidFieldError("sampling.sample_count", sampling.sample_count, rule, "Fork the session")
    if options.report_count is not None and session.request_id:
        rule = "reports are not recorded"
        raise InvalidFieldError("log_probabilities", "a report", rule, "Leave out session.request_id")


def _beam_params(options: GenerationOptions, beam: Beam, model: ServedModel, max_tokens: int) -> BeamParams:
    others = {
        "constraint": options.constraint is not None,
        "stop_sequences": bool(options.stop_sequences),
        "log_probabilities": options.report_count is not None,
    }
    for name, given in others.items():
        if given:
            raise InvalidFieldError(name, "a value", "not available in a beam search", "Leave it out")
    slots, penalty = model.slot_count, beam.length_penalty
    if not 1 <= beam.width <= slots:
        raise InvalidFieldError("beam.width", beam.width, f"must be 1 to {slots}", limit=slots)
    if not 1 <= beam.result_count <= beam.width:
        raise InvalidFieldError("beam.result_count", beam.result_count, f"must be 1 to width, {beam.width}")
    if not abs(penalty) <= LARGEST_LENGTH_PENALTY:
        rule = f"must be {-LARGEST_LENGTH_PENALTY:g} to {LARGEST_LENGTH_PENALTY:g}"
        raise InvalidFieldError("beam.length_penalty", penalty, rule)
    return BeamParams(beam.width, beam.result_count, max_tokens, model.end_token, penalty, beam.early_stopping)


def _check_constraint(constraint: Constraint | None, model: ServedModel) -> None:
    if constraint is not None and model.text_spec.kind == VOCABULARY_KIND_SYMBOLS:
        rule = f"the tokens of {model.name!r} are symbols, separated by spaces that no token holds"
        raise InvalidFieldError("constraint", "a constraint", rule, "Leave it out")


def _check_ending_and_delivery(options: GenerationOptions) -> None:
    sequences, limit, interval, count = (
        options.stop_sequences,
        options.time_limit,
        options.interval,
        options.report_count,
    )
    if len(sequences) > MAX_STOP_SEQUENCES:
        raise InvalidFieldError("stop_sequences", len(sequences), f"at most {MAX_STOP_SEQUENCES} are allowed")
    for number, sequence in enumerate(sequences):
        if not 1 <= len(sequence) <= MAX_STOP_CHARACTERS:
            got, rule = f"{len(sequence)} characters", f"must have 1 to {MAX_STOP_CHARACTERS}"
            raise InvalidFieldError(f"stop_sequences[{number}]", got, rule)
    if limit is not None and limit < 0:
        raise InvalidFieldError("time_limit", f"{limit:g} seconds", "must not be negative")
    if interval is not None and not 0 <= interval <= MAX_INTERVAL:
        raise InvalidFieldError("interval", f"{interval:g} seconds", f"must be 0 to {MAX_INTERVAL} seconds")
    if count is not None and not 0 <= count <= MAX_REPORTED_TOKENS:
        raise InvalidFieldError("log_probabilities.most_likely_count", count, f"must be 0 to {MAX_REPORTED_TOKENS}")
