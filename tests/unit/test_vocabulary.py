"""Text to ids and back; characters are never split."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elman_bundle import (
    BundleError,
    ByteVocabulary,
    CharacterVocabulary,
    EncodingError,
    InputVocabulary,
    LabelVocabulary,
    SubwordVocabulary,
    WordVocabulary,
    read_tokens,
    read_vocabulary,
    write_tokens,
    write_vocabulary,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@cache
def subwords() -> SubwordVocabulary:
    return SubwordVocabulary.from_texts(["the quick brown fox, 語 é 🌲 ß\n" * 50], 320)


# One vocabulary of each kind that knows a given text.
KINDS: dict[str, Callable[[str], InputVocabulary]] = {
    "characters": CharacterVocabulary.from_text,
    "bytes": lambda written: ByteVocabulary(),
    "words": lambda written: WordVocabulary.from_texts([written], 1000),
    "subwords": lambda written: subwords(),
}
kinds = st.sampled_from(sorted(KINDS))


@given(kinds, text)
def test_known_text_round_trips(kind: str, written: str) -> None:
    known = written.replace("�", "")
    vocabulary = KINDS[kind](known)
    ids = vocabulary.encode(known)
    assert len(known) <= len(ids) * vocabulary.characters_per_token
    spelled = [vocabulary.token_bytes()[token] for token in ids]
    assert b"".join(result or b"" for result in spelled) == known.encode()
    assert vocabulary.decoder().decode(ids.tolist(), final=True) == known


@given(kinds, text, st.data())
def test_decoding_in_pieces_equals_decoding_at_the_end(kind: str, written: str, data: st.DataObject) -> None:
    vocabulary = KINDS[kind](written)
    chosen = st.lists(st.integers(0, vocabulary.size - 1))  # mostly not valid text
    ids = data.draw(st.just(vocabulary.encode(written).tolist()) | chosen)
    whole = vocabulary.decoder().decode(ids, final=True)
    for cut in range(len(ids) + 1):
        decoder = vocabulary.decoder()
        first = decoder.decode(ids[:cut])
        assert first + decoder.decode(ids[cut:], final=True) == whole
        single = vocabulary.decoder()
        assert "".join(single.decode([token]) for token in ids[:cut]) == first


@given(kinds, text)
def test_single_tokens_are_shown(kind: str, written: str) -> None:
    vocabulary = KINDS[kind](written)
    spelled = vocabulary.token_bytes()
    assert len(spelled) == vocabulary.size
    for token, result in enumerate(spelled):
        assert (result is None) == (token == vocabulary.unknown_id)
        assert vocabulary.token_text(token) == ("�" if result is None else result.decode(errors="replace"))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_vocabulary_on_disk_round_trips(kind: str, tmp_path: Path) -> None:
    vocabulary = KINDS[kind]("the quick\n語 é")
    spec = write_vocabulary(tmp_path, vocabulary)
    again = read_vocabulary(tmp_path, spec)
    assert type(again) is type(vocabulary)
    assert not isinstance(again, LabelVocabulary)
    assert (again.size, again.unknown_id) == (vocabulary.size, vocabulary.unknown_id)
    assert again.token_bytes() == vocabulary.token_bytes()
    assert (tmp_path / spec.file).is_file() or kind == "bytes"


def test_lower_case_is_kept_on_disk(tmp_path: Path) -> None:
    spec = write_vocabulary(tmp_path, WordVocabulary(["�", "the"], unknown_id=0, lower_case=True))
    again = read_vocabulary(tmp_path, spec)
    assert isinstance(again, WordVocabulary)
    assert again.encode("THE").tolist() == [1]


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


def test_invalid_bytes_become_replacement_characters() -> None:
    decoder = ByteVocabulary().decoder()
    assert decoder.decode([0x61, 0xFF, 0x62]) == "a�b"
    assert decoder.decode([0xF0, 0x9F]) == ""
    assert decoder.decode([], final=True) == "�"


@given(st.text("abcdef", min_size=1), text)
def test_characters_outside_the_vocabulary_become_the_unknown_token(known: str, written: str) -> None:
    vocabulary = CharacterVocabulary.from_text(known)
    ids = vocabulary.encode(written)
    for character, token in zip(written, ids, strict=True):
        assert vocabulary.tokens[token] == (character if character in known else "�")


def test_rare_characters_are_excluded() -> None:
    assert CharacterVocabulary.from_text("aaabbc", minimum_count=2).tokens == ("�", "a", "b")


def test_without_an_unknown_token_unknown_text_is_rejected() -> None:
    with pytest.raises(EncodingError, match="'X' is not in the model's vocabulary") as caught:
        CharacterVocabulary("ab").encode("abX")
    assert caught.value.position == 2


@pytest.mark.parametrize(
    ("tokens", "unknown_id", "error_message"),
    [(["a", "bc"], None, "'bc'"), (["a", "a"], None, "'a' is listed twice"), (["a"], 1, "outside 0 to 0")],
)
def test_invalid_tokens_are_rejected(tokens: list[str], unknown_id: int | None, error_message: str) -> None:
    with pytest.raises(ValueError, match=error_message):
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
def test_damaged_token_file_is_reported(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"vocabulary\.json"):
        read_tokens(path)
