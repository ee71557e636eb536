"""Who calls, as far as anybody has said."""

from __future__ import annotations

from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]

_CALLER = "elman-caller"


def caller_of(context: Context) -> str:
    """Whose sessions a call is about: what its metadata say, which whoever stands before this server may have put
    there; else the address it comes from, without the port."""
    for key, value in context.invocation_metadata() or ():
        if key == _CALLER:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return context.peer().rpartition(":")[0]
