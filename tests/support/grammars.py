"""Expressions that constrain an output, and an independent check whether an output matches."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
from numpy.typing import NDArray

from elman_server.decoding.constraints import (
    Constraint,
    ConstraintKind,
    Grammars,
    Matcher,
    allowed_tokens,
)

REGEX, JSON_SCHEMA, LARK = ConstraintKind.REGEX, ConstraintKind.JSON_SCHEMA, ConstraintKind.LARK


# Characters of one to three bytes, for the vocabularies of characters and subwords.
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n", "é", "ß", "語"]


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "role": {"enum": ["reader", "writer", None, 7]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,6}$"}, "maxItems": 3},
    },
    "required": ["name", "role"],
    "additionalProperties": False,
}


ADDRESS = {
    "type": "object",
    "properties": {
        "person": PERSON,
        "place": {
            "oneOf": [
                {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
                {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
                {"type": "null"},
            ]
        },
    },
    "required": ["person", "place"],
}


TREE: dict[str, Any] = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "left": {"$ref": "#/$defs/branch"}},
            "required": ["value"],
            "additionalProperties": False,
        },
        "branch": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
    },
}


ARITHMETIC = r"""
start: sum
sum: product (("+" | "-") product)*
product: factor (("*" | "/") factor)*
factor: NUMBER | "(" sum ")"
NUMBER: /0|[1-9][0-9]*/
%ignore " "
"""


EXPRESSIONS: list[tuple[ConstraintKind, str]] = [
    (REGEX, r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"),
    (REGEX, r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"),
    (REGEX, r"[a-z][a-z0-9]*(\.[a-z0-9]+)*@[a-z]+(\.[a-z]{2,3}){1,2}"),
    (REGEX, r"(yes|no|perhaps)(, (yes|no|perhaps))*"),
    (REGEX, r"(a|b)*abb"),
    (REGEX, r"(?i)hello,? w[oö]rld!*"),
    (REGEX, r"^é+(語|ß)?$"),
    (REGEX, r"[^a-z\n]{3,8}"),
    (REGEX, r"(?s).{0,5}"),
    (REGEX, r"(((a|bc|)d){1,3}/)*"),
    (REGEX, r"#[0-9a-f]{3}([0-9a-f]{3})?|rgb\([0-9]{1,3}(,[0-9]{1,3}){2}\)"),
    (JSON_SCHEMA, json.dumps(PERSON)),
    (JSON_SCHEMA, json.dumps(ADDRESS)),
    (JSON_SCHEMA, json.dumps(TREE)),
    (JSON_SCHEMA, json.dumps({"x-guidance": {"whitespace_flexible": False}, **ADDRESS})),
    (JSON_SCHEMA, json.dumps({"type": "number", "minimum": -1.5, "exclusiveMaximum": 12})),
    (JSON_SCHEMA, json.dumps({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000})),
    (JSON_SCHEMA, json.dumps({"type": ["string", "null"], "format": "date"})),
    (JSON_SCHEMA, json.dumps({"enum": ["é", {"a": [1, None]}, 1.5, True]}, ensure_ascii=False)),
    (JSON_SCHEMA, json.dumps({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 50}, {"multipleOf": 5}]})),
    (JSON_SCHEMA, json.dumps({"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2})),
    (JSON_SCHEMA, json.dumps({"type": "array", "prefixItems": [{"const": "x"}, TREE["$defs"]["branch"]]}).replace(
        '"#/$defs/tree"', '"#/prefixItems/0"'
    )),
    (JSON_SCHEMA, "true"),
    (LARK, ARITHMETIC),
    (LARK, 'start: "call(" %json {"type": "integer"} ("," WORD)* ")"\nWORD: /[a-z]+/'),
]  # fmt: skip


class Vocabulary:
    """A vocabulary with its grammars."""

    def __init__(self, spelled: Sequence[bytes | None], end_token: int | None) -> None:
        self.spelled = spelled
        self.end_token = end_token
        self.grammars = Grammars(spelled, end_token)
        self.token_of = {part: token for token, part in enumerate(spelled)}

    def start(self, kind: ConstraintKind, text: str) -> Matcher:
        return self.grammars.compile(Constraint(kind, text)).start()

    def allowed(self, matchers: Sequence[Matcher]) -> NDArray[np.bool_]:
        out = np.ones((len(matchers), len(self.spelled)), np.bool_)
        allowed_tokens(matchers, out)
        return out

    def texts(self, matcher: Matcher) -> set[bytes]:
        """Return the texts of the tokens that may follow; the end token as b"<end>"."""
        return {self.bytes_of(int(token)) for token in np.flatnonzero(self.allowed([matcher])[0])}

    def bytes_of(self, token: int) -> bytes:
        spelled = self.spelled[token]
        assert spelled is not None
        return spelled

    def accept(self, matcher: Matcher, text: str | bytes) -> Matcher:
        """Accept a text, where each token is a character or a byte."""
        for part in text if isinstance(text, str) else [bytes([byte]) for byte in text]:
            matcher.accept(self.token_of[part.encode() if isinstance(part, str) else part])
        return matcher

    def end(self, matcher: Matcher) -> Matcher:
        assert self.end_token is not None
        matcher.accept(self.end_token)
        return matcher


def matches(kind: ConstraintKind, text: str, output: str) -> bool:
    """Return whether an output matches, by an independent implementation."""
    if kind is REGEX:
        return re.fullmatch(text, output) is not None
    if kind is JSON_SCHEMA:
        validator = jsonschema.Draft202012Validator
        return bool(validator(json.loads(text), format_checker=validator.FORMAT_CHECKER).is_valid(json.loads(output)))
    if text == ARITHMETIC:
        nodes = list(ast.walk(ast.parse(output.strip(), mode="eval")))
        known = (ast.Expression, ast.BinOp, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div)
        return all(isinstance(node, known) for node in nodes)
    return re.fullmatch(r"call\(-?(0|[1-9][0-9]*)(,[a-z]+)*\)", output) is not None
