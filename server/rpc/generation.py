"""Writing a generation to its client: tokens become text, what has gathered becomes one message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from elman import v1
from server.rpc.errors import FieldError
from server.rpc.mailbox import Mailbox
from server.rpc.models import ServedModel
from server.scheduling import Event, Failed, Finished, FinishReason, Tokens

_FINISH_REASONS = {
    FinishReason.MAX_TOKENS: v1.FINISH_REASON_MAX_TOKENS,
    FinishReason.END_TOKEN: v1.FINISH_REASON_END_TOKEN,
}


async def write_generation(
    mailbox: Mailbox,
    model: ServedModel,
    started: v1.GenerateStarted,
    write: Callable[[v1.GenerateResponse], Awaitable[None]],
    *,
    single: bool,
    received: int = 0,
) -> None:
    """Write what comes for a generation, to its end.

    Args:
        mailbox: where its events come.
        model: whose tokens they are.
        started: goes with the first message.
        write: sends a message.
        single: whether every token has a message of its own.
        received: how many tokens the client has already. They are not sent, but the text goes on behind theirs, in the
            middle of a character if need be.

    Raises:
        SchedulingError, SessionError: what ended it.
        FieldError: the client claims to have more than there is.
    """
    response = v1.GenerateResponse(started=started)
    decoder = model.vocabulary.decoder()
    count = 0
    end: Event | None = None
    while end is None:
        new, end = _split(await mailbox.gather())
        known = new[: max(received - count, 0)]
        decoder.decode(known)
        count += len(new)
        new = new[len(known) :]
        while new:
            part, new = (new[:1], new[1:]) if single else (new, [])
            response.chunk.token_ids.extend(part)
            response.chunk.text = decoder.decode(part, final=bool(end) and not new)
            if new or not isinstance(end, Finished):
                await write(response)
                response = v1.GenerateResponse()
    if isinstance(end, Failed):
        raise end.error
    assert isinstance(end, Finished)
    if received > count:
        raise FieldError("received_token_count", f"is {received}, but this call has generated {count} tokens in all")
    response.finished.finish_reason = _FINISH_REASONS[end.reason]
    response.finished.generated_token_count = count
    if started.HasField("session_position"):
        response.finished.session_position = started.session_position + started.prompt_token_count + count
    text = "" if response.HasField("chunk") else decoder.decode([], final=True)
    if text:  # Bytes that became no whole character.
        response.chunk.text = text
    await write(response)


def _split(events: list[Event]) -> tuple[list[int], Event | None]:
    """The tokens among a generation's events, and its end, good or bad, if it is there."""
    tokens: list[int] = []
    for event in events:
        if not isinstance(event, Tokens):
            return tokens, event
        tokens.extend(event.ids)
    return tokens, None
