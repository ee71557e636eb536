"""The names of session stores: "memory", the path of a file, or a URL, which may contain a password."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import SplitResult, urlsplit

MEMORY = "memory"  # the store that ends with the server
_RULE = (
    "expected redis://HOST:PORT/DATABASE, rediss:// or unix:///PATH, with %-encoding for special characters in a "
    "password; or memory, or a file"
)


def store_scheme(store: str) -> str:
    """Return the scheme of a store's URL; "memory" or "file" for a store without a URL."""
    scheme, separator, _ = store.partition("://")
    if separator:
        return scheme.lower()
    return MEMORY if store == MEMORY else "file"


def public_store(store: str) -> str:
    """Return the name of a store without the user name and the password.

    Raises:
        ValueError: it is a URL of no known store. The message repeats nothing of it.
    """
    if "://" not in store:
        return store
    try:
        parts = urlsplit(store)
        return _PUBLIC_NAMES[parts.scheme](parts)
    except (KeyError, ValueError):
        raise ValueError(_RULE) from None  # It may quote the password.


def _redis_name(parts: SplitResult) -> str:
    host, port, database = parts.hostname or "localhost", parts.port or 6379, parts.path.strip("/") or "0"
    if parts.fragment or not database.isdecimal():
        raise ValueError
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}/{database}"


def _socket_name(parts: SplitResult) -> str:
    if parts.fragment:
        raise ValueError
    return f"unix://{parts.path}"


# By scheme, how the name of a store is made from its URL; `elman_server.sessions.stores` opens the stores.
_PUBLIC_NAMES: Mapping[str, Callable[[SplitResult], str]] = {
    "redis": _redis_name,
    "rediss": _redis_name,
    "unix": _socket_name,
}
