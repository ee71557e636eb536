"""Stop sequences: however a text is cut into pieces, it ends at the same place, and no part of one is emitted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elman_bundle import ByteVocabulary
from elman_server.decoding.stopping import StopCheck, StopScanner

texts = st.text("ab", max_size=40)
sequences = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def first_stop(text: str, sought: list[str]) -> tuple[int, str] | None:
    """Return the start of the first stop sequence to be complete, and the sequence, by checking every prefix of the
    text."""
    for end in range(1, len(text) + 1):
        complete = [sequence for sequence in sought if text[:end].endswith(sequence)]
        if complete:
            longest = max(complete, key=len)
            return end - len(longest), longest
    return None


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted(place % (len(text) + 1) for place in places)
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


@given(texts, sequences, st.lists(st.integers(0, 1000), max_size=10))
def test_a_text_ends_before_its_first_stop_sequence_however_it_is_cut(
    text: str, sought: list[str], places: list[int]
) -> None:
    scanner = StopScanner(sought)
    emitted = "".join([scanner.push(piece) for piece in cut(text, places)])
    emitted += scanner.push("", final=True)
    stop = first_stop(text, sought)
    assert (scanner.found is None) == (stop is None)
    if stop is None:
        assert emitted == text
    else:
        assert (emitted, scanner.found) == (text[: stop[0]], stop[1])


@given(texts, sequences)
def test_only_the_beginning_of_a_stop_sequence_is_held_back(text: str, sought: list[str]) -> None:
    scanner, emitted = StopScanner(sought), ""
    for number, character in enumerate(text, 1):
        emitted += scanner.push(character)
        if scanner.found is not None:
            return
        held = text[len(emitted) : number]
        assert not held or any(sequence.startswith(held) for sequence in sought)


@given(
    st.text("ab\n\u00e9\u20ac", max_size=30),
    st.lists(st.text("ab\n\u00e9\u20ac", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(0, 1000), max_size=5),
)
def test_a_check_counts_the_tokens_up_to_the_end_of_a_stop_sequence(
    text: str, sought: list[str], places: list[int]
) -> None:
    """With a vocabulary of bytes, where several tokens are one character."""
    vocabulary = ByteVocabulary()
    check = StopCheck(sought, vocabulary.decoder())
    tokens = vocabulary.encode(text).tolist()
    ends = sorted(place % (len(tokens) + 1) for place in places)
    count = None
    for start, end in zip([0, *ends], [*ends, len(tokens)], strict=True):
        count = check.feed(tokens[start:end])
        if count is not None:
            count += start
            break
    stop = first_stop(text, sought)
    if stop is None:
        assert count is None
    else:
        assert count == len((text[: stop[0]] + stop[1]).encode())


def test_nothing_is_emitted_after_a_stop_sequence() -> None:
    scanner = StopScanner(["\n\n"])
    assert scanner.push("one\n") == "one"
    assert scanner.push("\ntwo") == ""
    assert scanner.push("three", final=True) == ""
    assert scanner.found == "\n\n"
