"""Ports for processes that restart on the same port after they were killed."""

from __future__ import annotations

import random
import socket

# Below the range that systems draw from for port 0 and for outgoing connections: no other process of the machine
# receives one of these by chance while its owner is down.
_PORTS = range(12_000, 30_000)


def free_port() -> int:
    """A loopback port on which nothing listens."""
    draw = random.SystemRandom()  # Tests seed the other generators equally in every process.
    while True:
        port = draw.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
