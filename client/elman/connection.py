"""The connection to a server, which all calls share: its options, time limits and metadata."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc

from elman.errors import refused_arguments, rpc_errors
from elman.proxies import is_loopback
from elman_protos import v1

DEFAULT_ADDRESS = "127.0.0.1:50051"
Metadata = tuple[tuple[str, str], ...]

_CHANNEL_OPTIONS = (
    # A tagger answers every step of a long input, which the default of 4 MiB would cut.
    ("grpc.max_receive_message_length", -1),
    # A restarted server is found immediately: grpc's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine that disappeared without closing the connection is noticed.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_SESSION_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_TIMEOUT = 1e9  # seconds, 30 years; a few times this value overflows in grpc, which then fails immediately

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def open_channel(address: str, options: Sequence[tuple[str, int]] = ()) -> grpc.aio.Channel:
    """Open a channel. No proxy is used for an address of this machine.

    Args:
        address: host and port.
        options: options of grpc.
    """
    without_proxy = (("grpc.enable_http_proxy", 0),) if is_loopback(address) else ()
    return grpc.aio.insecure_channel(address, options=(*options, *without_proxy))


class _Channel:
    """A channel, and the stubs that use it.

    Args:
        channel: the channel.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.grpc = channel
        self.inference: v1.InferenceServiceAsyncStub = v1.InferenceServiceStub(channel)
        self.analysis: v1.AnalysisServiceAsyncStub = v1.AnalysisServiceStub(channel)
        self.sessions: v1.SessionServiceAsyncStub = v1.SessionServiceStub(channel)


class Connection:
    """A connection to one server. It may be made before there is an event loop, and be used on several.

    Args:
        address: host and port.
        timeout: the time limit in seconds of calls that set none; None for no limit.
        caller: identifies the owner of sessions to the server; by default the address that the calls come from.

    Raises:
        ValueError: `caller` is not printable ASCII, or `timeout` is NaN.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout: float | None = None, caller: str = "") -> None:
        if not (caller.isascii() and caller.isprintable()):
            raise ValueError(f"caller: got {caller!r}; it must be printable ASCII")
        self.address = address
        self._timeout = None if timeout is None else _valid_timeout(timeout)
        self._caller = caller
        self._channels: dict[asyncio.AbstractEventLoop, _Channel] = {}
        self._pid = 0  # of the process that has opened channels

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in progress are cancelled."""
        await self._channel().grpc.close()

    def _channel(self) -> _Channel:
        """The channel of the running loop. It is opened when it is first needed, so that a client can be made anywhere.

        Raises:
            RuntimeError: no loop is running, or the client was used before this process was forked.
        """
        loop = asyncio.get_running_loop()
        if self._pid not in (0, os.getpid()):
            raise RuntimeError(
                f"this client was used in process {self._pid}, from which this one was forked; grpc does not survive "
                "that. Use it in one of them only, or start processes with the method spawn"
            )
        if loop not in self._channels:
            self._pid = os.getpid()
            for other in list(self._channels):
                if other.is_closed():
                    self._channels.pop(other, None)
            self._channels[loop] = _Channel(open_channel(self.address, _CHANNEL_OPTIONS))
        return self._channels[loop]

    def _seconds(self, timeout: float | None) -> float | None:
        """The time limit of a call, in seconds.

        Raises:
            InvalidRequestError: `timeout` is NaN.
        """
        with refused_arguments():
            return self._timeout if timeout is None else _valid_timeout(timeout)

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
    """The metadata of a call.

    An invalid session id is left out, because grpc may refuse to send it; the server then reports what is wrong with
    the id in the request.
    """
    metadata = [("elman-caller", caller)] if caller else []
    if _SESSION_ID.fullmatch(session):
        metadata.append(("elman-session", session))
    return tuple(metadata)


def _valid_timeout(timeout: float) -> float:
    if math.isnan(timeout):
        raise ValueError("timeout: got nan; it must be a number of seconds")
    return min(timeout, _LONGEST_TIMEOUT)
