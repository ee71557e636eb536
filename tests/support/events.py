"""What sequences have received, to be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from elman_server.scheduling import BeamsFinished, Event, Failed, Finished, ReadingFinished, Sequence, Tokens
from tests.support.scheduling import inbox


def content(event: Event) -> object:
    """The content of an event, to be compared."""
    if isinstance(event, Finished):
        return event.reason, event.position, shown(event.state)
    if isinstance(event, ReadingFinished):
        return event.outputs.tobytes(), event.log_probabilities.tobytes(), shown(event.state), shown(event.states)
    if isinstance(event, Failed):
        return str(event.error)
    if isinstance(event, BeamsFinished):
        return event.hypotheses, event.cut_short
    return event


def shown(arrays: Mapping[str, Any] | None) -> object:
    return None if arrays is None else {name: np.asarray(values).tobytes() for name, values in arrays.items()}


def received(sequence: Sequence) -> tuple[list[int], Event]:
    """All tokens of a sequence, and its end."""
    tokens: list[int] = []
    while True:
        event = inbox(sequence).events.get(timeout=10)
        if isinstance(event, Tokens):
            tokens.extend(event.ids)
        elif isinstance(event, Finished | ReadingFinished | BeamsFinished | Failed):
            return tokens, event
