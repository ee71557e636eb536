"""A proxy in the environment is not used for this machine, and where it is used an error names the variable."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping

import pytest

from elman import Client, UnavailableError
from elman.proxies import is_loopback
from elman_bundle import Bundle
from tests.support.command_line import elman
from tests.support.serving import serving


@pytest.fixture(params=["http_proxy", "https_proxy", "grpc_proxy"])
def variable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A variable that names a proxy which answers nothing."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv(request.param, f"http://127.0.0.1:{taken.getsockname()[1]}")
        yield request.param


async def test_no_proxy_leads_to_this_machine(bundles: Mapping[str, Bundle], variable: str) -> None:
    async with serving(bundles["gru"]) as running:
        port = running.address.rpartition(":")[2]
        for address in (f"127.0.0.1:{port}", f"localhost:{port}"):
            async with Client(address, timeout=20) as client:
                assert [model.name for model in await client.list_models()] == ["gru"]
        for command in ("models", "health"):
            done = await asyncio.to_thread(elman, command, "--server", f"127.0.0.1:{port}")
            assert done.returncode == 0, done.stderr


async def test_the_error_names_the_variable(variable: str) -> None:
    async with Client("192.0.2.1:50051", timeout=20) as client:
        with pytest.raises(UnavailableError, match=f"through the proxy that the variable {variable} names"):
            await client.list_models()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True), ("127.8.8.8:1", True), ("[::1]:1", True), ("localhost:1", True), ("LOCALHOST:1", True),
        ("unix:/tmp/x", True), ("10.0.0.1:1", False), ("server:1", False), ("localhost.example.org:1", False),
    ],
)  # fmt: skip
def test_addresses_of_this_machine(address: str, expected: bool) -> None:
    assert is_loopback(address) == expected
