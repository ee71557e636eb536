"""Subwords: every text is known and round-trips, and files that would change text are rejected."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elman_bundle import BundleError, EncodingError, SubwordVocabulary

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 40, "語の🌲 und Straße, été\n" * 40]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@cache
def trained(size: int = 310) -> SubwordVocabulary:
    return SubwordVocabulary.from_texts(TEXTS, size)


@cache
def content() -> str:
    return json.dumps(settings_of(trained()))


def settings_of(vocabulary: SubwordVocabulary) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(vocabulary._content)
    return settings


@given(text)
def test_any_text_round_trips(written: str) -> None:
    vocabulary = trained()
    ids = vocabulary.encode(written).tolist()
    assert vocabulary.decoder().decode(ids, final=True) == written
    assert b"".join(vocabulary.token_bytes()[token] or b"" for token in ids) == written.encode()


def test_common_text_needs_few_tokens() -> None:
    vocabulary = trained()
    assert vocabulary.size == 310
    assert len(vocabulary.encode("the quick brown fox")) == 4
    assert vocabulary.token_text(vocabulary.encode(" quick").tolist()[0]) == " quick"


def test_training_a_vocabulary_is_deterministic() -> None:
    assert SubwordVocabulary.from_texts(TEXTS, 310)._content == trained()._content
    assert SubwordVocabulary.from_texts(TEXTS[:1], 310)._content != trained()._content


def test_small_texts_give_smaller_vocabularies() -> None:
    assert SubwordVocabulary.from_texts(["abc"], 4096).size == 258  # the bytes, "ab" and "abc"


def test_every_byte_is_shown_and_partial_characters_are_marked() -> None:
    vocabulary = SubwordVocabulary.from_texts([""], 256)
    spelled = vocabulary.token_bytes()
    assert sorted(result for result in spelled if result) == [bytes([byte]) for byte in range(256)]
    for token, result in enumerate(spelled):
        assert result is not None
        assert vocabulary.token_text(token) == ("�" if result[0] > 127 else result.decode())


def test_character_counts_of_tokens() -> None:
    assert SubwordVocabulary.from_texts([""], 256).characters_per_token == 1
    assert SubwordVocabulary.from_texts([" " * 1000], 310).characters_per_token >= 8
    joined = SubwordVocabulary.from_texts(["語" * 1000], 310)
    longest = max(len(spelled) for spelled in joined.token_bytes() if spelled)
    assert 3 * joined.characters_per_token >= longest


@given(st.sampled_from(["the quick ", "語", "été ", " ", "\n", "x"]), st.integers(1, 310))
def test_token_count_has_the_lower_bound_of_the_length(piece: str, count: int) -> None:
    vocabulary = trained()
    assert len(piece) * count <= len(vocabulary.encode(piece * count)) * vocabulary.characters_per_token


def test_lone_surrogate_is_rejected_with_its_position() -> None:
    with pytest.raises(EncodingError, match=r"'\\ud800' is half of a surrogate pair") as caught:
        trained().encode("語a\ud800b")
    assert caught.value.position == 2


def test_long_text_is_encoded_like_short_text() -> None:
    vocabulary, line = trained(), "the lazy dog, 語\n"
    assert vocabulary.encode(line * 200).tolist() == vocabulary.encode(line).tolist() * 200


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    encoding = threading.Thread(target=trained().encode, args=(TEXTS[0] * 250,))
    encoding.start()
    turns = 0
    while encoding.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 5


def test_tokenizer_file_round_trips(tmp_path: Path) -> None:
    trained().write(tmp_path / "tokenizer.json")
    again = SubwordVocabulary.read(tmp_path / "tokenizer.json")
    assert again.tokens == trained().tokens
    assert again.encode(TEXTS[1]).tolist() == trained().encode(TEXTS[1]).tolist()


Change = Callable[[dict[str, Any]], object]


def changed(change: Change) -> str:
    settings = json.loads(content())
    change(settings)
    return json.dumps(settings)


def add(settings: dict[str, Any], **options: object) -> None:
    """Append a token."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    settings["added_tokens"].append({"id": trained().size, "content": "<end>", **plain, **options})


def test_special_token_is_never_text() -> None:
    vocabulary = SubwordVocabulary(changed(lambda settings: add(settings, special=True)))
    token = vocabulary.size - 1
    assert vocabulary.token_bytes()[token] is None
    assert vocabulary.token_text(token) == "<end>"
    assert token not in vocabulary.encode("<end>")
    written = vocabulary.encode("a<end>b").tolist()
    assert vocabulary.decoder().decode([*written, token], final=True) == "a<end>b"


def test_added_token_that_is_not_special_is_text() -> None:
    vocabulary = SubwordVocabulary(changed(add))
    written = vocabulary.encode("a<end>é").tolist()
    assert vocabulary.size - 1 in written
    assert vocabulary.decoder().decode(written, final=True) == "a<end>é"


def test_truncation_settings_of_a_file_are_ignored() -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    vocabulary = SubwordVocabulary(changed(lambda settings: settings.update(truncation=truncation)))
    assert vocabulary.decoder().decode(vocabulary.encode("abcdef").tolist()) == "abcdef"


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Removed", "invert": False}


def sequence(*parts: dict[str, Any]) -> Change:
    return lambda settings: settings.update(pre_tokenizer={"type": "Sequence", "pretokenizers": list(parts)})


def test_third_party_files_are_accepted_if_text_round_trips() -> None:
    kept = {**_SPLIT, "behavior": "Isolated"}
    vocabulary = SubwordVocabulary(changed(sequence(kept, _DIGITS, _BYTE_LEVEL)))
    assert vocabulary.decoder().decode(vocabulary.encode("a  12 語").tolist()) == "a  12 語"


_REFUSED: dict[str, tuple[Change, str]] = {
    "another model": (
        lambda s: s["model"].update(type="WordPiece"),
        "its model is WordPiece. Subwords need byte-level BPE",
    ),
    "dropout": (lambda s: s["model"].update(dropout=0.1), "its model has the dropout 0.1"),
    "prefix": (lambda s: s["model"].update(continuing_subword_prefix="##"), "continuing_subword_prefix '##'"),
    "normalizer": (lambda s: s.update(normalizer={"type": "Lowercase"}), "it has the normalizer Lowercase"),
    "no bytes": (lambda s: s.update(pre_tokenizer=None), "its pre_tokenizer has no part ByteLevel"),
    "bytes twice": (sequence(_BYTE_LEVEL, _BYTE_LEVEL), "has the part ByteLevel more than once"),
    "special text": (
        lambda s: add(s, content="the", id=s["model"]["vocab"]["the"], special=True),
        "it changes text: 'the' becomes ''",
    ),
    "special word": (
        lambda s: add(s, content="\u0120quick", id=s["model"]["vocab"]["\u0120quick"], special=True),
        "it changes text: ' quick' becomes ''",
    ),
    "added word": (
        lambda s: add(s, content="\u0120quick", id=s["model"]["vocab"]["\u0120quick"]),
        "it changes text: ' quick' becomes '\u0120quick'",
    ),
    "a space": (lambda s: s["pre_tokenizer"].update(add_prefix_space=True), "which puts a space before text"),
    "the usual space": (lambda s: s["pre_tokenizer"].pop("add_prefix_space"), "which puts a space before text"),
    "removed": (sequence(_SPLIT, _BYTE_LEVEL), "has a Split that removes text"),
    "unknown part": (sequence({"type": "Whitespace"}, _BYTE_LEVEL), "has the part Whitespace"),
    "spelling": (lambda s: s["model"]["vocab"].update({"語": trained().size}), "its token '語' holds '語'"),
    "gap": (lambda s: s["model"]["vocab"].update({"zzz": 2000}), "but none of the id 310"),
    "byte": (lambda s: s["model"]["vocab"].update({"zzz": s["model"]["vocab"].pop("!")}), "no token for the byte 33"),
    "added": (lambda s: add(s, lstrip=True), "its added token '<end>' removes the space next to it"),
    "no merge": (lambda s: s["model"].update(merges=[["q", "nowhere"]]), "the package tokenizers cannot read it"),
    "no file": (lambda s: s.clear(), "it is no file of the package tokenizers"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_unsuitable_tokenizer_file_is_reported(tmp_path: Path, name: str) -> None:
    change, error_message = _REFUSED[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(changed(change), encoding="utf-8")
    with pytest.raises(BundleError, match=error_message) as caught:
        SubwordVocabulary.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b'"text"'])
def test_damaged_file_is_reported(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(damage)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        SubwordVocabulary.read(path)
    with pytest.raises(BundleError, match=r"nowhere\.json: .*No such file"):
        SubwordVocabulary.read(tmp_path / "nowhere.json")
