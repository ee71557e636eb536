"""Reading an input from where the prefix cache ends, up to where something is wanted of it."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from elman_bundle.vocabulary import TokenIds
from elman_server.engine import Arrays
from elman_server.rpc.mailbox import Mailbox
from elman_server.rpc.models import ServedModel
from elman_server.rpc.reading import run_reading
from elman_server.scheduling import Reading, ReadingFinished, Snapshot, Source
from elman_server.sessions import Prefix, PrefixCache
from elman_server.sessions.prefixes import INTERVAL, SHORTEST


class Prefill:
    """An input, and how much of it has been read.

    Args:
        model: what reads it.
        ids: the input.
        prefix: what the cache knows of it, and is to learn; None if it is not to be asked.
        source: what the encoder reads before it, where the model has one.

    Attributes:
        model: what reads it.
        source: as given.
        prefix: as given.
        position: how many of its tokens have been read.
        state: the state after them; None where none have.
        step_count: how many steps have been taken here, the cache's not among them.
        begun: when the first of them was, by `time.perf_counter`; 0 if none were.
    """

    def __init__(self, model: ServedModel, ids: TokenIds, prefix: Prefix | None, source: Source | None = None) -> None:
        self.model = model
        self.source = source
        self.prefix = prefix
        self._ids = ids
        self.position = prefix.position if prefix else 0
        self.state: Arrays | None = prefix.state if prefix else None
        self.step_count = 0
        self.begun = 0.0

    @classmethod
    def begin(
        cls,
        model: ServedModel,
        ids: TokenIds,
        prefixes: PrefixCache,
        caller: str,
        *,
        bypass: bool,
        output_wanted: bool = False,
        source: Source | None = None,
    ) -> Prefill:
        """An input as far as the cache knows it.

        Args:
            model: what reads it.
            ids: the input.
            prefixes: the cache.
            caller: who asks.
            bypass: whether the caller wants the cache left alone.
            output_wanted: see `PrefixCache.look_up`.
            source: what the encoder reads before it. What the cache knows is known of the prompt alone, so that it is
                not asked then.
        """
        prefix = None
        if len(ids) >= SHORTEST and not bypass and source is None:
            prefix = prefixes.look_up(model.for_sessions, caller, ids, output_wanted=output_wanted)
        return cls(model, ids, prefix, source)

    @property
    def read(self) -> TokenIds:
        return self._ids[: self.position]

    @property
    def unread(self) -> TokenIds:
        return self._ids[self.position :]

    async def read_all_but_one(self) -> None:
        """Read up to the last token, which everyone who goes on from here reads again, to see what the model shows
        after it.

        Raises:
            DomainError: what keeps it from its end.
        """
        end = len(self._ids) - 1
        if self.position < end:
            finished = await self._read_until(end, keep_state=True)
            self.position, self.state = end, finished.state
            if self.prefix is not None and finished.state is not None:
                self.prefix.keep(Snapshot(end, finished.state))

    async def last_output(self) -> NDArray[Any]:
        """The output of the last step, of which the cache may know even that.

        Raises:
            DomainError: what keeps it from its end.
        """
        prefix, end = self.prefix, len(self._ids)
        if prefix is not None and prefix.output is not None and self.position == end:
            return prefix.output
        finished = await self._read_until(end, keep_state=prefix is not None)
        if prefix is not None and finished.state is not None:
            prefix.keep(Snapshot(end, finished.state), finished.outputs)
        return finished.outputs

    async def _read_until(self, end: int, *, keep_state: bool) -> ReadingFinished:
        mailbox = Mailbox()
        reading = Reading(
            self._ids[self.position : end],
            self.prefix.receiver(mailbox) if self.prefix else mailbox,
            self.state,
            source=self.source,
            position=self.position,
            keep_state=keep_state,
            every_step=False,
            snapshot_steps=INTERVAL if self.prefix else None,
        )
        finished = await run_reading(self.model, reading, mailbox)
        self.step_count, self.begun = end - self.position, reading.begun
        return finished
