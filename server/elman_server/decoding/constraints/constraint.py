"""What a caller writes: an expression that an output has to match, and its kind."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from elman_server.decoding.constraints.syntaxes import json_schema, lark, regex
from elman_server.errors import ConstraintError

MAX_CHARACTERS = 100_000


class ConstraintKind(Enum):
    """The kinds of constraints. A new kind is a module in `syntaxes` and a member here."""

    REGEX = regex.SYNTAX
    JSON_SCHEMA = json_schema.SYNTAX
    LARK = lark.SYNTAX


@dataclass(frozen=True)
class Constraint:
    """What an output has to match as a whole.

    Attributes:
        kind: how it is written.
        text: the expression.
    """

    kind: ConstraintKind
    text: str

    def grammar(self) -> str:
        """Return the grammar that llguidance compiles.

        Raises:
            ConstraintError: the expression is invalid, too long, or uses something that is not supported.
        """
        syntax, text = self.kind.value, self.text
        if len(text) > MAX_CHARACTERS:
            raise ConstraintError(f"a {syntax.name} has at most {MAX_CHARACTERS:,} characters, not {len(text):,}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConstraintError("half of a surrogate pair, which is not a character", error.start) from None
        return syntax.grammar(text)

    @property
    def digest(self) -> str:
        """A digest of the constraint, by which two calls know that theirs are the same."""
        return hashlib.blake2b(
            f"{self.kind.name}\n{self.text}".encode(errors="surrogatepass"), digest_size=16
        ).hexdigest()

    def error(self, message: str) -> ConstraintError:
        """Return the error that a message of llguidance about the grammar means to the author of the expression."""
        return self.kind.value.error(self.text, message)
