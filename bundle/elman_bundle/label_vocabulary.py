"""Labels: the names of classes."""

from __future__ import annotations

from collections.abc import Iterable

from elman_bundle.vocabulary import TextVocabulary, check_tokens


class LabelVocabulary:
    """The names of classes.

    Args:
        labels: the names in the order of their ids.

    Raises:
        ValueError: a name is listed twice.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.tokens = tuple(labels)
        check_tokens(self.tokens, "label")

    @property
    def size(self) -> int:
        return len(self.tokens)


Vocabulary = TextVocabulary | LabelVocabulary
