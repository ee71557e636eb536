"""What a module of this package provides."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from elman_server.errors import ConstraintError

_OPTIONS = '\n%llguidance {"no_forcing": true}\n'  # at the end, so that positions in the expression stay the same


@dataclass(frozen=True)
class Syntax:
    """How constraints of one kind are written.

    Attributes:
        name: name of the kind, in the singular.
        grammar: checks an expression and returns the grammar that llguidance compiles; raises `ConstraintError`.
        error: of an expression and a message of llguidance about its grammar, the error for the author of the
            expression.
    """

    name: str
    grammar: Callable[[str], str]
    error: Callable[[str, str], ConstraintError]


def to_grammar(lark: str, *others: dict[str, object]) -> str:
    """Return a grammar in llguidance's own form: a Lark grammar, and the grammars that it refers to."""
    return json.dumps({"grammars": [{"lark_grammar": lark + _OPTIONS}, *others]})
