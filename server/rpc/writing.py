"""Sending a message of a stream to a client that may not read."""

from __future__ import annotations

import asyncio

from google.protobuf.message import Message

from server.rpc.callers import Context
from server.rpc.errors import ClientTooSlowError


async def write_message(context: Context, message: Message, timeout: float) -> None:
    """Send a message.

    Args:
        context: the call.
        message: one of its responses.
        timeout: seconds that the client may leave it unread.

    Raises:
        ClientTooSlowError: the client does not read, and is given up on.
    """
    try:
        async with asyncio.timeout(timeout):
            await context.write(message)
    except TimeoutError as error:
        raise ClientTooSlowError(f"the client has read nothing for {timeout:g} seconds", seconds=timeout) from error
