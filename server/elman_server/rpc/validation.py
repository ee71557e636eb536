"""From a request to what scheduling runs. Every complaint names the field, what is wrong and what would be right."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from numpy.typing import NDArray

from elman_bundle import EncodingError, TextVocabulary
from elman_bundle.vocabulary import TokenIds
from elman_protos import v1
from elman_protos.element_types import BY_DATA_TYPE, element_type
from elman_server.errors import InputTooLongError, InvalidFieldError, MessageTooLargeError, shortened
from elman_server.rpc.lengthy import by_length
from elman_server.rpc.models import ServedModel
from elman_server.scheduling import Source
from elman_server.sessions import Target

LONGEST_INTERVAL = 60  # seconds
LONGEST_REQUEST_ID = 64  # characters
# Fields that change how or when a call is answered, and nothing about the answer.
_HOW_AND_NOT_WHAT = (
    "session",
    "received_token_count",
    "interval",
    "single_tokens",
    "request_id",
    "bypass_prefix_cache",
)
_Text = (
    v1.GenerateRequest
    | v1.ChooseRequest
    | v1.ClassifyRequest
    | v1.Piece
    | v1.CreateSessionRequest
    | v1.AnalysisInput
    | v1.Source
    | v1.Choice
)
_SESSION_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_tokens: generated tokens.
        input_tokens: tokens of a prompt, an input or a piece.
        message_bytes: bytes of one message.
    """

    max_tokens: int
    input_tokens: int
    message_bytes: int

    @property
    def total_tokens(self) -> int:
        """Tokens of all inputs together, where a request has several."""
        return 16 * self.input_tokens


def check_size(message: Message, limits: Limits) -> None:
    """Refuse a message that is too large.

    Raises:
        MessageTooLargeError: it is.
    """
    size = message.ByteSize()
    if size > limits.message_bytes:
        raise MessageTooLargeError(size, limits.message_bytes)


def delivery_interval(request: v1.GenerateRequest) -> float | None:
    """Seconds for which tokens may gather; None: the caller leaves it to the server.

    Raises:
        InvalidFieldError: it is negative or too long.
    """
    if request.HasField("single_tokens"):
        return 0.0
    if not request.HasField("interval"):
        return None
    seconds = duration_seconds(request.interval, "interval")
    if seconds > LONGEST_INTERVAL:
        raise InvalidFieldError("interval", f"{seconds:g} seconds", f"must be 0 to {LONGEST_INTERVAL} seconds")
    return seconds


def duration_seconds(duration: Duration, field: str) -> float:
    """A duration in seconds.

    Raises:
        InvalidFieldError: it is negative.
    """
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds < 0:
        raise InvalidFieldError(field, f"{seconds:g} seconds", "must not be negative")
    return seconds


def requested_seed(request: v1.GenerateRequest | v1.CreateSessionRequest | v1.ForkSessionRequest) -> int | None:
    """The seed that a request brings, if any."""
    return request.seed if request.HasField("seed") else None


def session_target(
    request: v1.GenerateRequest | v1.ClassifyRequest | v1.StreamConfig, field: str = "session"
) -> Target:
    """What a call says about its session.

    Raises:
        InvalidFieldError: the id is missing or can be none, the position negative, or the name too long.
    """
    call = request.session
    if not call.session_id:
        raise InvalidFieldError(f"{field}.session_id", "none", "a call in a session needs its id")
    check_session_id(call.session_id, f"{field}.session_id")
    if call.position < 0:
        raise InvalidFieldError(f"{field}.position", call.position, "must not be negative")
    name = call.request_id
    check_request_id(name, f"{field}.request_id")
    position = call.position if call.HasField("position") else None
    return Target(call.session_id, position, name, fingerprint(request))


def check_request_id(name: str, field: str) -> None:
    """Refuse a name that is too long.

    Raises:
        InvalidFieldError: it is.
    """
    if len(name) > LONGEST_REQUEST_ID:
        raise InvalidFieldError(field, f"{len(name)} characters", f"at most {LONGEST_REQUEST_ID} are allowed")


def received_count(request: v1.GenerateRequest) -> int:
    """How many tokens the caller has already.

    Raises:
        InvalidFieldError: it is negative, or the call has no name by which it could have been made before.
    """
    count = request.received_token_count
    if count < 0:
        raise InvalidFieldError("received_token_count", count, "must not be negative")
    if count and not request.session.request_id:
        raise InvalidFieldError(
            "received_token_count", count, "a repeated call needs the session.request_id of the first attempt"
        )
    return count


def fingerprint(request: Message) -> bytes:
    """Of what a call asks for: equal for a call and its repetition, 16 bytes."""
    asked = type(request)()
    asked.CopyFrom(request)
    for field in _HOW_AND_NOT_WHAT:
        if field in asked.DESCRIPTOR.fields_by_name:
            asked.ClearField(field)
    kind = asked.DESCRIPTOR.full_name.encode()  # Different ones may look the same when they are written down.
    return hashlib.blake2b(kind + b"\n" + asked.SerializeToString(deterministic=True), digest_size=16).digest()


def new_session_id(session_id: str, field: str) -> str:
    """The id of a session to be made; may be empty.

    Raises:
        InvalidFieldError: it is not one.
    """
    if session_id:
        check_session_id(session_id, field)
    return session_id


def check_session_id(session_id: str, field: str) -> None:
    """Refuse what can be no session's id.

    Raises:
        InvalidFieldError: it cannot.
    """
    if not _SESSION_ID.fullmatch(session_id):
        rule = "must be 1 to 64 letters, digits, '.', '_' or '-'"
        raise InvalidFieldError(field, repr(shortened(session_id)), rule)


async def session_prompt_ids(request: v1.CreateSessionRequest, model: ServedModel, limits: Limits) -> TokenIds:
    """What a session starts with, the begin token first where the model has one; may be nothing.

    Raises:
        InvalidFieldError: it cannot be encoded.
    """
    ids = await _prompt_ids(request, model, limits)
    return model.with_begin_token(ids) if len(ids) else ids


async def continuation_ids(request: v1.GenerateRequest, model: ServedModel, limits: Limits) -> TokenIds:
    """What follows in a session; may be nothing.

    Raises:
        InvalidFieldError: it cannot be encoded.
    """
    return await _prompt_ids(request, model, limits)


async def prompt_ids(request: v1.GenerateRequest | v1.ChooseRequest, model: ServedModel, limits: Limits) -> TokenIds:
    """The prompt's ids, the begin token first where the model has one.

    Raises:
        InvalidFieldError: the prompt is empty and the model has no begin token, or it cannot be encoded.
    """
    ids = model.with_begin_token(await _prompt_ids(request, model, limits))
    if not len(ids):
        raise InvalidFieldError(
            request.WhichOneof("prompt") or "text",
            "an empty prompt",
            f"{model.name!r} has no begin token",
            "Give a prompt of one token or more",
        )
    return ids


async def requested_source(
    request: v1.GenerateRequest | v1.ChooseRequest | v1.ScoreRequest, model: ServedModel, limits: Limits
) -> Source | None:
    """What the encoder is to read, if the model has one.

    Raises:
        InvalidFieldError: it is missing or not expected, is empty or too long, or not what the model reads.
    """
    if not model.has_encoder:
        if request.HasField("source"):
            raise InvalidFieldError("source", "a source", f"{model.name!r} has no encoder", "Leave it out")
        return None
    source, spec = request.source, model.bundle.spec.encoder.input
    chosen = source.WhichOneof("form")
    numbers = not spec.HasField("token")
    wanted = f"a tensor, {_said(spec, 'positions')}" if numbers else "text or tokens"
    if chosen is None:
        raise InvalidFieldError("source", "none", f"{model.name!r} starts from a source", f"Give {wanted}")
    if numbers != (chosen == "tensor"):
        raise InvalidFieldError(f"source.{chosen}", chosen, f"the encoder of {model.name!r} reads {wanted}")
    if numbers:
        values = _numbers(source.tensor, spec, "source.tensor", limits, "positions")
    else:
        values = await _input_ids(chosen, source, model.source_vocabulary, model.name, limits, "source.")
    return checked_source(values, f"source.{chosen}", model)


def checked_source(values: NDArray[Any], field: str, model: ServedModel) -> Source:
    """A source of a length that the model takes.

    Raises:
        InvalidFieldError: it is empty or too long.
    """
    longest = model.bundle.spec.encoder.longest_source
    if not len(values):
        raise InvalidFieldError(field, "an empty source", "a source has one position or more")
    if len(values) > longest:
        rule = f"{model.name!r} reads sources of at most {longest}"
        raise InputTooLongError(field, f"{len(values)} positions", rule, limit=longest)
    return Source(values)


async def input_steps(request: v1.ClassifyRequest, model: ServedModel, limits: Limits) -> NDArray[Any]:
    """The ids, or the numbers [steps, *shape], of an input to label.

    Raises:
        InvalidFieldError: it is empty, cannot be encoded, or is not what the model reads.
    """
    if request.HasField("tree"):
        wanted = f"a tensor, {_said(model.input_spec)}" if model.reads_numbers else "text or tokens"
        raise InvalidFieldError("tree", "a tree", f"{model.name!r} does not read trees", f"Give {wanted}")
    if request.every_node:
        raise InvalidFieldError("every_node", "true", f"{model.name!r} does not read trees", "Leave it out")
    steps = await _input_steps(request, model, limits, "")
    if not len(steps):
        missing = "tensor" if model.reads_numbers else "text"
        raise InvalidFieldError(request.WhichOneof("input") or missing, "an empty input", "there is nothing to label")
    return steps


async def piece_steps(piece: v1.Piece, model: ServedModel, limits: Limits) -> NDArray[Any]:
    """The ids, or the numbers [steps, *shape], of a piece; none if it is empty.

    Raises:
        InvalidFieldError: it cannot be encoded, or is not what the model reads.
    """
    return await _input_steps(piece, model, limits, "piece.")


async def _input_steps(
    message: v1.ClassifyRequest | v1.Piece, model: ServedModel, limits: Limits, prefix: str
) -> NDArray[Any]:
    chosen = message.WhichOneof("input")
    if model.reads_numbers:
        spec = model.input_spec
        if chosen in ("text", "tokens"):
            rule = f"{model.name!r} reads numbers"
            raise InvalidFieldError(f"{prefix}{chosen}", chosen, rule, f"Give a tensor, {_said(spec)}")
        axis = "positions" if model.reads_source_only else "steps"
        return _numbers(message.tensor, spec, f"{prefix}tensor", limits, axis)
    if chosen == "tensor":
        raise InvalidFieldError(f"{prefix}tensor", "a tensor", f"{model.name!r} reads text", "Give text or tokens")
    return await _input_ids(chosen, message, model.vocabulary, model.name, limits, prefix)


async def analysis_ids(given: v1.AnalysisInput, field: str, model: ServedModel, limits: Limits) -> TokenIds:
    """The ids of one input of an AnalysisService request; may be nothing.

    Raises:
        InvalidFieldError: it cannot be encoded.
    """
    return await _input_ids(given.WhichOneof("input"), given, model.vocabulary, model.name, limits, f"{field}.")


async def choice_ids(given: v1.Choice, field: str, model: ServedModel, limits: Limits) -> TokenIds:
    """The ids of one choice, without the end token.

    Raises:
        InvalidFieldError: it is empty or cannot be encoded.
    """
    ids = await _input_ids(given.WhichOneof("form"), given, model.vocabulary, model.name, limits, f"{field}.")
    if not len(ids):
        raise InvalidFieldError(
            f"{field}.{given.WhichOneof('form') or 'text'}", "an empty choice", "a choice has one token or more"
        )
    return ids


async def _prompt_ids(
    request: v1.GenerateRequest | v1.ChooseRequest | v1.CreateSessionRequest, model: ServedModel, limits: Limits
) -> TokenIds:
    return await _input_ids(request.WhichOneof("prompt"), request, model.vocabulary, model.name, limits, "")


async def _input_ids(
    chosen: str | None,
    message: _Text,
    vocabulary: TextVocabulary,
    name: str,
    limits: Limits,
    prefix: str,
) -> TokenIds:
    # Looked at before any work is done, by what a text must have at least.
    least = -(-len(message.text) // vocabulary.characters_per_token)
    _check_length(max(least, len(message.tokens.ids)), f"{prefix}{chosen}", limits)
    if chosen == "tokens":
        ids = np.array(message.tokens.ids, dtype=np.int64)
        wrong = np.flatnonzero((ids < 0) | (ids >= vocabulary.size))
        if wrong.size:
            raise InvalidFieldError(
                f"{prefix}tokens.ids[{wrong[0]}]",
                ids[wrong[0]],
                f"the ids of {name!r} are 0 to {vocabulary.size - 1}",
            )
    else:
        try:
            ids = await by_length(len(message.text), lambda: vocabulary.encode(message.text))
        except EncodingError as error:
            got = f"a text that cannot be encoded at position {error.position}"
            raise InvalidFieldError(f"{prefix}text", got, str(error)) from error
    _check_length(len(ids), f"{prefix}{chosen}", limits)
    return ids


def _check_length(tokens: int, field: str, limits: Limits) -> None:
    if tokens > limits.input_tokens:
        rule = f"at most {limits.input_tokens} are allowed"
        raise InputTooLongError(field, f"{tokens} tokens or more", rule, limit=limits.input_tokens)


def _numbers(tensor: v1.Tensor, spec: v1.InputSpec, field: str, limits: Limits, axis: str = "steps") -> NDArray[Any]:
    """The numbers of some steps, [steps, *shape], or of what else the axis is; of none where nothing is given."""
    dtype = element_type(spec.data_type).dtype
    if not tensor.ByteSize():
        return np.empty((0, *spec.shape), dtype)
    if tensor.name not in ("", spec.name):
        raise InvalidFieldError(f"{field}.name", repr(shortened(tensor.name)), f"the input is named {spec.name!r}")
    if tensor.data_type != spec.data_type:
        raise InvalidFieldError(f"{field}.data_type", _type_name(tensor.data_type), f"must be {_said(spec, axis)}")
    shape = list(tensor.shape)
    if len(shape) != 1 + len(spec.shape) or shape[1:] != list(spec.shape) or shape[0] < 0:
        raise InvalidFieldError(f"{field}.shape", shortened(shape), f"must be {_said(spec, axis)}")
    _check_length(shape[0], field, limits)
    size = math.prod(shape) * dtype.itemsize
    if len(tensor.content) != size:
        raise InvalidFieldError(
            f"{field}.content", f"{len(tensor.content)} bytes", f"numbers of this shape have {size}"
        )
    values = np.frombuffer(tensor.content, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = wrong[0].tolist()
        raise InvalidFieldError(f"{field}.content", f"{values[tuple(place)]} at {place}", "every number must be finite")
    return values


def _said(spec: v1.InputSpec, axis: str = "steps") -> str:
    """What numbers an input takes, for people."""
    return f"{_type_name(spec.data_type)} [{', '.join([axis, *map(str, spec.shape)])}]"


def _type_name(data_type: v1.DataType.ValueType) -> str:
    return BY_DATA_TYPE[data_type].name if data_type in BY_DATA_TYPE else f"type {data_type}"
