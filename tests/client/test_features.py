"""Features of characters, compared with manual examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elman.character_features import features


def marks(name: str, text: str) -> str:
    """Return a feature as one digit per character."""
    return "".join(str(int(value)) for value in features(text)[name])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("inside quotes", 'a "b" c', "0011000"),
        ("inside quotes", "a 'b' c", "0011000"),
        ("inside quotes", 'x"a\'b"y', "0111100"),
        ("inside quotes", 'x"a\\"b"y', "01111100"),
        ("inside quotes", 'x"a\\\\"y', "0111100"),
        ("inside quotes", "don't 'b'", "000000110"),
        ("inside quotes", '"ab\nc"d"', "11100110"),
        ("inside quotes", '# "a"\n"', "0000001"),
        ("inside a comment", "a # b\nc", "0011100"),
        ("inside a comment", "# b", "111"),
        ("inside a comment", "a#b", "000"),
        ("inside a comment", '"a # b" # c', "00000000111"),
        ("inside a comment", "// b\n a / b // c", "0111000000000111"),
        ("inside a comment", "http://b", "00000000"),
        ("indentation depth", "  a b\n\tc\nd", "1222204400"),
        ("position in line", "ab\n\ncd", "120012"),
        ("after a space", " a  b\nc", "0101100"),
        ("digit", "a1²3٣", "01010"),
    ],
)
def test_features_of_examples(name: str, text: str, expected: str) -> None:
    assert marks(name, text) == expected


@given(st.text(alphabet="ab 1\n\t\"'\\#/"), st.text(alphabet="ab 1\n\t\"'\\#/"))
def test_features_do_not_depend_on_later_characters(text: str, later: str) -> None:
    for name, values in features(text + later).items():
        assert len(values) == len(text + later)
        assert features(text)[name] == values[: len(text)]
