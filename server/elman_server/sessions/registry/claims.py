"""Claims: which call of this server has which session. At most one call has a session at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from elman_server.sessions.active_generation import ActiveGeneration


class Claims:
    """The claimed sessions of this server. Bound to one event loop."""

    def __init__(self) -> None:
        self._claims: dict[str, _Claim] = {}

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._claims

    def add(self, session_id: str) -> None:
        """Claim a session that nothing has claimed."""
        self._claims[session_id] = _Claim()

    def assign(self, generation: ActiveGeneration) -> None:
        """Pass the claim on a session from a call to a generation, which keeps it until it has finished."""
        claim = self._claims[generation.session.session_id]
        claim.generation = generation
        claim.changed.set()

    def remove(self, session_id: str) -> None:
        """Give up the claim on a session, if there is one."""
        claim = self._claims.pop(session_id, None)
        if claim is not None:
            claim.changed.set()

    def generation_of(self, session_id: str) -> ActiveGeneration | None:
        """Return the generation that has a session."""
        claim = self._claims.get(session_id)
        return None if claim is None else claim.generation

    def generations(self) -> Iterator[ActiveGeneration]:
        """Iterate over the generations that have sessions."""
        return (claim.generation for claim in list(self._claims.values()) if claim.generation is not None)

    async def wait_for_short_calls(self, session_id: str) -> ActiveGeneration | None:
        """Wait while the session is read, or while a generation on it is ending.

        Returns:
            The generation that has the session, or None if it is free. Valid until the caller awaits.
        """
        while (claim := self._claims.get(session_id)) is not None:
            if claim.generation is None:
                await claim.changed.wait()
            elif claim.generation.is_ending:
                await claim.generation.finished.wait()
            else:
                return claim.generation
        return None


class _Claim:
    """A claim on a session.

    Attributes:
        generation: the generation that has it; None while a call has it.
        changed: set when a generation has got the claim, or it is given up.
    """

    def __init__(self) -> None:
        self.generation: ActiveGeneration | None = None
        self.changed = asyncio.Event()
