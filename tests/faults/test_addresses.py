"""A server listens on every address that its host stands for, or says which one it cannot have."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from elman import Client
from elman_bundle import Bundle
from elman_server.errors import StartError
from elman_server.rpc.addresses import addresses_of
from elman_server.settings import Settings
from tests.support.serving import serving

Bundles = Mapping[str, Bundle]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that another program has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "listen",
    [
        "localhost:1",
        "0.0.0.0:0",
        "[::]:50051",
        "[::1]:1",
        "unix:/run/elman.sock",
        "unix:///x",
        "unix:/nix/x",
        "unix:relative",
    ],
)
def test_addresses_that_exist_are_accepted(listen: str) -> None:
    assert Settings.model_validate({"listen": listen}).listen == listen


@pytest.mark.parametrize(
    ("listen", "rule"),
    [
        ("::1:50051", "expected an IPv6 address in brackets"),
        ("::1", "expected an IPv6 address in brackets"),
        ("[localhost]:1", "expected an IPv6 address in brackets, and no other one"),
        ("unix:", "expected unix:PATH"),
        ("unix://x/y", "expected unix:PATH"),
        (":1", "expected HOST:PORT"),
        ("[]:1", "expected HOST:PORT"),
    ],
)
def test_addresses_that_mislead_are_refused(listen: str, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Settings.model_validate({"listen": listen})


def test_a_name_is_refused_if_one_of_its_addresses_is_taken(taken: int) -> None:
    with pytest.raises(StartError, match=rf"cannot listen on localhost:{taken}; port {taken} of 127.0.0.1 is in use"):
        addresses_of(f"localhost:{taken}")


@pytest.mark.parametrize("listen", ["nowhere.invalid:1", "192.0.2.1:1"])
def test_addresses_of_other_machines_are_refused(listen: str) -> None:
    with pytest.raises(StartError, match=rf"listen: cannot listen on {listen}; .*. Choose another one with --listen"):
        addresses_of(listen)


async def test_a_name_is_served_on_all_its_addresses(bundles: Bundles) -> None:
    async with serving(bundles["tags"], listen="localhost:0") as running:
        found = {str(host) for *_, (host, *_) in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        hosts = ["127.0.0.1", *(["[::1]"] if "::1" in found and has_ipv6() else [])]
        for host in hosts:
            async with Client(f"{host}:{running.server.port}") as client:
                assert len(await client.list_models()) == 1


async def test_a_socket_of_this_machine_is_served(bundles: Bundles, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/elman.sock"
    async with serving(bundles["tags"], listen=address) as running, Client(address) as client:
        assert running.server.settings.shown_address(running.server.port) == address
        assert (await client.classify("abc")).steps
