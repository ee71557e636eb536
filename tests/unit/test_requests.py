"""The declarations of requests: every field is declared once, is parsed, and is in the fingerprint or excluded."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from elman_protos import v1
from elman_protos.v1 import analysis_service_pb2, inference_service_pb2, session_service_pb2
from elman_server.errors import DomainError
from elman_server.rpc.requests import models
from elman_server.rpc.requests.analysis import parse_embed, parse_inspect, parse_score
from elman_server.rpc.requests.choose import parse_choose
from elman_server.rpc.requests.classify import parse_classify, parse_config, parse_piece
from elman_server.rpc.requests.fields import DECLARED, RequestFields
from elman_server.rpc.requests.generate import FIELDS, parse_generate
from elman_server.rpc.requests.sessions import parse_create_session, parse_fork_session

SERVICES = [
    service
    for module in (analysis_service_pb2, inference_service_pb2, session_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]


async def config(message: v1.StreamConfig) -> Any:
    async def messages() -> AsyncIterator[v1.StreamClassifyRequest]:
        yield v1.StreamClassifyRequest(config=message)

    return await parse_config(messages())


PARSERS: Mapping[type[Message], Callable[[Any], Any]] = {
    v1.GenerateRequest: parse_generate,
    v1.ChooseRequest: parse_choose,
    v1.ClassifyRequest: parse_classify,
    v1.Piece: lambda piece: parse_piece(piece, in_session=False),
    v1.StreamConfig: config,
    v1.ScoreRequest: parse_score,
    v1.EmbedRequest: parse_embed,
    v1.InspectRequest: parse_inspect,
    v1.CreateSessionRequest: parse_create_session,
    v1.ForkSessionRequest: parse_fork_session,
}


def test_every_request_of_every_service_is_declared() -> None:
    assert models
    requests = {method.input_type.full_name for service in SERVICES for method in service.methods}
    assert requests <= DECLARED.keys()
    assert DECLARED.keys() - requests == {"elman.v1.StreamConfig", "elman.v1.Piece"}


def test_undeclared_and_duplicate_fields_are_rejected() -> None:
    for content, delivery in (({"name"}, {"name"}), (set(), set()), ({"name", "nonsense"}, set())):
        with pytest.raises(ValueError, match="GetModelRequest has the fields"):
            RequestFields(v1.GetModelRequest, content=content, delivery=delivery)


def leaves(descriptor: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all fields that are not messages of elman."""
    for field in descriptor.fields:
        here = (*path, field.name)
        if field.message_type is None or is_map(field) or not field.message_type.fields:
            yield here
        else:
            yield from leaves(field.message_type, here)


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def set_field(message: Message, path: Sequence[str], *, filled: bool) -> None:
    """Set the field at a path, or, unless `filled`, only its parent messages."""
    name, *rest = path
    field = message.DESCRIPTOR.fields_by_name[name]
    if rest:
        inner = getattr(message, name)
        inner = inner.add() if field.is_repeated else inner
        inner.SetInParent()
        set_field(inner, rest, filled=filled)
    elif not filled:
        return
    elif is_map(field):
        getattr(message, name)[3] = 0.5
    elif field.message_type is not None:
        getattr(message, name).SetInParent()
    else:
        value = sample_value(field)
        if field.is_repeated:
            getattr(message, name).append(value)
        else:
            setattr(message, name, value)


def sample_value(field: FieldDescriptor) -> Any:
    """Return a value that is not the default."""
    if field.enum_type is not None:
        return 2
    return {
        FieldDescriptor.CPPTYPE_STRING: b"one" if field.type == FieldDescriptor.TYPE_BYTES else "one",
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
        FieldDescriptor.CPPTYPE_FLOAT: 0.5,
        FieldDescriptor.CPPTYPE_INT32: 3,
        FieldDescriptor.CPPTYPE_INT64: 3,
    }[field.cpp_type]


def plain(value: Any) -> Any:
    """Return a value in a comparable form."""
    if dataclasses.is_dataclass(value):
        return type(value).__name__, {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if callable(value) and not isinstance(value, type):
        return plain(value())
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return value
    return [plain(one) for one in value]


async def parsed(message: Message) -> Any:
    try:
        result = PARSERS[type(message)](message)
        return plain(await result if hasattr(result, "__await__") else result)
    except DomainError as error:
        return str(error)


CASES = [(message, path) for message in PARSERS for path in leaves(message.DESCRIPTOR)]


@pytest.mark.parametrize(("message", "path"), CASES, ids=lambda value: value if isinstance(value, str) else None)
async def test_every_field_is_parsed(message: type[Message], path: tuple[str, ...]) -> None:
    without, with_it = message(), message()
    set_field(without, path, filled=False)
    set_field(with_it, path, filled=True)
    assert with_it != without
    assert await parsed(with_it) != await parsed(without), ".".join(path)


@pytest.mark.parametrize("name", ["elman.v1.GenerateRequest", "elman.v1.ClassifyRequest", "elman.v1.Piece"])
def test_fingerprint_depends_on_content_but_not_on_delivery(name: str) -> None:
    declared = DECLARED[name]
    message = GetMessageClass(declared.descriptor)
    for path in leaves(declared.descriptor):
        request = message()
        set_field(request, path, filled=True)
        same = declared.fingerprint(request) == declared.fingerprint(message())
        assert same == (path[0] in declared.delivery), path


def test_requests_of_different_kinds_have_different_fingerprints() -> None:
    result = {DECLARED[name].fingerprint(GetMessageClass(DECLARED[name].descriptor)()) for name in DECLARED}
    assert len(result) == len(DECLARED)
    assert FIELDS.fingerprint(v1.GenerateRequest()) in result
