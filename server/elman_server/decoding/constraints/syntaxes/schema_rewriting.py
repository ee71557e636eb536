r"""JSON schemas as llguidance has to be given them, since it reads some of them more loosely or more narrowly.

What a rewritten schema accepts is what the original one accepts. No schema in it is moved, so that references hold.

- White space between tokens is one space, or a line break and an indentation, unless the schema chooses otherwise: a
  model that likes white space would never stop.
- An exclusive bound becomes the next number: llguidance excludes 12 from (12, 13), but not from (12, 12.5).
- Below a bound of several decimals a number may end early: llguidance leaves 0.2 out of [0.1, 0.25].
- A multiple of 0.25 may be written as 0.5, where llguidance allows 0.50 only.
- Patterns are translated from ECMA-262.
- Dates and times exist: there is no 30 February, and a second 60 only where there are leap seconds.
- Keywords that refer to each other stand together: llguidance applies `items` before an `anyOf`, and forgets it then.
- Where names are excluded, a name has one spelling: "a\u0062" is "ab".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

from elman_server.decoding.constraints.syntaxes.pattern import to_rust
from elman_server.decoding.constraints.syntaxes.schema_parts import (
    BOUNDS,
    OPTIONS,
    WHITESPACE,
    is_exact,
    is_number,
    multiples_with_fewer_decimals,
    names_are_open,
    subschemas,
)

_WHITESPACE_PATTERN = r"\x20|\r?\n[\x20\t]{0,12}"
_SINGLE_SPELLINGS = 'nrbtf\\"'  # escapes without u, which could spell any character

_APPLICATORS = frozenset({"const", "enum", "allOf", "anyOf", "oneOf", "$ref"})
_LEAST_POSITIVE = 1e-22  # numbers have 24 characters at most
_ROUNDING_UP = Context(prec=15, rounding=ROUND_CEILING)  # to a number that llguidance reads as it is

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_HOUR = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_FRACTION = r"(?:\.[0-9]+)?"
_TIME = f"(?:{_HOUR}:[0-5][0-9]{_FRACTION}(?:[zZ]|[+-]{_HOUR})|23:59:60{_FRACTION}(?:[zZ]|[+-]00:00))"
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}[tT]{_TIME}$"}


def rewritten(schema: dict[str, Any] | bool) -> dict[str, Any] | bool:
    """Return what llguidance is given for a schema that has been checked. The schema itself is changed.

    Raises:
        PatternError: never for a schema that has been checked.
    """
    if schema is False:
        return schema
    root = {} if schema is True else schema
    parts = [part for _, part in subschemas(root)]
    options: dict[str, Any] = {}
    if any(map(names_are_open, parts)):
        options["json_allowed_escapes"] = _SINGLE_SPELLINGS
    whitespace = root.pop(OPTIONS, {}).get(WHITESPACE)
    if whitespace is None:
        options["whitespace_pattern"] = _WHITESPACE_PATTERN
    else:
        options[WHITESPACE] = whitespace
    for part in parts:
        _rewrite_patterns(part)
        _rewrite_bounds(part)
        _rewrite_multiple(part)
        _group(part)
    root[OPTIONS] = options
    return root


def _rewrite_patterns(schema: dict[str, Any]) -> None:
    pattern, named = schema.get("pattern"), schema.get("patternProperties")
    if isinstance(pattern, str):
        schema["pattern"] = to_rust(pattern)
    if isinstance(named, dict):
        schema["patternProperties"] = {to_rust(name): part for name, part in named.items()}
    if schema.get("format") in _FORMATS:
        _add(schema, {"pattern": _FORMATS[schema.pop("format")]})


def _rewrite_bounds(schema: dict[str, Any]) -> None:
    given = [name for name in BOUNDS if name in schema]
    if not given or not all(isinstance(schema[name], int | float) for name in given):
        return  # llguidance has an error for it.
    low = _lowest(schema.get("minimum"), schema.get("exclusiveMinimum"))
    high = -_lowest(_negated(schema.get("maximum")), _negated(schema.get("exclusiveMaximum")))
    for name in given:
        del schema[name]
    if schema.get("type") == "integer":
        schema.update(_finite(minimum=_rounded(low, math.ceil), maximum=_rounded(high, math.floor)))
        return
    bounds = _finite(minimum=low, maximum=high)
    early = sorted({value for value in _early_ends(low) + _early_ends(high) if low <= value <= high})
    if not early:
        schema.update(bounds)
        return
    of_type = {"type": schema["type"]} if "type" in schema else {}
    _add(schema, {"anyOf": [{**of_type, **bounds}, *({"const": value} for value in early)]})


def _lowest(minimum: Any, exclusive: Any) -> float:
    """Return the least number within the bounds; minus infinity if there is none. In draft 4, `exclusive` is true if
    the minimum itself is excluded."""
    if exclusive is True:
        minimum, exclusive = None, minimum
    found = -math.inf if minimum is None else minimum
    if is_number(exclusive):
        found = max(found, _LEAST_POSITIVE if exclusive == 0 else _next_above(exclusive))
    return found


def _next_above(value: float) -> float:
    """Return the next larger number that llguidance reads as it is."""
    following = math.nextafter(value, math.inf)
    return following if is_exact(following) else float(_ROUNDING_UP.create_decimal(repr(following)))


def _negated(bound: Any) -> Any:
    return -bound if is_number(bound) else bound


def _rounded(value: float, direction: Callable[[float], int]) -> float:
    return direction(value) if math.isfinite(value) else value


def _finite(**bounds: float) -> dict[str, float]:
    return {name: value for name, value in bounds.items() if math.isfinite(value)}


def _early_ends(bound: float) -> list[float]:
    """Return the numbers that a number's decimals pass through: 1.2 and 1.25 for 1.253."""
    if not math.isfinite(bound):
        return []
    whole, _, decimals = f"{Decimal(repr(bound)):f}".partition(".")
    return [float(f"{whole}.{decimals[:count]}") for count in range(1, len(decimals))]


def _rewrite_multiple(schema: dict[str, Any]) -> None:
    if not is_number(schema.get("multipleOf")):
        return
    shorter = multiples_with_fewer_decimals(schema["multipleOf"])
    if shorter:
        _add(schema, {"anyOf": [{"multipleOf": value} for value in (schema.pop("multipleOf"), *shorter)]})


def _add(schema: dict[str, Any], other: dict[str, Any]) -> None:
    """Require another schema too."""
    schema["allOf"] = [*schema.get("allOf", []), other]


def _group(schema: dict[str, Any]) -> None:
    """Put all keywords but the applicators, of which each stands for itself, where `properties` is: the order of the
    members of an object is that of the keywords."""
    together = {keyword: value for keyword, value in schema.items() if keyword not in _APPLICATORS}
    place = "properties" if "properties" in together else next(iter(together), None)
    items = list(schema.items())
    schema.clear()
    for keyword, value in items:
        if keyword == place:
            schema.update(together)
        elif keyword in _APPLICATORS:
            schema[keyword] = value
