"""The check of a JSON schema before llguidance compiles it: nothing in it is ignored silently.

llguidance refuses keywords of the drafts that it does not implement, and ignores all others: misspelt ones, and those
of other dialects. Here every keyword has to be one that llguidance enforces, or one that only annotates. What it would
enforce in part is refused too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import unquote

from elman_server.decoding.constraints.syntaxes.pattern import PatternError, to_rust
from elman_server.decoding.constraints.syntaxes.schema_parts import (
    BOUNDS,
    KEYWORDS,
    MAX_DEPTH,
    OPTIONS,
    WHITESPACE,
    Path,
    decimal,
    is_exact,
    is_number,
    names_are_open,
    subschemas,
)
from elman_server.errors import ConstraintError, shortened

_LARGEST = 2**53  # up to here every integer is a number of its own in double precision
_SMALLEST = 1e-20
_MAX_DECIMALS = 8  # of multipleOf, which llguidance computes with 32 bits
_WORD = 2**32

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]:,]')
_UNSPELLABLE = re.compile(r"[^\x20-\x7e\x80-\U0010ffff\b\f\n\r\t]")  # without \u


def check_schema(text: str) -> Any:
    """Check a JSON schema.

    Args:
        text: the schema.

    Returns:
        The schema as an object. llguidance gets this rather than the text, so that of a repeated key both read the same
        value.

    Raises:
        ConstraintError: it is not JSON, or asks for what llguidance does not enforce; with the position in the text.
    """
    schema = _parsed(text)
    if not isinstance(schema, dict | bool):
        raise ConstraintError(f"a JSON schema is an object, true or false, and not {shortened(schema)}", 0)
    parts = dict(subschemas(schema))
    for path, part in parts.items():
        _check(text, path, part)
    _check_references(text, parts)
    _check_multiples(text, parts)
    _check_characters(text, parts)
    return schema


def key_position(text: str, key: str) -> int | None:
    """Return the position of a key in a JSON text; None unless it occurs exactly once."""
    found = [match.start() for match in re.finditer(re.escape(json.dumps(key)) + r"\s*:", text)]
    return found[0] if len(found) == 1 else None


def _parsed(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ConstraintError(f"{constant} is not JSON", text.find(constant))

    try:
        schema = json.loads(text, parse_constant=refuse)
        if _is_deeper(schema, MAX_DEPTH):
            raise ConstraintError("nested too deeply")
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except json.JSONDecodeError as error:
        raise ConstraintError(f"not JSON: {error.msg}", error.pos) from None
    except ConstraintError:
        raise
    except RecursionError:
        raise ConstraintError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ConstraintError("half of a surrogate pair, which is not a character") from None
    except ValueError:
        raise ConstraintError("a number is out of range") from None
    return schema


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether arrays and objects are nested deeper than that, in which case no recursive function may see them."""
    level = [value]
    for _ in range(levels):
        containers = [part for part in level if isinstance(part, dict | list)]
        level = [inner for part in containers for inner in (part.values() if isinstance(part, dict) else part)]
    return any(isinstance(part, dict | list) for part in level)


def _check(text: str, path: Path, schema: dict[str, Any]) -> None:
    """Refuse what is not enforced in one schema; the schemas inside it are checked by themselves."""
    for keyword, value in schema.items():
        here = (*path, keyword)
        if keyword == OPTIONS and not path:
            if not isinstance(value, dict) or set(value) - {WHITESPACE} or not all(map(_is_boolean, value.values())):
                _refuse(text, here, f"only {WHITESPACE!r} can be chosen here, as true or false")
        elif keyword not in KEYWORDS and not keyword.startswith("x-"):
            _refuse(text, here, f"the keyword {shortened(keyword)!r} is not supported")
        elif keyword == OPTIONS:
            _refuse(text, here, f"the keyword {keyword!r} belongs at the top")
        elif keyword in BOUNDS:
            _check_bound(text, here, value)
        elif keyword in ("const", "enum"):
            _check_literal(text, here, value)
        elif keyword == "pattern":
            _check_pattern(text, here, value)
    for pattern in _names(schema.get("patternProperties")):
        _check_pattern(text, (*path, "patternProperties", pattern), pattern)
    _check_count(text, path, schema)
    _check_items(text, path, schema)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _names(members: Any) -> list[str]:
    return list(members) if isinstance(members, dict) else []


def _check_bound(text: str, path: Path, value: Any) -> None:
    if is_number(value) and value and not _SMALLEST <= abs(value) < _LARGEST:
        problem = f"{path[-1]!r} is 0, or lies between {_SMALLEST:g} and 2**53 up to its sign"
        _refuse(text, path, f"{problem}, where numbers are exact")
    if is_number(value) and not str(path[-1]).startswith("exclusive") and not is_exact(value):
        _refuse(text, path, f"{path[-1]!r} has more digits than are read exactly, which 15 always are")


def _check_literal(text: str, path: Path, value: Any) -> None:
    """Refuse numbers that llguidance would round."""
    pending = [value]
    while pending:
        part = pending.pop()
        if is_number(part) and abs(part) > _LARGEST:
            _refuse(text, path, f"{path[-1]!r} holds a number beyond 2**53, where numbers are not exact")
        if is_number(part) and not is_exact(part):
            _refuse(text, path, f"{path[-1]!r} holds more digits than are read exactly, which 15 always are")
        pending += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def _check_pattern(text: str, path: Path, pattern: Any) -> None:
    if not isinstance(pattern, str):
        return  # llguidance has an error for it.
    try:
        to_rust(pattern)
    except PatternError as error:
        _refuse(text, path, f"in a pattern: {error}")


def _check_count(text: str, path: Path, schema: dict[str, Any]) -> None:
    """Refuse a minProperties that repeated names could satisfy: two members of one name are a single member."""
    required = schema.get("required")
    least = schema.get("minProperties")
    if isinstance(least, int) and least > (len(required) if isinstance(required, list) else 0) + 1:
        problem = "'minProperties' can be at most one more than there are 'required' properties"
        _refuse(text, (*path, "minProperties"), problem)


def _check_items(text: str, path: Path, schema: dict[str, Any]) -> None:
    """Refuse two ways of describing arrays in one schema: llguidance follows one and ignores the other."""
    old = isinstance(schema.get("items"), list)
    if "additionalItems" in schema and not old:
        _refuse(text, (*path, "additionalItems"), "'additionalItems' belongs to 'items' that is a list")
    if old and "prefixItems" in schema:
        _refuse(text, (*path, "prefixItems"), "'prefixItems' does not go with 'items' that is a list")


def _check_references(text: str, parts: dict[Path, dict[str, Any]]) -> None:
    """Refuse references to what is not known to be a schema and has not been checked."""
    pointers = {_pointer(path) for path in parts}
    roots = [_pointer(path) for path, part in parts.items() if not path or "$id" in part or "id" in part]
    for path, part in parts.items():
        target = part.get("$ref")
        if not isinstance(target, str) or not target.startswith("#") or target[1:2] not in ("", "/"):
            continue
        wanted = unquote(target[1:])
        if not any(root + wanted in pointers for root in roots):
            _refuse(text, (*path, "$ref"), f"'$ref' leads to no schema: {shortened(target)}")


def _check_multiples(text: str, parts: dict[Path, dict[str, Any]]) -> None:
    """Refuse numbers of which llguidance computes the multiples wrongly, alone or together."""
    found: dict[tuple[int, int], Path] = {}
    for path, part in parts.items():
        value = part.get("multipleOf")
        if not is_number(value):
            continue
        here = (*path, "multipleOf")
        coefficient, decimals = decimal(float(part["multipleOf"]))
        exact = Decimal(coefficient).scaleb(-decimals) == Decimal(repr(value))
        if not exact or not 0 < coefficient < _WORD // 10 or decimals > _MAX_DECIMALS:
            limit = f"{_WORD // 10}, with {_MAX_DECIMALS} decimals at most"
            _refuse(text, here, f"'multipleOf' is above 0 and at most {limit}")
        found[coefficient, decimals] = here
    most = max((decimals for _, decimals in found), default=0)
    product = 1
    for (coefficient, decimals), here in found.items():
        product *= coefficient * 10 ** (most - min(decimals, 1))
        if len(found) > 1 and product >= _WORD:
            _refuse(text, here, "the numbers of several 'multipleOf' are too large together")


def _check_characters(text: str, parts: dict[Path, dict[str, Any]]) -> None:
    """Refuse constants that only \\u can spell, where it could spell an excluded name as well."""
    if not any(map(names_are_open, parts.values())):
        return
    for path, part in parts.items():
        for keyword in ("const", "enum"):
            if any(_UNSPELLABLE.search(found) for found in _strings(part.get(keyword))):
                problem = f"{keyword!r} holds a control character, and the schema names some properties among others"
                _refuse(text, (*path, keyword), problem)


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings of a JSON value that are no names."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            yield part
        pending += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def _refuse(text: str, path: Path, reason: str) -> NoReturn:
    raise ConstraintError(f"{reason}: {shortened(_pointer(path))}", _position(text, path))


def _pointer(path: Path) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _position(text: str, sought: Path) -> int | None:
    """Return the position of the key at the end of a path in a JSON text."""
    path: list[str | int] = []
    before: re.Match[str] | None = None
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "{":
                path.append("")
            case "[":
                path.append(0)
            case "}" | "]":
                path.pop()
            case ":" if before is not None:
                path[-1] = json.loads(before[0])
                if len(path) == len(sought) and tuple(path) == sought:
                    return before.start()
            case "," if isinstance(path[-1], int):
                path[-1] += 1
        before = token
    return None
