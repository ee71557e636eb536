"""A schema means in the server what it means to the jsonschema library: nothing invalid is generated, nothing valid is
excluded, or the schema is refused by keyword and place."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elman_server.decoding.constraints import ConstraintKind
from elman_server.errors import ConstraintError
from tests.support.amount import examples
from tests.support.grammars import JSON_SCHEMA, LARK, REGEX, Vocabulary

VALIDATOR = jsonschema.Draft202012Validator


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary([bytes([byte]) for byte in range(255)], None)


def is_valid(schema: Any, text: str) -> bool:
    return bool(VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).is_valid(json.loads(text)))


def is_accepted(vocabulary: Vocabulary, kind: ConstraintKind, expression: str, text: str) -> bool:
    return vocabulary.accept(vocabulary.start(kind, expression), text.encode()).is_complete


BOUNDS: list[tuple[dict[str, Any], str]] = [
    ({"minimum": 0.1, "maximum": 0.25}, "0.1 0.2 0.25 0.19 0.3 0.05 0.26 0.251"),
    ({"minimum": -1.253, "maximum": 1.253}, "1.2 1.25 1.253 1.254 1.26 -1.2 -1.25 -1.253 -1.254 1 -1 0 1.1"),
    ({"exclusiveMinimum": 12, "maximum": 12.5}, "12 12.1 12.5 12.51 12.0 11.9"),
    ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, "0 0.0 0.9 0.99 1 1.0 0.00000001"),
    ({"exclusiveMaximum": 0.05}, "0.05 0.049 0 -3 0.1"),
    ({"minimum": -1.5, "maximum": -1, "exclusiveMaximum": True}, "-1 -1.1 -1.5 -1.51 -1.0"),
    ({"allOf": [{"exclusiveMinimum": 12}, {"maximum": 12.5}]}, "12 12.1 12.5 12.6"),
    ({"exclusiveMinimum": True, "anyOf": [{}], "minimum": 3}, "3 3.5 4 2"),
    ({"type": "integer", "exclusiveMinimum": -1, "exclusiveMaximum": 2.5}, "-1 0 1 2 3"),
    ({"allOf": [{"type": "integer"}, {"exclusiveMinimum": -1, "maximum": 1.5}]}, "-1 0 1 2"),
    ({"multipleOf": 0.25}, "0.5 0.25 0.75 1 1.5 0.3 0.2 2.25"),
    ({"multipleOf": 0.125, "minimum": 0}, "0.5 0.125 0.25 0.2"),
]


@pytest.mark.parametrize(("bounds", "texts"), BOUNDS, ids=lambda value: value if isinstance(value, str) else None)
def test_numbers_obey_their_bounds(vocabulary: Vocabulary, bounds: dict[str, Any], texts: str) -> None:
    schema = {"type": "number", **bounds} if "type" not in bounds else bounds
    draft_4 = any(bound is True for bound in bounds.values())
    for text in texts.split():
        judge = jsonschema.Draft4Validator if draft_4 else VALIDATOR
        assert is_accepted(vocabulary, JSON_SCHEMA, json.dumps(schema), text) == judge(schema).is_valid(
            json.loads(text)
        ), text


finite = st.decimals(-20, 20, places=3).map(float) | st.integers(-20, 20)


@given(
    st.dictionaries(st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), finite), st.data()
)
@settings(max_examples=examples(25, everything=300), deadline=None)
def test_bounded_numbers_are_those_that_are_valid(bounds: dict[str, float], data: st.DataObject) -> None:
    schema = {"type": "number", **bounds}
    try:
        matcher = NUMBERS.start(JSON_SCHEMA, json.dumps(schema))
    except ConstraintError:
        around = [bound + step for bound in bounds.values() for step in (-0.001, -0.0005, 0, 0.0005, 0.001)]
        assert not any(is_valid(schema, json.dumps(number)) for number in around)
        return
    near = data.draw(st.sampled_from([*bounds.values(), 0])) + data.draw(st.sampled_from([0, 0.1, -0.1, 0.001, 1, -1]))
    written = f"{Decimal(repr(round(near, 3))):f}"
    text = written.rstrip("0").rstrip(".") if "." in written else written
    assert is_accepted(NUMBERS, JSON_SCHEMA, json.dumps(schema), text) == is_valid(schema, text), text
    output = b""
    while not matcher.is_complete or data.draw(st.booleans()):
        allowed = np.flatnonzero(NUMBERS.allowed([matcher])[0])
        if matcher.is_exhausted:
            break
        token = int(data.draw(st.sampled_from(allowed.tolist())))
        matcher.accept(token)
        output += NUMBERS.bytes_of(token)
    assert is_valid(schema, output.decode()), output


NUMBERS = Vocabulary([character.encode() for character in "0123456789-.eE+"], None)

ARABIC_ONE = "\u0661"
TEXTS = [
    "",
    "a",
    "b",
    "ab",
    "-",
    "--",
    ":]",
    "l]",
    "a]",
    "[",
    "é",
    "1",
    ARABIC_ONE,
    ".",
    "a\nb",
    "a b",
    "{2}",
    "x",
    "B",
    "/",
]
PATTERNS = [
    *("[[:alpha:]]", "^[+--b]$", "^[a&&b]$", "^[a~~]+$", "^[\\w-.]+$", "^a{x}|b$", "^\\d$", "^[^\\W]$", "^.$", "\\/"),
    *("^[\\x61-\\u0062]$", "(?P<stop>a)b", "^(?:ab)+?$", "^[\\]\\[]$", "}", "^\\s$", "^$", "(?i)^AB$", "^a|b$", "[{]2"),
]


@pytest.mark.filterwarnings("ignore:Possible")  # Python's warnings of its own future
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_they_mean_in_ecma_262(vocabulary: Vocabulary, pattern: str) -> None:
    unlike_python = "[\\w-." in pattern  # which refuses it
    schema = {"type": "string", "pattern": pattern.replace("\\w-.", "\\w\\-.") if unlike_python else pattern}
    for text in TEXTS:
        if text in ("é", ARABIC_ONE) and "\\" in pattern:  # a letter and a digit in Python, not in ECMA-262
            continue
        written = json.dumps(text, ensure_ascii=False)
        expression = json.dumps({"type": "string", "pattern": pattern})
        assert is_accepted(vocabulary, JSON_SCHEMA, expression, written) == is_valid(schema, written), text


OBJECTS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"properties": {"ab": {"type": "integer"}}},
        ['{"ab":1}', '{"ab":"x"}', '{"ab":1,"a\\u0062":"x"}', '{"a\\u0062":"x"}', '{"b":"x"}', '{"ab":1,"b":"x"}'],
    ),
    (
        {"patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
        ['{"ab":1}', '{"ab":"x"}', '{"\\u0061b":"x"}', '{"b":"x"}', '{"b":1}'],
    ),
    ({"properties": {"a\nb": {"type": "null"}}}, ['{"a\\nb":null}', '{"a\\u000Ab":1}', '{"a\\u000ab":1}', '{"a":1}']),
    ({"properties": {"\u0001": {"type": "null"}}}, ['{"\\u0001":null}', '{"\\u0001":1}']),
    (
        {"additionalProperties": False, "anyOf": [{}], "patternProperties": {"^x": {"type": "null"}}},
        ['{"x":null}', '{"x":1}', '{"y":null}', "{}"],
    ),
    (
        {"properties": {"a": True}, "additionalProperties": False},
        ['{"a":"\\u001b"}', '{"a":"\\u0000"}', '{"a":1}', '{"b":1}'],
    ),
]


@pytest.mark.parametrize(("schema", "texts"), OBJECTS)
def test_a_name_has_one_spelling(vocabulary: Vocabulary, schema: dict[str, Any], texts: list[str]) -> None:
    schema = {"type": "object", **schema}
    for text in texts:
        duplicated = '"ab":1,"a\\u0062"' in text  # The library sees the last one only.
        valid = is_valid(schema, text) and not duplicated
        assert is_accepted(vocabulary, JSON_SCHEMA, json.dumps(schema), text) == valid, text


def test_arrays_keep_their_items_around_other_keywords(vocabulary: Vocabulary) -> None:
    schema = {"type": "array", "items": [{"type": "null"}], "allOf": [{}], "additionalItems": False}
    for text in ("[null]", "[null,1]", "[1]", "[]"):
        valid = jsonschema.Draft7Validator(schema).is_valid(json.loads(text))
        assert is_accepted(vocabulary, JSON_SCHEMA, json.dumps(schema), text) == valid, text


DATES = ["2024-02-29", "2023-02-29", "2000-02-29", "1900-02-29", "2023-04-31", "2023-12-31", "0000-01-01", "2023-02-30"]


@pytest.mark.parametrize("date", DATES)
def test_dates_exist(vocabulary: Vocabulary, date: str) -> None:
    schema = {"type": "string", "format": "date"}
    valid = is_valid(schema, f'"{date}"')
    assert is_accepted(vocabulary, JSON_SCHEMA, json.dumps(schema), f'"{date}"') == valid
    for time, exists in (("10:00:00Z", True), ("23:59:60Z", True), ("10:00:60Z", False), ("10:00:00.5+01:00", True)):
        moment = json.dumps({"type": "string", "format": "date-time"})
        assert is_accepted(vocabulary, JSON_SCHEMA, moment, f'"{date}T{time}"') == (valid and exists)


REFUSED: list[tuple[str, str, int]] = [
    ('{"const": 9007199254740993}', "'const' holds a number beyond 2\\*\\*53.*: /const", 1),
    ('{"items": {"enum": [1, {"a": [-9007199254740993]}]}}', "'enum' holds a number beyond.*: /items/enum", 11),
    ('{"const": 1e300}', "'const' holds a number beyond", 1),
    ('{"const": 0.9999999999999999}', "'const' holds more digits than are read exactly", 1),
    ('{"type": "integer", "maximum": 9007199254740993}', "'maximum' is 0, or lies between .*: /maximum", 20),
    ('{"type": "integer", "exclusiveMinimum": -9007199254740992}', "'exclusiveMinimum' is 0, or lies", 20),
    ('{"type": "number", "minimum": 1e-200}', "'minimum' is 0, or lies", 19),
    ('{"maximum": 0.99999999999999999e-5}', "'maximum' has more digits", 1),
    ('{"multipleOf": 0.000000001}', "'multipleOf' is above 0 and at most", 1),
    ('{"multipleOf": 0.57}', "'multipleOf' is above 0 and at most", 1),
    ('{"multipleOf": 4294967295}', "'multipleOf' is above 0 and at most", 1),
    ('{"multipleOf": 0}', "'multipleOf' is above 0 and at most", 1),
    ('{"allOf": [{"multipleOf": 99999}, {"multipleOf": 100000}]}', "several 'multipleOf' are too large together", 12),
    ('{"pattern": "[a--b]"}', "in a pattern: a range of a class runs backwards: a--: /pattern", 1),
    ('{"pattern": "[]a]"}', "in a pattern: a class that begins with ']'", 1),
    ('{"pattern": "a{,3}"}', "in a pattern: {,n} is a text in ECMA-262", 1),
    ('{"pattern": "a++"}', "in a pattern: two quantifiers", 1),
    ('{"pattern": "\\\\Aa"}', "in a pattern: the escape", 1),
    ('{"patternProperties": {"^a": {}, "[b--c]": {}}}', "in a pattern: a range.*: /patternProperties/\\[b--c\\]", 33),
    ('{"items": {"prefixItems": [{}], "additionalItems": false}}', "'additionalItems' belongs to 'items'", 32),
    ('{"items": [{}], "prefixItems": [{}]}', "'prefixItems' does not go with 'items'", 16),
    ('{"$ref": "#/x-own", "x-own": {"maxLenght": 3}}', "'\\$ref' leads to no schema", 1),
    ('{"properties": {"a": {"const": "\\u0001"}}}', "'const' holds a control character", 22),
]


@pytest.mark.parametrize(("text", "problem", "position"), REFUSED)
def test_what_is_not_exact_is_refused_by_keyword_and_place(
    vocabulary: Vocabulary, text: str, problem: str, position: int
) -> None:
    with pytest.raises(ConstraintError, match=problem) as caught:
        vocabulary.start(JSON_SCHEMA, text)
    assert caught.value.position == position
    start = "start: "
    with pytest.raises(ConstraintError, match=problem) as caught:
        vocabulary.start(LARK, f"{start}%json {text}")
    assert caught.value.position == position + len(f"{start}%json ")


def test_schemas_in_grammars_mean_the_same_and_leave_the_places_of_errors(vocabulary: Vocabulary) -> None:
    schema = json.dumps({"type": "number", "minimum": 0.1, "maximum": 0.25})
    assert is_accepted(vocabulary, LARK, f'start: "<" %json {schema} ">"', "<0.2>")
    assert is_accepted(vocabulary, LARK, 'start: "<" %json {"pattern": "^[[:a]$", "type": "string"} ">"', '<"[">')
    grammar = f'start: "<" %json {schema}\n  | "é" %json {schema}\n  | "x" )'
    with pytest.raises(ConstraintError, match="expecting rule") as caught:
        vocabulary.start(LARK, grammar)
    assert caught.value.position == grammar.index(")")


@pytest.mark.parametrize(
    ("kind", "text"), [(REGEX, "ab(?P<stop>c)"), (REGEX, "a(?<stop>b)"), (LARK, "start: A\nA: /a(?P<stop>b)/")]
)
def test_a_group_does_not_change_its_meaning_by_its_name(
    vocabulary: Vocabulary, kind: ConstraintKind, text: str
) -> None:
    with pytest.raises(ConstraintError, match="a group must not be named 'stop'") as caught:
        vocabulary.start(kind, text)
    assert caught.value.position is not None
    assert text[caught.value.position :].startswith(("(?P<stop>", "(?<stop>"))
    escaped = text.replace("(", "\\(").replace(")", "\\)") if kind is REGEX else 'start: "(?P<stop>b)"'
    vocabulary.start(kind, escaped.replace("?", "\\?") if kind is REGEX else escaped)
