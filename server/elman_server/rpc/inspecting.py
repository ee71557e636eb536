"""What units do while a model reads an input: read in pieces, so that only a few steps' states are kept at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from elman_bundle.vocabulary import TokenIds
from elman_protos import v1
from elman_server.engine import Arrays, Wanted
from elman_server.rpc.lengthy import by_length
from elman_server.rpc.mailbox import Mailbox
from elman_server.rpc.models import ServedModel
from elman_server.rpc.reading import run_reading
from elman_server.rpc.subjects import Units, state_size
from elman_server.scheduling import Reading

_PIECE_STEPS = 256
_PIECE_BYTES = 16 * 1024 * 1024  # of states and of what is told of them, at most, as far as one step has not more
_VALUE_BYTES = 20  # of a unit's value: where it is picked out, in single precision, and in its message
_MANY = 20_000  # values; to write down more takes milliseconds


async def inspect(ids: TokenIds, units: Units, model: ServedModel) -> AsyncGenerator[list[v1.InspectedStep], None]:
    """The steps of an input, some at a time; the next are taken when they are asked for.

    Args:
        ids: the input.
        units: what is watched.
        model: what reads.
    """
    begun = len(model.with_begin_token(ids[:0]))
    read = ids[begun:]
    texts = [""] * begun  # Of a begin token: whatever it stands for, it is not in the text.
    texts += await by_length(len(read), lambda: model.token_texts(read))
    state: Arrays | None = None
    length = _piece_length(units, model)
    for start in range(0, len(ids), length):
        piece = slice(start, start + length)
        reading = Reading(
            ids[piece],
            Mailbox(),
            state,
            position=start,
            keep_state=True,
            every_step=False,
            wanted=Wanted(states=True),
        )
        # To those behind the first one the input has been let in.
        finished = await run_reading(model, reading, always=start > 0)
        state = finished.state
        values = units.values(finished.states)
        yield await by_length(values.size, partial(_steps, ids[piece], texts[piece], values), _MANY)


def _piece_length(units: Units, model: ServedModel) -> int:
    step_bytes = state_size(model) + _VALUE_BYTES * len(units)
    return max(1, min(_PIECE_STEPS, _PIECE_BYTES // max(1, step_bytes)))


def _steps(ids: TokenIds, texts: list[str], values: NDArray[np.float32]) -> list[v1.InspectedStep]:
    return [
        v1.InspectedStep(token_id=token, text=text, values=row.tolist())
        for token, text, row in zip(ids.tolist(), texts, values, strict=True)
    ]
