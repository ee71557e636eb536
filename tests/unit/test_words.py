"""Words: splitting of text, unknown words, and positions in error messages."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from elman_bundle import EncodingError, WordVocabulary
from elman_bundle.word_vocabulary import _pieces

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def test_text_is_split_into_words_with_leading_spaces() -> None:
    assert [*_pieces("x = f(12)\n    y, é語", False)] == [
        "x",
        " =",
        " f",
        "(",
        "1",
        "2",
        ")",
        "\n    ",
        "y",
        ",",
        " é語",
    ]
    assert [*_pieces("def __init__(...):  ##", False)] == ["def", " __", "init", "__", "(", "...", ")", ":", "  ", "##"]
    assert [*_pieces("it's  snake_case", False)] == ["it", "'", "s", "  ", "snake", "_", "case"]
    assert [*_pieces("a" * 70 + " " + "b" * 40, False)] == ["a" * 31, "a" * 31, "a" * 8, " " + "b" * 31, "b" * 9]
    assert [*_pieces("-" * 40, False)] == ["-" * 31, "-" * 9]


@given(text | st.text("ab _1.\n", max_size=200))
@example("a" * 100 + " " * 100)
def test_pieces_concatenate_to_the_text_and_have_bounded_length(written: str) -> None:
    pieces = [*_pieces(written, False)]
    assert "".join(pieces) == written
    assert all(0 < len(piece) <= WordVocabulary.characters_per_token for piece in pieces)


@given(text)
@example("İstanbul ΟΔΟΣ STRASSE ẞ")
def test_lower_case_keeps_every_position(written: str) -> None:
    lowered = "".join(_pieces(written, True))
    assert len(lowered) == len(written)
    assert lowered == written.replace("İ", "i").lower()


def test_most_frequent_words_are_known_and_others_unknown() -> None:
    vocabulary = WordVocabulary.from_texts(["the cat the dog", "the cat", "the end the"], 5)
    assert vocabulary.tokens == ("�", "the", " cat", " the", " dog")  # words that occur once are in alphabetical order
    assert vocabulary.encode("the cat and the").tolist() == [1, 2, 0, 3]
    assert vocabulary.decoder().decode([1, 2, 0, 3]) == "the cat� the"
    assert vocabulary.token_bytes() == [None, b"the", b" cat", b" the", b" dog"]
    assert vocabulary.token_text(0) == "�"


def test_longest_words() -> None:
    longest = ["a" * 31, " " + "b" * 31, " " * 32, " 1"]
    assert WordVocabulary(longest).encode(longest[0] + longest[1]).tolist() == [0, 1]


def test_text_of_the_unknown_token_is_unknown() -> None:
    vocabulary = WordVocabulary(["b", "a"], unknown_id=0)
    assert vocabulary.encode("b").tolist() == vocabulary.encode("c").tolist() == [0]
    assert vocabulary.decoder().decode([0, 1]) == "ba"
    assert vocabulary.token_bytes() == [None, b"a"]


def test_rare_words_are_excluded() -> None:
    assert WordVocabulary.from_texts(["a a a b b c"], 10, minimum_count=2).tokens == ("�", " a", " b")


def test_words_do_not_span_texts() -> None:
    assert set(WordVocabulary.from_texts(["ab", "cd"], 10).tokens) == {"�", "ab", "cd"}


def test_case_is_kept_unless_lower_case_is_set() -> None:
    assert set(WordVocabulary.from_texts(["The the"], 10).tokens) == {"�", "The", " the"}
    lowered = WordVocabulary.from_texts(["The the THE"], 10, lower_case=True)
    assert lowered.tokens == ("�", " the", "the")
    assert lowered.decoder().decode(lowered.encode("THE The").tolist()) == "the the"


@pytest.mark.parametrize(
    ("written", "position", "word"),
    [
        ("the cat", 4, "cat"),
        ("cat", 0, "cat"),
        ("the\n\nthe", 3, r"\\n\\n"),
        ("the the?", 7, r"\?"),
        ("the İX the", 4, "İX"),
    ],
)
def test_without_an_unknown_token_an_unknown_word_is_rejected_with_its_position(
    written: str, position: int, word: str
) -> None:
    for lower_case in (False, True):
        with pytest.raises(EncodingError, match=f"the word '{word}' is not in the model's vocabulary") as caught:
            WordVocabulary(["the", " the"], lower_case=lower_case).encode(written)
        assert caught.value.position == position


@pytest.mark.parametrize(
    ("tokens", "unknown_id", "error_message"),
    [
        (["two words"], None, "'two words'"),
        ([""], None, "got the token ''"),
        (["a" * 33], None, "at most 32 characters"),
        (["a" * 32], None, "of at most 31 characters"),
        (["12"], None, "one digit"),
        (["()"], None, "a run of one other character"),
        (["a", "a"], None, "the word 'a' is listed twice"),
        (["a"], 1, "outside 0 to 0"),
    ],
)
def test_invalid_tokens_are_rejected(tokens: list[str], unknown_id: int | None, error_message: str) -> None:
    with pytest.raises(ValueError, match=error_message):
        WordVocabulary(tokens, unknown_id)
