"""The proxy that grpc uses where a variable of the environment names one."""

from __future__ import annotations

import os
from ipaddress import ip_address
from urllib.request import proxy_bypass

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # The first one that is set counts.


def is_loopback(address: str) -> bool:
    """Return whether an address, host and port, is of this machine. No proxy leads there."""
    if address.startswith("unix:"):
        return True
    host = _host(address)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def proxy_variable(address: str) -> str | None:
    """Return the variable that names the proxy through which an address is reached; None if there is none."""
    if is_loopback(address) or proxy_bypass(_host(address)):
        return None
    return next((name for name in _VARIABLES if os.environ.get(name)), None)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")
