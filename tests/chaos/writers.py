"""Clients that write stories: each has a session of its own and makes one call after the other on it.

A writer trusts nobody: every call says at which position it believes the session to be, and everything it is sent is
written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

from elman import Client, ElmanError, SessionConflictError, SessionExistsError, UnavailableError
from tests.chaos.history import CallHistory, SessionHistory

_PATIENCE = 120.0  # seconds without a token after which a writer gives up
_PAUSE = 0.05
_LETTERS = "abcdefghijklmnopqrstuvwxyz "
_MOST_TOKENS = 600


def new_history(number: int, seed: int) -> SessionHistory:
    """A session that is to be."""
    chosen = random.Random(f"{seed} {number}")
    return SessionHistory(f"story-{number}", chosen.getrandbits(62), _text(chosen, 1, 60))


async def write(
    client: Client, history: SessionHistory, seed: int, rest: float, stop: asyncio.Event, sent: Callable[[int], None]
) -> None:
    """Make a session and calls on it until told to stop, and let the last call come to its end.

    Args:
        client: where to.
        history: what is seen is written down here.
        seed: of what is asked for.
        rest: seconds to pause after each call.
        stop: no new call is made when this is set.
        sent: called for every message, with the number of its tokens.
    """
    chosen = random.Random(f"{seed} {history.session_id}")
    await _create(client, history)
    position = len(history.prompt)
    while not stop.is_set():
        call = CallHistory(_text(chosen, 0, 20), chosen.randint(1, _MOST_TOKENS), position)
        history.calls.append(call)
        stream = client.generate(
            call.prompt,
            session=history.session_id,
            position=position,
            request_id=f"call {len(history.calls)}",
            max_tokens=call.max_tokens,
            interval=chosen.choice([None, 0.0]),
            patience=_PATIENCE,
        )
        try:
            async for chunk in stream:
                call.tokens += chunk.token_ids
                sent(len(chunk.token_ids))
        except SessionConflictError as error:
            call.conflict = error.position
            return
        except ElmanError as error:
            call.failure = str(error)
            return
        call.generated, call.end = stream.generated_token_count, stream.session_position
        assert call.end is not None
        position = call.end
        if rest:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), rest)


async def repeat(client: Client, history: SessionHistory) -> list[list[int]]:
    """Make the same calls again, where nobody is killed; the tokens of each."""
    await client.create_session(history.prompt, session_id=history.session_id, seed=history.seed)
    found = []
    for call in history.calls:
        stream = client.generate(call.prompt, session=history.session_id, max_tokens=call.max_tokens)
        found.append([token async for chunk in stream for token in chunk.token_ids])
    return found


async def read_back(client: Client, history: SessionHistory) -> None:
    """Write down what the server says the session holds."""
    deadline = asyncio.get_running_loop().time() + _PATIENCE
    while True:
        try:
            history.held = list((await client.session_tokens(history.session_id)).token_ids)
            return
        except UnavailableError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_PAUSE)


async def _create(client: Client, history: SessionHistory) -> None:
    deadline = asyncio.get_running_loop().time() + _PATIENCE
    while True:
        try:
            await client.create_session(history.prompt, session_id=history.session_id, seed=history.seed)
            return
        except SessionExistsError:  # It was made, and the answer got lost.
            return
        except UnavailableError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_PAUSE)


def _text(chosen: random.Random, least: int, most: int) -> str:
    return "".join(chosen.choices(_LETTERS, k=chosen.randint(least, most)))
