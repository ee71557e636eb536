"""What is wrong with what a caller wants the output to match."""

from __future__ import annotations


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
