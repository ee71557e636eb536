"""The addresses to listen on: every one that a name stands for, or none."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

from elman_server.errors import StartError

_UNIX = "unix:"
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def addresses_of(listen: str) -> list[tuple[str, int]]:
    """Returns the addresses as gRPC writes them, without the port, and the port of each; 0 for any free one, and for
    the path of a socket, whose address is complete.

    Args:
        listen: HOST:PORT, or unix:PATH.

    Raises:
        StartError: the host has no address, or one of them is in use.
    """
    if listen.startswith(_UNIX):
        return [(listen, 0)]
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise refused(listen, error.strerror) from error
    usable = list(_usable(listen, found))
    if not usable:
        raise refused(listen, "it is not an address of this machine")
    return usable


def _usable(listen: str, found: list[Any]) -> Iterator[tuple[str, int]]:
    for family, kind, _, _, (host, port, *rest) in found:
        six = family == socket.AF_INET6
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if six:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                trial.bind((host, port, *rest))
            except OSError as error:
                if error.errno in _NOT_HERE:
                    continue  # "localhost" has an IPv6 address even where IPv6 is switched off.
                in_use = error.errno == errno.EADDRINUSE
                reason = f"port {port} of {host} is in use" if in_use else error.strerror
                raise refused(listen, reason) from error
        yield (f"[{host}]" if six else host), port


def refused(listen: str, reason: str | None) -> StartError:
    """The error of an address that cannot be listened on."""
    return StartError(f"listen: cannot listen on {listen}; {reason}. Choose another one with --listen")
