"""The identity of the caller of a call."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import grpc

from elman_server.errors import InvalidFieldError

Context = grpc.aio.ServicerContext[Any, Any]

# The identity of the caller of the call that is being answered; set by the interceptor.
caller: ContextVar[str] = ContextVar("caller")

_CALLER = "elman-caller"
_LONGEST = 256  # characters; the identity is kept with every session


def caller_of(context: Context) -> str:
    """Return the identity of the caller: the metadata `elman-caller`, which a proxy in front of the server may set,
    else the address from which the call comes, without the port.

    Raises:
        InvalidFieldError: it is too long.
    """
    for key, value in context.invocation_metadata() or ():
        if key == _CALLER:
            found = value if isinstance(value, str) else value.decode(errors="replace")
            if len(found) > _LONGEST:
                raise InvalidFieldError(_CALLER, f"{len(found)} characters", f"at most {_LONGEST} are allowed")
            return found
    return context.peer().rpartition(":")[0]
