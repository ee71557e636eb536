"""Text to ids and back; no character is ever cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle import (
    BundleError,
    ByteVocabulary,
    CharacterVocabulary,
    EncodingError,
    LabelVocabulary,
    read_tokens,
    write_tokens,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(text)
def test_characters_round_trip(written: str) -> None:
    vocabulary = CharacterVocabulary.from_text(written)
    known = written.replace("�", "")
    ids = vocabulary.encode(known)
    assert len(ids) == len(known)
    assert vocabulary.decoder().decode(ids.tolist(), final=True) == known


@given(text)
def test_bytes_round_trip(written: str) -> None:
    vocabulary = ByteVocabulary()
    assert vocabulary.decoder().decode(vocabulary.encode(written).tolist(), final=True) == written


@given(text, st.data())
def test_bytes_cut_anywhere_never_cut_a_character(written: str, data: st.DataObject) -> None:
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode(written).tolist()
    decoder = vocabulary.decoder()
    shown = ""
    while ids:
        length = data.draw(st.integers(1, len(ids)))
        shown += decoder.decode(ids[:length])
        ids = ids[length:]
        assert written.startswith(shown)
    assert shown + decoder.decode([], final=True) == written


def test_multi_byte_text_split_at_every_byte() -> None:
    written = "aé語🌲"
    ids = ByteVocabulary().encode(written).tolist()
    for place in range(len(ids) + 1):
        decoder = ByteVocabulary().decoder()
        first, second = decoder.decode(ids[:place]), decoder.decode(ids[place:], final=True)
        assert first + second == written
        assert "�" not in first


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    decoder = ByteVocabulary().decoder()
    assert decoder.decode([0x61, 0xFF, 0x62]) == "a�b"
    assert decoder.decode([0xF0, 0x9F]) == ""
    assert decoder.decode([], final=True) == "�"


@given(st.text("abcdef", min_size=1), text)
def test_characters_outside_become_the_unknown_token(known: str, written: str) -> None:
    vocabulary = CharacterVocabulary.from_text(known)
    ids = vocabulary.encode(written)
    for character, token in zip(written, ids, strict=True):
        assert vocabulary.tokens[token] == (character if character in known else "�")


def test_rare_characters_are_left_out() -> None:
    assert CharacterVocabulary.from_text("aaabbc", minimum_count=2).tokens == ("�", "a", "b")


def test_without_an_unknown_token_such_text_is_refused() -> None:
    with pytest.raises(EncodingError, match="'X' is not in the model's vocabulary") as caught:
        CharacterVocabulary("ab").encode("abX")
    assert caught.value.position == 2


@pytest.mark.parametrize(
    ("tokens", "unknown_id", "complaint"),
    [(["a", "bc"], None, "'bc'"), (["a", "a"], None, "'a' is listed twice"), (["a"], 1, "outside 0 to 0")],
)
def test_tokens_that_make_no_vocabulary(tokens: list[str], unknown_id: int | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CharacterVocabulary(tokens, unknown_id)


def test_labels_are_distinct() -> None:
    with pytest.raises(ValueError, match="'x' is listed twice"):
        LabelVocabulary(["x", "y", "x"])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_tokens_on_disk_round_trip(tokens: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_tokens(Path(folder) / "tokens.json", tokens)
        assert read_tokens(Path(folder) / "tokens.json") == tokens


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tokens": 3}', '{"tokens": ["a", 3]}'])
def test_damaged_token_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"vocabulary\.json"):
        read_tokens(path)
