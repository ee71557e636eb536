"""`elman models` and `elman health`."""

from __future__ import annotations

import asyncio
import operator
import sys
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenacity import AsyncRetrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from elman.cli.options import Server
from elman.cli.printing import print_table
from elman.client import Client, Model
from elman.connection import DEFAULT_ADDRESS, open_channel

_MODELS_TIMEOUT, _HEALTH_TIMEOUT, _HEALTH_INTERVAL = 10, 3, 0.1  # seconds


def models(server: Server = DEFAULT_ADDRESS) -> None:
    """List the models of a server."""
    asyncio.run(_models(server))


async def _models(server: str) -> None:
    async with Client(server, timeout=_MODELS_TIMEOUT) as client:
        found = await client.list_models()
    print_table(
        ("model", "task", "provider", "running", "waiting", "digest", "description"),
        [
            (
                model.name,
                _task_of(model),
                model.provider,
                f"{model.running_count}/{model.slot_count}",
                f"{model.waiting_count}/{model.waiting_limit}",
                model.digest.removeprefix("sha256:")[:12],
                model.spec.description,
            )
            for model in found
        ],
    )


def _task_of(model: Model) -> str:
    spec = model.spec
    if any(output.HasField("next_token_logits") for output in spec.step.outputs):
        return "generate from a source" if spec.HasField("encoder") else "generate"
    return "classify trees" if spec.step.HasField("tree") else "classify"


def health(
    server: Server = DEFAULT_ADDRESS,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="Wait for the server up to this time.", min=0)] = 0.0,
) -> None:
    """Check whether a server is serving; the exit status is 0 if it is, else 1."""
    if not asyncio.run(_is_serving(server, wait)):
        print(f"{server} is not serving", file=sys.stderr)
        raise typer.Exit(1)


async def _is_serving(server: str, wait: float) -> bool:
    """Ask until the server is serving or the time has passed.

    Args:
        server: host and port.
        wait: seconds; 0 asks once.
    """
    async with open_channel(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def check() -> bool:
            request = health_pb2.HealthCheckRequest()
            answer = await stub.Check(request, timeout=_HEALTH_TIMEOUT)  # type: ignore[attr-defined]
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        checking = AsyncRetrying(
            retry=retry_if_exception_type(grpc.aio.AioRpcError) | retry_if_result(operator.not_),
            wait=wait_fixed(_HEALTH_INTERVAL),
            stop=stop_after_delay(wait),
            retry_error_callback=lambda _: False,
        )
        return await checking(check)
