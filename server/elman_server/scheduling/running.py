"""What the loop asks of those who hold the sequences that run: the rows of steps, or the nodes of trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from elman_server.errors import ModelFailedError
from elman_server.scheduling.sequence import Event, Receiver, Sequence

Emission = tuple[Receiver, Event]
Deliver = Callable[[list[Emission]], None]
# Hands events on, in order, if there are any; returns when those who talk to the callers have had a turn.
Tell = Callable[[list[Emission]], None]

MODEL_FAILED = ModelFailedError("the model failed on this input")
INTERNAL = ModelFailedError("internal error")


class Running(Protocol):
    """The sequences of a model that run. Not thread-safe; the loop's thread owns it, only its size may be looked at by
    others."""

    @property
    def capacity(self) -> int:
        """The number of slots."""
        ...

    def __len__(self) -> int:
        """The number of slots in use."""
        ...

    @property
    def free(self) -> int:
        """The number of slots for newcomers: neither in use nor kept for one who runs."""
        ...

    def admit(self, newcomers: list[Sequence], tell: Tell) -> None:
        """Take sequences in, for whose `row_count` there are free slots."""
        ...

    def drop_aborted(self) -> None:
        """Let those go who have been aborted."""
        ...

    def take_turn(self, others_wait: bool, tell: Tell, interrupted: Callable[[], bool]) -> None:
        """Run the model, once at least, and tell those whom it has brought something; those who have ended leave.

        Args:
            others_wait: whether somebody waits for a slot.
            interrupted: whether there is something to be done before the model is run once more.
            tell: takes what there is to tell.
        """
        ...

    def fail(self, error: Exception, tell: Tell) -> None:
        """Let all go: who has not heard of its end yet hears this, after the tokens there are."""
        ...
