"""The check of a JSON schema before llguidance compiles it: nothing in it is ignored silently.

llguidance refuses keywords of the drafts that it does not implement, and ignores all others: misspelt ones, and those
of other dialects. Here every keyword has to be one that llguidance enforces, or one that only annotates. What it would
enforce in part is refused too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from elman_server.errors import ConstraintError, shortened

_MAPS_OF_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS_OF_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SCHEMAS = frozenset({"items", "additionalItems", "additionalProperties"})
_VALUES = frozenset(
    {
        *("$ref", "const", "enum", "type", "format", "pattern", "minLength", "maxLength", "minItems", "maxItems"),
        *("required", "minProperties", "maxProperties", "multipleOf"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
)
_ANNOTATIONS = frozenset(
    {
        *("$schema", "$id", "id", "$anchor", "$comment", "title", "description", "default", "examples", "deprecated"),
        *("readOnly", "writeOnly", "contentMediaType", "contentEncoding", "contentSchema", "discriminator"),
    }
)
KEYWORDS = _MAPS_OF_SCHEMAS | _LISTS_OF_SCHEMAS | _SCHEMAS | _VALUES | _ANNOTATIONS
_OPTIONS = "x-guidance"  # of llguidance; at the top level only
_OPTION = "whitespace_flexible"

_MAX_DEPTH = 128  # keys and indices on the path to a schema; llguidance reads no deeper

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]:,]')

Path = tuple[str | int, ...]  # the keys and indices that lead to a part of a schema


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
    for path, part in _subschemas(schema):
        _check(text, path, part)
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
        if _is_deeper(schema, _MAX_DEPTH):
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


def _subschemas(schema: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every schema in a schema, with its path.

    Raises:
        ConstraintError: they are nested too deeply.
    """
    pending: list[tuple[Path, Any]] = [((), schema)]
    while pending:
        path, part = pending.pop()
        if len(path) > _MAX_DEPTH:
            raise ConstraintError("nested too deeply")
        if not isinstance(part, dict):
            continue
        yield path, part
        for keyword, value in part.items():
            here = (*path, keyword)
            if keyword in _MAPS_OF_SCHEMAS and isinstance(value, dict):
                pending += [((*here, name), inner) for name, inner in value.items()]
            elif keyword in _LISTS_OF_SCHEMAS | _SCHEMAS and isinstance(value, list):
                pending += [((*here, index), inner) for index, inner in enumerate(value)]
            elif keyword in _SCHEMAS:
                pending.append((here, value))


def _check(text: str, path: Path, schema: dict[str, Any]) -> None:
    """Refuse what is not enforced in one schema; the schemas inside it are checked by themselves."""
    for keyword, value in schema.items():
        here = (*path, keyword)
        if keyword == _OPTIONS and not path:
            if not isinstance(value, dict) or set(value) - {_OPTION}:
                _refuse(text, here, f"only {_OPTION!r} can be chosen here")
        elif keyword not in KEYWORDS and not keyword.startswith("x-"):
            _refuse(text, here, f"the keyword {shortened(keyword)!r} is not supported")
        elif keyword == _OPTIONS:
            _refuse(text, here, f"the keyword {keyword!r} belongs at the top")
    _check_count(text, path, schema)
    _check_bounds(text, path, schema)


def _check_count(text: str, path: Path, schema: dict[str, Any]) -> None:
    """Refuse a minProperties that repeated names could satisfy: two members of one name are a single member."""
    required = schema.get("required")
    least = schema.get("minProperties")
    if isinstance(least, int) and least > (len(required) if isinstance(required, list) else 0) + 1:
        problem = "'minProperties' can be at most one more than there are 'required' properties"
        _refuse(text, (*path, "minProperties"), problem)


def _check_bounds(text: str, path: Path, schema: dict[str, Any]) -> None:
    """Refuse bounds that llguidance 1.9.1 does not enforce: above 12 and below 12.5, it allows 12."""
    bounds = {name: schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")}
    for end, other in (("Minimum", "aximum"), ("Maximum", "inimum")):
        excluded = bounds[f"exclusive{end}"]
        if excluded is True:  # as in draft 4
            excluded = bounds[end.lower()]
        for limit in (bounds[f"m{other}"], bounds[f"exclusiveM{other}"]):
            if isinstance(excluded, int | float) and isinstance(limit, int | float) and excluded == int(limit) != limit:
                problem = f"'exclusive{end}' is not enforced where only the fraction of a number is free"
                _refuse(text, (*path, f"exclusive{end}"), problem)


def _refuse(text: str, path: Path, reason: str) -> NoReturn:
    pointer = "".join(f"/{part}" for part in path)
    raise ConstraintError(f"{reason}: {shortened(pointer)}", _position(text, path))


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
