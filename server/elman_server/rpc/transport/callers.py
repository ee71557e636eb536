"""The identity of the caller of a call."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import grpc

from elman_server.errors import InvalidFieldError
from elman_server.scheduling.callers import current_caller

Context = grpc.aio.ServicerContext[Any, Any]

# The identity of the caller of the call that is being answered; set by the interceptor.
caller: ContextVar[str] = ContextVar("caller")

_CALLER = "elman-caller"
_LONGEST = 256  # characters; the identity is kept with every session


def identify(context: Context) -> None:
    """Set who calls, for the call that is being answered: the metadata `elman-caller`, which a proxy in front of the
    server may set. Without it sessions belong to the address from which the call comes, without the port, and a
    connection has its share of the slots.

    Raises:
        InvalidFieldError: the metadata is too long.
    """
    named, peer = _named(context), context.peer()
    caller.set(peer.rpartition(":")[0] if named is None else named)
    current_caller.set(peer if named is None else named)


def _named(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == _CALLER:
            found = value if isinstance(value, str) else value.decode(errors="replace")
            if len(found) > _LONGEST:
                raise InvalidFieldError(_CALLER, f"{len(found)} characters", f"at most {_LONGEST} are allowed")
            return found
    return None
