"""The gRPC server: the services of `elman.v1`, health and reflection, behind the interceptor."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from elman_protos import v1
from elman_server.inference.resources import Resources
from elman_server.rpc.addresses import addresses_of, refused
from elman_server.rpc.services.analysis import AnalysisServicer
from elman_server.rpc.services.inference import InferenceServicer
from elman_server.rpc.services.sessions import SessionServicer
from elman_server.rpc.transport.interceptor import CallInterceptor
from elman_server.rpc.transport.writer import Writer

_SESSIONS = "elman.v1.SessionService"
_SERVICES = ("elman.v1.AnalysisService", "elman.v1.InferenceService", _SESSIONS)
# gRPC's own limit lies above that of the server, so that the server can refuse with a reason.
_TRANSPORT_LIMIT_FACTOR = 4
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # Two servers on one port would share the calls and not the state.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),  # Idle clients may ping, to notice that the server has gone.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1024),  # of a connection; further calls wait at the client
    ("grpc.max_connection_idle_ms", 600_000),  # Clients connect again by themselves.
)


class GrpcServer:
    """Serves `elman.v1` on one address.

    Args:
        resources: what the use cases share.
        write_timeout: seconds for which a client may leave a message unread.
        idle_timeout: seconds for which neither side of a stream of requests may send anything.

    Attributes:
        calls: counts and refuses calls.
    """

    def __init__(self, resources: Resources, write_timeout: float, idle_timeout: float) -> None:
        message_bytes, writer = resources.limits.message_bytes, Writer(write_timeout)
        self.calls = CallInterceptor(message_bytes, idle_timeout, writer)
        self._health = health.aio.HealthServicer()
        self._changes: set[asyncio.Task[None]] = set()  # of health, under way
        self._server = grpc.aio.server(
            interceptors=[self.calls],
            options=[*_OPTIONS, ("grpc.max_receive_message_length", _TRANSPORT_LIMIT_FACTOR * message_bytes)],
        )
        v1.add_InferenceServiceServicer_to_server(InferenceServicer(resources, writer), self._server)
        v1.add_AnalysisServiceServicer_to_server(AnalysisServicer(resources, writer), self._server)
        v1.add_SessionServiceServicer_to_server(SessionServicer(resources), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def bind(self, address: str) -> int:
        """Take an address, and every other one that its host stands for; returns the port.

        Args:
            address: HOST:PORT, where port 0 takes any free one, or unix:PATH.

        Raises:
            StartError: one of them is not available.
        """
        taken = 0
        for host, port in addresses_of(address):
            one = host if host == address else f"{host}:{port or taken}"
            try:
                taken = int(self._server.add_insecure_port(one))
            except RuntimeError as error:
                raise refused(address, f"{one} is in use or not of this machine") from error
        return taken

    async def start(self) -> None:
        """Accept connections; health does not say SERVING yet."""
        await self._server.start()

    async def set_serving(self) -> None:
        """Have health say SERVING."""
        for name in ("", *_SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def set_sessions_serving(self, healthy: bool) -> None:
        """Have health of the session service say whether the store of sessions takes changes."""
        status = health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        change = asyncio.get_running_loop().create_task(self._health.set(_SESSIONS, status))
        self._changes.add(change)
        change.add_done_callback(self._changes.discard)

    async def drain(self) -> None:
        """Have health say NOT_SERVING from now on, and refuse new calls."""
        await self._health.enter_graceful_shutdown()
        self.calls.drain()

    async def stop(self, grace: float) -> None:
        """Close all connections.

        Args:
            grace: seconds that calls have to end before they are cut off.
        """
        await self._server.stop(grace)
