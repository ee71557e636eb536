"""ClassifyRequest, and the messages of a stream of pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator

from elman_protos import v1
from elman_server.errors import InvalidFieldError
from elman_server.inference.classify import ClassifyRequest
from elman_server.inference.classify_stream import Piece, StreamConfig
from elman_server.rpc.requests.fields import RequestFields
from elman_server.rpc.requests.inputs import parse_input
from elman_server.rpc.requests.sessions import parse_target

FIELDS = RequestFields(
    v1.ClassifyRequest,
    content={"model", "text", "tokens", "tensor", "tree", "every_node"},
    delivery={"session", "bypass_prefix_cache"},
)
PIECE_FIELDS = RequestFields(v1.Piece, content={"text", "tokens", "tensor"}, delivery={"request_id"})
RequestFields(v1.StreamConfig, content={"model"}, delivery={"session"})
RequestFields(v1.StreamClassifyRequest, content={"config", "piece"})
RequestFields(v1.ClassifyManyRequest, content={"requests"})


def parse_classify(request: v1.ClassifyRequest) -> ClassifyRequest:
    """Return the request to label an input."""
    in_session = request.HasField("session")
    return ClassifyRequest(
        request.model,
        parse_input(request, request.WhichOneof("input")),
        request.every_node,
        parse_target(request.session, FIELDS.fingerprint(request)) if in_session else None,
        request.bypass_prefix_cache,
    )


async def parse_config(messages: AsyncIterator[v1.StreamClassifyRequest]) -> StreamConfig:
    """Return what a stream of pieces is about, which is its first message.

    Raises:
        InvalidFieldError: the first message is no config.
    """
    first = await anext(messages, None)
    if first is None or not first.HasField("config"):
        raise InvalidFieldError("config", "none", "the first message of a stream is its config")
    config = first.config
    # The call on the session is a piece, which has a fingerprint of its own.
    target = parse_target(config.session, b"") if config.HasField("session") else None
    return StreamConfig(config.model, target)


async def parse_pieces(messages: AsyncIterator[v1.StreamClassifyRequest], *, in_session: bool) -> AsyncIterator[Piece]:
    """Yield the pieces of a stream.

    Args:
        messages: the messages after the first.
        in_session: whether each piece is a call on a session, which needs its fingerprint.

    Raises:
        InvalidFieldError: a message is no piece.
    """
    async for message in messages:
        if not message.HasField("piece"):
            raise InvalidFieldError("piece", "none", "every message after the first is a piece")
        yield parse_piece(message.piece, in_session=in_session)


def parse_piece(piece: v1.Piece, *, in_session: bool) -> Piece:
    """Return a piece."""
    given = parse_input(piece, piece.WhichOneof("input"), "piece.")
    return Piece(given, piece.request_id, PIECE_FIELDS.fingerprint(piece) if in_session else b"")
