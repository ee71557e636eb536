"""The connection to a server, which all calls share: how long they may take, and what goes with each of them."""

from __future__ import annotations

import math
import re
from types import TracebackType
from typing import Self, TypeVar

import grpc

from elman.errors import expressible, rpc_errors

DEFAULT_ADDRESS = "127.0.0.1:50051"
Metadata = tuple[tuple[str, str], ...]

_CHANNEL_OPTIONS = (
    # A tagger answers every step of a long input, which the default of 4 MiB would cut.
    ("grpc.max_receive_message_length", -1),
    # A server that was restarted is found at once: grpc's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine that has gone without a word is noticed.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_SESSION_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_TIMEOUT = 1e9  # seconds, 30 years; a few times as many overflow in grpc, which then gives up at once.

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Connection:
    """A connection to one server.

    Args:
        address: host and port.
        timeout: seconds one call may take, as far as a call does not say otherwise; None: as long as it takes.
        caller: says to the server whose sessions it makes; default, the address that the calls come from.

    Raises:
        ValueError: `caller` has other characters than printable ASCII, or `timeout` is no number.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout: float | None = None, caller: str = "") -> None:
        if not (caller.isascii() and caller.isprintable()):
            raise ValueError(f"caller is {caller!r}, but must be printable ASCII")
        self.address = address
        self._timeout = None if timeout is None else _usable(timeout)
        self._caller = caller
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; calls under way are cancelled."""
        await self._channel.close()

    def _seconds(self, timeout: float | None) -> float | None:
        """Seconds that a call may take which says `timeout`.

        Raises:
            InvalidRequestError: it is no number.
        """
        with expressible():
            return self._timeout if timeout is None else _usable(timeout)

    def _metadata(self, session: str = "") -> Metadata:
        return call_metadata(self._caller, session)

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float | None,
        session: str = "",
    ) -> _Response:
        with rpc_errors(self.address):
            return await method(request, timeout=self._seconds(timeout), metadata=self._metadata(session))


def call_metadata(caller: str, session: str) -> Metadata:
    """The metadata of a call. An id that cannot be one stays out of it, as grpc might refuse to carry it; the server
    says what is wrong with it."""
    metadata = [("elman-caller", caller)] if caller else []
    if _SESSION_ID.fullmatch(session):
        metadata.append(("elman-session", session))
    return tuple(metadata)


def _usable(timeout: float) -> float:
    if math.isnan(timeout):
        raise ValueError("timeout is nan, but must be a number of seconds")
    return min(timeout, _LONGEST_TIMEOUT)
