"""A model that likes white space or digits comes to the end of a JSON text all the same: what a schema leaves open is
bounded."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from elman import FinishReason
from elman_server.decoding.constraints import ConstraintKind
from tests.support.bundles import byte_bundle
from tests.support.grammars import JSON_SCHEMA, LARK, Vocabulary, matches
from tests.support.serving import serving

README_EXAMPLE = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
FREE = {"x-guidance": {"whitespace_flexible": True}}
WHITE_SPACE, DIGITS = [b"\n", b"\t", b" ", b"\r"], [b"9", b"0", b"e", b"."]


@pytest.fixture(scope="module", params=["characters", "pieces"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    """No end token, so that only a grammar that allows nothing more ends an output."""
    single = [bytes([code]) for code in [9, 10, 13, *range(32, 127)]]
    pieces = [b"99999", b"00", b"  ", b"\n    ", b"9,", b'"ok"', b"true", b".5"]
    return Vocabulary([*single, *(pieces if request.param == "pieces" else [])], None)


def stubborn(vocabulary: Vocabulary, kind: ConstraintKind, text: str, liked: list[bytes], longest: int) -> str | None:
    """Return what a model writes that chooses what it likes whenever it may; None if it does not come to an end."""
    matcher, output = vocabulary.start(kind, text), b""
    while len(output) <= longest:
        allowed = np.flatnonzero(vocabulary.allowed([matcher])[0])
        assert matcher.error is None
        if matcher.is_exhausted:
            return output.decode()
        spelled = {vocabulary.bytes_of(int(token)): int(token) for token in allowed}
        begun = [part for first in liked for part in spelled if part.startswith(first)]
        chosen = begun[0] if begun else next(iter(spelled))
        matcher.accept(spelled[chosen])
        output += chosen
    return None


@pytest.mark.parametrize("liked", [[space, *WHITE_SPACE] for space in WHITE_SPACE])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (JSON_SCHEMA, json.dumps(README_EXAMPLE)),
        (LARK, f"start: %json {json.dumps(README_EXAMPLE)}"),
    ],
)
def test_white_space_ends(vocabulary: Vocabulary, kind: ConstraintKind, text: str, liked: list[bytes]) -> None:
    output = stubborn(vocabulary, kind, text, liked, longest=80)
    assert output is not None
    assert matches(JSON_SCHEMA, json.dumps(README_EXAMPLE), output)


@pytest.mark.parametrize("flexible", [True, False])
def test_a_schema_chooses_its_white_space(vocabulary: Vocabulary, flexible: bool) -> None:
    text = json.dumps({"x-guidance": {"whitespace_flexible": flexible}, **README_EXAMPLE})
    output = stubborn(vocabulary, JSON_SCHEMA, text, WHITE_SPACE, longest=300)
    assert output == (None if flexible else '{"ok":false}')


def test_an_indented_text_may_be_generated(vocabulary: Vocabulary) -> None:
    value = {"a": [1, {"b": [True, None]}], "c": {}}
    for written in (json.dumps(value), json.dumps(value, indent=2), json.dumps(value, indent="\t")):
        matcher = vocabulary.accept(vocabulary.start(JSON_SCHEMA, '{"type": "object"}'), written)
        assert matcher.is_complete
    crowded = vocabulary.accept(vocabulary.start(JSON_SCHEMA, '{"type": "object"}'), '{  "a"')
    assert crowded.error is not None


NUMBERS: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "number"},
    {"type": "integer", "minimum": 10},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    {"type": ["number", "null"]},
    {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]},
    {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
    {"type": "object", "properties": {"ok": {"type": "integer"}}, "required": ["ok"], "additionalProperties": False},
    {"const": 0.1},
    {},
]


@pytest.mark.parametrize("digit", DIGITS)
@pytest.mark.parametrize("schema", NUMBERS, ids=json.dumps)
def test_numbers_end(vocabulary: Vocabulary, schema: dict[str, Any], digit: bytes) -> None:
    output = stubborn(vocabulary, JSON_SCHEMA, json.dumps(schema), [digit, *DIGITS, b"1"], longest=130)
    assert output is not None
    assert matches(JSON_SCHEMA, json.dumps(schema), output), output


def test_digits_in_strings_and_numbers_that_have_to_be_long_are_not_cut(vocabulary: Vocabulary) -> None:
    digits = "9" * 60
    for schema, output in (
        ({"type": "string"}, f'"{digits}"'),
        ({"type": "string", "pattern": "^[0-9]{60}$"}, f'"{digits}"'),
        ({"type": "string"}, f'"\\"{digits}"'),
        ({"const": 1e-40}, f"0.{'0' * 39}1"),
        ({"type": "number"}, "-2.2250738585072014e-308"),
    ):
        matcher = vocabulary.start(JSON_SCHEMA, json.dumps(schema))
        for character in output:
            token = vocabulary.token_of[character.encode()]
            assert vocabulary.allowed([matcher])[0][token], (output, character)
            matcher.accept(token)
        assert matcher.is_complete
    copied = vocabulary.accept(vocabulary.start(JSON_SCHEMA, '{"type": "number"}'), "9" * 23).copy()
    assert not vocabulary.allowed([vocabulary.accept(copied, "9")]).any()


async def test_every_seed_completes_the_example_of_the_documentation() -> None:
    async with serving(byte_bundle()) as running:
        options = {"json_schema": README_EXAMPLE, "max_tokens": 80}
        streams = [running.client.generate("answer = ", seed=seed, **options) for seed in range(100)]
        for stream, text in zip(streams, await asyncio.gather(*(stream.text() for stream in streams)), strict=True):
            assert stream.finish_reason is FinishReason.CONSTRAINT
            assert matches(JSON_SCHEMA, json.dumps(README_EXAMPLE), text)
