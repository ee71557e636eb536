"""Grammars in llguidance's form of Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).

What is not about text is not supported: %llguidance, references to tokens, and the attributes stop, temperature and
max_tokens.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from elman_server.decoding.constraints.syntaxes.messages import place_of, reason_of
from elman_server.decoding.constraints.syntaxes.regex import check_groups
from elman_server.decoding.constraints.syntaxes.schema_check import check_schema
from elman_server.decoding.constraints.syntaxes.schema_rewriting import rewritten
from elman_server.decoding.constraints.syntaxes.syntax import Syntax, to_grammar
from elman_server.errors import ConstraintError, shortened


@dataclass(frozen=True)
class _InlineSchema:
    """A JSON schema in a grammar.

    Attributes:
        start: where it starts.
        end: where it ends.
        text: what llguidance is given in its place.
    """

    start: int
    end: int
    text: str


# What is not part of Lark's own syntax: strings, expressions, comments. An unterminated one ends the scan: from each of
# its quotes and slashes a search would read all the rest.
_SPECIAL = re.compile(
    r'(?P<text>"(?:\\.|[^"\\\n])*"|(?P<expression>/(?:\\.|[^/\\])+/)|(?:#|//)[^\n]*)'
    r"|(?P<json>%json\s*)"
    r"|(?P<refused>%llguidance|<[^<>\s]+>|\b(?:stop|temperature|max_tokens)\s*=)"
    r"|(?P<open>[\"/])"
)


def _grammar(text: str) -> str:
    return to_grammar(_with_schemas_rewritten(text, _inline_schemas(text)))


def _inline_schemas(grammar: str) -> list[_InlineSchema]:
    """Check what is not part of Lark's own syntax; return the JSON schemas in a grammar, in order."""
    schemas: list[_InlineSchema] = []
    position = 0
    while found := _SPECIAL.search(grammar, position):
        position = found.end()
        if found["refused"]:
            raise ConstraintError(f"{shortened(found['refused'])!r} is not supported here", found.start())
        if found["open"]:
            kind = "string" if found["open"] == '"' else "regular expression"
            raise ConstraintError(f"an unterminated {kind}", found.start())
        if found["expression"]:
            check_groups(found["expression"], found.start())
        if found["json"]:
            schemas.append(_inline_schema(grammar, position))
            position = schemas[-1].end
    return schemas


def _inline_schema(grammar: str, start: int) -> _InlineSchema:
    try:
        _, end = json.JSONDecoder().raw_decode(grammar, start)
    except json.JSONDecodeError as error:
        raise ConstraintError(f"not JSON: {error.msg}", error.pos) from None
    except RecursionError:
        raise ConstraintError("nested too deeply", start) from None
    try:
        schema = check_schema(grammar[start:end])
    except ConstraintError as error:
        raise ConstraintError(error.problem, None if error.position is None else start + error.position) from None
    return _InlineSchema(start, end, json.dumps(rewritten(schema)))


def _with_schemas_rewritten(grammar: str, schemas: list[_InlineSchema]) -> str:
    parts, last = list[str](), 0
    for schema in schemas:
        parts += [grammar[last : schema.start], schema.text]
        last = schema.end
    return "".join([*parts, grammar[last:]])


def _error(grammar: str, message: str) -> ConstraintError:
    place = place_of(message)
    if place is None:
        return ConstraintError(reason_of(message))
    schemas = _inline_schemas(grammar)
    position = _position(_with_schemas_rewritten(grammar, schemas), *place)
    return ConstraintError(reason_of(message), _original_position(position, schemas))


def _position(grammar: str, line: int, column: int) -> int:
    """Return the character at a line and a column, both counted from 1, the column in bytes."""
    lines = grammar.split("\n")
    if line > len(lines):
        return len(grammar)
    before = lines[line - 1].encode()[: column - 1].decode(errors="ignore")
    return sum(len(earlier) + 1 for earlier in lines[: line - 1]) + len(before)


def _original_position(position: int, schemas: list[_InlineSchema]) -> int:
    """Return where a character of the grammar with rewritten schemas comes from."""
    for schema in schemas:
        if position < schema.start:
            break
        if position < schema.start + len(schema.text):
            return schema.start
        position += schema.end - schema.start - len(schema.text)
    return position


SYNTAX = Syntax("Lark grammar", _grammar, _error)
