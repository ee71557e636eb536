"""GenerateRequest: its fields, and how they become a `GenerationRequest`.

A new field is declared in `FIELDS` and read by one of the functions below; a test sets every field of the message, the
nested ones included, and fails for one that makes no difference here.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from elman_protos import v1
from elman_server.decoding.beams import EarlyStopping
from elman_server.decoding.constraints import Constraint, ConstraintKind
from elman_server.errors import InvalidFieldError
from elman_server.inference.generation_options import Beam, GenerationOptions, Sampling
from elman_server.inference.generation_request import GenerationRequest
from elman_server.inference.shaping_options import ShapingOptions
from elman_server.rpc.requests.fields import RequestFields
from elman_server.rpc.requests.inputs import parse_input, parse_source
from elman_server.rpc.requests.sessions import parse_target

FIELDS = RequestFields(
    v1.GenerateRequest,
    content={
        "model",
        "text",
        "tokens",
        "source",
        "max_tokens",
        "greedy",
        "sampling",
        "beam",
        "seed",
        "shaping",
        "constraint",
        "stop_sequences",
        "time_limit",
        "log_probabilities",
    },
    delivery={"session", "received_token_count", "interval", "single_tokens", "bypass_prefix_cache"},
)
# Each holds requests and nothing else.
RequestFields(v1.GenerateManyRequest, content={"requests"})

_EARLY_STOPPING = {
    v1.EARLY_STOPPING_UNSPECIFIED: EarlyStopping.LIKELY,
    v1.EARLY_STOPPING_LIKELY: EarlyStopping.LIKELY,
    v1.EARLY_STOPPING_FIRST: EarlyStopping.FIRST,
    v1.EARLY_STOPPING_CERTAIN: EarlyStopping.CERTAIN,
}
_CONSTRAINT_KINDS = {
    "regex": ConstraintKind.REGEX,
    "json_schema": ConstraintKind.JSON_SCHEMA,
    "lark_grammar": ConstraintKind.LARK,
}


def parse_generate(request: v1.GenerateRequest) -> GenerationRequest:
    """Return the request to continue a prompt or a session.

    Raises:
        InvalidFieldError: it has a value that the interface does not define.
    """
    options = _parse_options(request)
    in_session = request.HasField("session")
    return GenerationRequest(
        request.model,
        parse_input(request, request.WhichOneof("prompt")),
        parse_source(request) if request.HasField("source") else None,
        options,
        request.seed if request.HasField("seed") else None,
        parse_target(request.session, FIELDS.fingerprint(request)) if in_session else None,
        request.received_token_count,
        request.bypass_prefix_cache,
    )


def _parse_options(request: v1.GenerateRequest) -> GenerationOptions:
    """Return how tokens are chosen, when the generation ends, and how tokens are delivered."""
    report = request.log_probabilities
    return GenerationOptions(
        _parse_method(request),
        request.max_tokens if request.HasField("max_tokens") else None,
        _parse_shaping(request.shaping) if request.HasField("shaping") else None,
        _parse_constraint(request.constraint) if request.HasField("constraint") else None,
        tuple(request.stop_sequences),
        _seconds(request.time_limit) if request.HasField("time_limit") else None,
        report.most_likely_count if request.HasField("log_probabilities") else None,
        _seconds(request.interval) if request.HasField("interval") else None,
        request.HasField("single_tokens"),
    )


def _parse_method(request: v1.GenerateRequest) -> Sampling | Beam:
    method = request.WhichOneof("decoding")
    if method == "greedy":
        return Sampling(temperature=0.0)
    if method == "beam":
        return _parse_beam(request.beam)
    sampling = request.sampling
    return Sampling(
        sampling.temperature if sampling.HasField("temperature") else 1.0,
        sampling.top_k if sampling.HasField("top_k") else None,
        sampling.top_p if sampling.HasField("top_p") else 1.0,
        sampling.min_p,
        sampling.sample_count if sampling.HasField("sample_count") else 1,
    )


def _parse_beam(beam: v1.BeamDecoding) -> Beam:
    if beam.early_stopping not in _EARLY_STOPPING:
        rule = f"must be {min(_EARLY_STOPPING)} to {max(_EARLY_STOPPING)}"
        raise InvalidFieldError("beam.early_stopping", beam.early_stopping, rule)
    return Beam(
        beam.width,
        beam.result_count if beam.HasField("result_count") else 1,
        beam.length_penalty if beam.HasField("length_penalty") else 1.0,
        _EARLY_STOPPING[beam.early_stopping],
    )


def _parse_shaping(shaping: v1.Shaping) -> ShapingOptions:
    return ShapingOptions(
        shaping.logit_bias,
        shaping.repetition_penalty if shaping.HasField("repetition_penalty") else 1.0,
        shaping.frequency_penalty,
        shaping.presence_penalty,
        shaping.min_tokens,
        shaping.forced_token_ids,
        shaping.forbidden_token_ids,
    )


def _parse_constraint(constraint: v1.Constraint) -> Constraint:
    kind = constraint.WhichOneof("expression")
    if kind is None:
        remedy = "Give a regex, a json_schema or a lark_grammar"
        raise InvalidFieldError("constraint", "no expression", "one is needed", remedy)
    return Constraint(_CONSTRAINT_KINDS[kind], getattr(constraint, kind))


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
