"""Headings of columns in the first line of a file, which are no example."""

from __future__ import annotations

from collections.abc import Container, Sequence

_OF_LABELS = {
    "label", "labels", "class", "classes", "target", "targets", "category", "categories", "tag", "tags",
    "sentiment", "polarity", "type", "kind", "species", "topic", "intent", "language", "lang", "country",
    "nationality", "gender", "genre", "rating", "score", "stars", "answer", "output", "result", "y",
}  # fmt: skip
_OF_TEXTS = {
    "text", "texts", "sentence", "sentences", "review", "reviews", "phrase", "document", "comment", "tweet",
    "question", "title", "headline", "name", "names", "message", "sms", "input", "word", "words", "token", "tokens",
    "piece", "utterance", "content", "body", "source", "query", "example", "sequence",
}  # fmt: skip
_OF_SOURCES = _OF_TEXTS | {
    "src", "grapheme", "graphemes", "prompt", "english", "german", "french", "spanish",
}  # fmt: skip
_OF_TARGETS = _OF_LABELS | {
    "tgt", "trg", "translation", "translations", "phoneme", "phonemes", "pronunciation", "response", "summary",
    "english", "german", "french", "spanish",
}  # fmt: skip


def names_text_and_label(text: str, label: str, others: Container[str]) -> bool:
    """Whether a first line names its columns.

    Args:
        text: its first column.
        label: its last column.
        others: the labels of the other lines. A label that occurs again is one.
    """
    named = _plain(label) in _OF_LABELS or _plain(text) in _OF_TEXTS
    return named and label not in others


def names_source_and_target(source: str, target: str) -> bool:
    """Whether a first line names its columns: a source and a target."""
    return source != target and _plain(source) in _OF_SOURCES and _plain(target) in _OF_TARGETS


def names_numbers_and_label(cells: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether a first line names its columns, of which all but the last hold numbers.

    Columns may be named by their numbers, as by pandas: 0, 1, 2, label.

    Args:
        cells: the first line.
        labels: the labels of the other lines. A label that occurs again is one.
    """
    *names, label = cells
    if label in labels:
        return False
    if _plain(label) in _OF_LABELS or not any(map(_is_number, names)):
        return True
    counted = [int(name) for name in names if name.isdecimal()]
    if len(counted) < len(names) or counted != list(range(counted[0], counted[0] + len(counted))):
        return False
    # Numbers from 0 on are names. From another one on, they are unless every label occurs once, as theirs does.
    return counted[0] == 0 or len(set(labels)) < len(labels)


def _plain(name: str) -> str:
    return name.strip().strip("\"'").lower()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
