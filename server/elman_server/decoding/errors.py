"""What is wrong with what a caller wants the output to match; and how much of what a caller wrote a message repeats."""

from __future__ import annotations

import json


class ConstraintError(ValueError):
    """An expression that no output can be held to. The message says what is wrong and, where that is known, where.

    Attributes:
        problem: what is wrong.
        position: the index of the character in the expression where it goes wrong; None if that cannot be told.
    """

    def __init__(self, problem: str, position: int | None = None) -> None:
        super().__init__(problem if position is None else f"{problem} (at character {position})")
        self.problem = problem
        self.position = position


def shortened(value: object, longest: int = 100) -> str:
    """What a caller has written, for a message: of a length that leaves room for the place."""
    written = value if isinstance(value, str) else json.dumps(value)
    return written if len(written) <= longest else f"{written[:longest]}..."
