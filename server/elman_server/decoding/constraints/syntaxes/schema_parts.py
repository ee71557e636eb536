"""The schemas inside a JSON schema, and the keywords that llguidance enforces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from elman_server.errors import ConstraintError

MAPS_OF_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS_OF_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SCHEMAS = frozenset({"items", "additionalItems", "additionalProperties"})
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_VALUES = frozenset(
    {
        *("$ref", "const", "enum", "type", "format", "pattern", "minLength", "maxLength", "minItems", "maxItems"),
        *("required", "minProperties", "maxProperties", "multipleOf", *BOUNDS),
    }
)
_ANNOTATIONS = frozenset(
    {
        *("$schema", "$id", "id", "$anchor", "$comment", "title", "description", "default", "examples", "deprecated"),
        *("readOnly", "writeOnly", "contentMediaType", "contentEncoding", "contentSchema", "discriminator"),
    }
)
KEYWORDS = MAPS_OF_SCHEMAS | _LISTS_OF_SCHEMAS | _SCHEMAS | _VALUES | _ANNOTATIONS
OPTIONS = "x-guidance"  # of llguidance; at the top level only
WHITESPACE = "whitespace_flexible"

MAX_DEPTH = 128  # keys and indices on the path to a schema; llguidance reads no deeper

Path = tuple[str | int, ...]  # the keys and indices that lead to a part of a schema


def subschemas(schema: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every schema in a schema that is an object, with its path; the outer ones first.

    Raises:
        ConstraintError: they are nested too deeply.
    """
    pending: list[tuple[Path, Any]] = [((), schema)]
    while pending:
        path, part = pending.pop()
        if len(path) > MAX_DEPTH:
            raise ConstraintError("nested too deeply")
        if not isinstance(part, dict):
            continue
        yield path, part
        for keyword, value in part.items():
            here = (*path, keyword)
            if keyword in MAPS_OF_SCHEMAS and isinstance(value, dict):
                pending += [((*here, name), inner) for name, inner in value.items()]
            elif keyword in _LISTS_OF_SCHEMAS | _SCHEMAS and isinstance(value, list):
                pending += [((*here, index), inner) for index, inner in enumerate(value)]
            elif keyword in _SCHEMAS:
                pending.append((here, value))


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_exact(value: float) -> bool:
    """Whether llguidance reads a number as it is: it rounds the digits before it divides them by a power of ten."""
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    significand = float(int("".join(map(str, digits))))
    return abs(value) == (significand / 10.0**-exponent if exponent < 0 else significand * 10.0**exponent)


def decimal(value: float) -> tuple[int, int]:
    """Return a number as llguidance reads a `multipleOf`: an integer, and how many of its digits are decimals."""
    scaled, decimals = float(value), 0
    while scaled % 1:
        scaled, decimals = scaled * 10, decimals + 1
    coefficient = int(scaled)
    while decimals and coefficient % 10 == 0:
        coefficient, decimals = coefficient // 10, decimals - 1
    return coefficient, decimals


def multiples_with_fewer_decimals(multiple: float) -> list[float]:
    """Return, for each smaller number of decimals but 0, of what the multiples with as many decimals are multiples: 0.5
    for 0.25."""
    coefficient, decimals = decimal(multiple)
    return [math.lcm(coefficient, 10**fewer) / 10**decimals for fewer in range(1, decimals)]


def names_are_open(schema: dict[str, Any]) -> bool:
    """Whether objects may have other names than those that a schema lists, which must then not be spelled as others."""
    listed = any(schema.get(keyword) for keyword in ("properties", "required", "patternProperties"))
    return listed and (schema.get("additionalProperties") is not False or bool(schema.get("patternProperties")))
