"""What is asked of a JSON schema before llguidance compiles it: that nothing in it is passed over in silence.

llguidance refuses keywords of the drafts that it does not implement, and ignores all others, be they misspelt or of
another dialect. Here every keyword is one that it enforces or one that only annotates. What it would enforce in part is
refused as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from elman_server.errors import ConstraintError, shortened

_IN_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_IN_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_ALONE = frozenset({"items", "additionalItems", "additionalProperties"})
_PLAIN = frozenset(
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
KEYWORDS = _IN_MAPS | _IN_LISTS | _ALONE | _PLAIN | _ANNOTATIONS
_OPTIONS = "x-guidance"  # llguidance's own; at the top only
_OPTION = "whitespace_flexible"

_DEEPEST = 128  # members and items within each other; llguidance reads no more

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]:,]')

Pointer = tuple[str | int, ...]


def checked_schema(text: str) -> Any:
    """A JSON schema as an object, which llguidance reads as everybody does: no key is in it twice.

    Args:
        text: a JSON schema.

    Raises:
        ConstraintError: it is not JSON, or more than llguidance enforces; with the position in the text.
    """
    schema = _parsed(text)
    if not isinstance(schema, dict | bool):
        raise ConstraintError(f"a JSON schema is an object, true or false, and not {shortened(schema)}", 0)
    for path, part in _schemas(schema):
        _check(text, path, part)
    return schema


def key_position(text: str, key: str) -> int | None:
    """Where the one key of this name is in a JSON text, if there is exactly one."""
    found = [match.start() for match in re.finditer(re.escape(json.dumps(key)) + r"\s*:", text)]
    return found[0] if len(found) == 1 else None


def _parsed(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ConstraintError(f"{constant} is not JSON", text.find(constant))

    try:
        schema = json.loads(text, parse_constant=refuse)
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except json.JSONDecodeError as error:
        raise ConstraintError(f"not JSON: {error.msg}", error.pos) from None
    except ConstraintError:
        raise
    except RecursionError:
        raise ConstraintError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ConstraintError("half of a surrogate pair, which is no character") from None
    except ValueError:
        raise ConstraintError("a number is out of range") from None
    return schema


def _schemas(schema: Any) -> Iterator[tuple[Pointer, dict[str, Any]]]:
    """Every schema in a schema, with the way to it.

    Raises:
        ConstraintError: they are nested too deeply.
    """
    waiting: list[tuple[Pointer, Any]] = [((), schema)]
    while waiting:
        path, part = waiting.pop()
        if len(path) > _DEEPEST:
            raise ConstraintError("nested too deeply")
        if not isinstance(part, dict):
            continue
        yield path, part
        for keyword, value in part.items():
            here = (*path, keyword)
            if keyword in _IN_MAPS and isinstance(value, dict):
                waiting += [((*here, name), inner) for name, inner in value.items()]
            elif keyword in _IN_LISTS | _ALONE and isinstance(value, list):
                waiting += [((*here, index), inner) for index, inner in enumerate(value)]
            elif keyword in _ALONE:
                waiting.append((here, value))


def _check(text: str, path: Pointer, schema: dict[str, Any]) -> None:
    """Refuse what is not enforced of a schema itself; the schemas within are others' turn.

    Raises:
        ConstraintError: there is such a thing.
    """
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


def _check_count(text: str, path: Pointer, schema: dict[str, Any]) -> None:
    """Members that the schema does not name may come twice under one name, and are one then."""
    named = schema.get("required")
    least = schema.get("minProperties")
    if isinstance(least, int) and least > (len(named) if isinstance(named, list) else 0) + 1:
        problem = "'minProperties' can be at most one more than there are 'required' properties"
        _refuse(text, (*path, "minProperties"), problem)


def _check_bounds(text: str, path: Pointer, schema: dict[str, Any]) -> None:
    """llguidance 1.9.1 lets 12 through where a number is to be above 12 and below 12.5."""
    bounds = {name: schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")}
    for end, other in (("Minimum", "aximum"), ("Maximum", "inimum")):
        excluded = bounds[f"exclusive{end}"]
        if excluded is True:  # as draft 4 has it
            excluded = bounds[end.lower()]
        for limit in (bounds[f"m{other}"], bounds[f"exclusiveM{other}"]):
            if isinstance(excluded, int | float) and isinstance(limit, int | float) and excluded == int(limit) != limit:
                problem = f"'exclusive{end}' is not enforced where only the fraction of a number is free"
                _refuse(text, (*path, f"exclusive{end}"), problem)


def _refuse(text: str, path: Pointer, reason: str) -> NoReturn:
    pointer = "".join(f"/{part}" for part in path)
    raise ConstraintError(f"{reason}: {shortened(pointer)}", _position(text, path))


def _position(text: str, wanted: Pointer) -> int | None:
    """Where the key at the end of a path is in a JSON text."""
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
                if len(path) == len(wanted) and tuple(path) == wanted:
                    return before.start()
            case "," if isinstance(path[-1], int):
                path[-1] += 1
        before = token
    return None
