"""Grammars in llguidance's form of Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).

What is not about text is not supported: %llguidance, references to tokens, and the attributes stop, temperature and
max_tokens.
"""

from __future__ import annotations

import json
import re

from elman_server.decoding.constraints.syntaxes.messages import place_of, reason_of
from elman_server.decoding.constraints.syntaxes.schema_check import check_schema
from elman_server.decoding.constraints.syntaxes.syntax import Syntax, to_grammar
from elman_server.errors import ConstraintError, shortened

# What is not part of Lark's own syntax: strings, expressions, comments. An unterminated one ends the scan: from each of
# its quotes and slashes a search would read all the rest.
_SPECIAL = re.compile(
    r'(?P<text>"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\])+/|(?:#|//)[^\n]*)'
    r"|(?P<json>%json\s*)"
    r"|(?P<refused>%llguidance|<[^<>\s]+>|\b(?:stop|temperature|max_tokens)\s*=)"
    r"|(?P<open>[\"/])"
)


def _grammar(text: str) -> str:
    _check(text)
    return to_grammar(text)


def _check(grammar: str) -> None:
    position = 0
    while found := _SPECIAL.search(grammar, position):
        position = found.end()
        if found["refused"]:
            raise ConstraintError(f"{shortened(found['refused'])!r} is not supported here", found.start())
        if found["open"]:
            kind = "string" if found["open"] == '"' else "regular expression"
            raise ConstraintError(f"an unterminated {kind}", found.start())
        if found["json"]:
            position = _check_inline_schema(grammar, position)


def _check_inline_schema(grammar: str, start: int) -> int:
    """Check a JSON schema inside a grammar; return its end."""
    try:
        _, end = json.JSONDecoder().raw_decode(grammar, start)
    except json.JSONDecodeError as error:
        raise ConstraintError(f"not JSON: {error.msg}", error.pos) from None
    except RecursionError:
        raise ConstraintError("nested too deeply", start) from None
    try:
        check_schema(grammar[start:end])
    except ConstraintError as error:
        raise ConstraintError(error.problem, None if error.position is None else start + error.position) from None
    return end


def _error(grammar: str, message: str) -> ConstraintError:
    place = place_of(message)
    return ConstraintError(reason_of(message), _position(grammar, *place) if place else None)


def _position(grammar: str, line: int, column: int) -> int:
    """Return the character at a line and a column, both counted from 1, the column in bytes."""
    lines = grammar.split("\n")
    if line > len(lines):
        return len(grammar)
    before = lines[line - 1].encode()[: column - 1].decode(errors="ignore")
    return sum(len(earlier) + 1 for earlier in lines[: line - 1]) + len(before)


SYNTAX = Syntax("Lark grammar", _grammar, _error)
