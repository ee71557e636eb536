"""The names of stores of sessions: "memory", a file, or the URL of a Redis, which may hold a password."""

from __future__ import annotations

from urllib.parse import urlsplit

MEMORY = "memory"  # the store that ends with the server
_REDIS_SCHEMES = ("redis", "rediss", "unix")
_RULE = (
    "expected redis://HOST:PORT/DATABASE, rediss:// or unix:///PATH, with %-encoding for special characters in a "
    "password; or memory, or a file"
)


def is_url(store: str) -> bool:
    """Whether a store is named by a URL, and so is a Redis."""
    return "://" in store


def public_store(store: str) -> str:
    """The name of a store without the user name and the password.

    Raises:
        ValueError: it is a URL that no Redis can have. The message repeats nothing of it.
    """
    if not is_url(store):
        return store
    try:
        parts = urlsplit(store)
        host, port = parts.hostname or "localhost", parts.port or 6379
    except ValueError:
        raise ValueError(_RULE) from None  # It may quote the password.
    if parts.scheme not in _REDIS_SCHEMES or parts.fragment:
        raise ValueError(_RULE)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    database = parts.path.strip("/") or "0"
    if not database.isdecimal():
        raise ValueError(_RULE)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}/{database}"
