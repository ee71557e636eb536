"""Labels as people write them: white space around them means nothing, and two that differ by less than a letter are
most probably meant to be one."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from elman_training.corpus_files import Note
from elman_training.training_error import TrainingError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
_QUOTES = "\"'`"
_SHOWN = 30  # classes, at most
_PARTS = frozenset({"train", "training", "dev", "val", "valid", "validation", "eval", "test", "testing"})


def clean_label(text: str) -> str:
    """A label without white space and invisible characters around it."""
    while text and (text[0].isspace() or _is_invisible(text[0])):
        text = text[1:]
    while text and (text[-1].isspace() or _is_invisible(text[-1])):
        text = text[:-1]
    return text


def check_labels(corpus: str, counts: Mapping[str, int], note: Note) -> None:
    """Check that no two labels are most probably one, and report the classes.

    Args:
        corpus: the corpus, for error messages.
        counts: how often each label occurs.
        note: called with each note.

    Raises:
        TrainingError: two labels are the same number, or the same but for white space, quotes or the form of their
            characters; or they name the parts of a corpus.
    """
    if {label.casefold() for label in counts} <= _PARTS:
        raise TrainingError(
            f"{corpus}: got the classes {_listed(counts)}, which are the parts of a corpus; a folder of classes has "
            "one CLASS.txt for each class"
        )
    for same in _groups(counts, _written):
        raise TrainingError(
            f"{corpus}: got the labels {_with_counts(counts, same)}; they are most probably one class. Write it in one "
            "way"
        )
    note(f"{len(counts)} classes: {_with_counts(counts, list(counts)[:_SHOWN])}{_rest(counts)}")
    for same in _groups(counts, lambda label: _written(label).casefold()):
        note(f"classes that differ in upper and lower case alone: {_listed(same)}")
    single = [label for label, count in counts.items() if count == 1]
    if single:
        note(f"classes that occur once: {_listed(single[:_SHOWN])}")


def _groups(labels: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    """The labels that have the same key, where these are several."""
    found: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        found[key(label)].append(label)
    return [same for same in found.values() if len(same) > 1]


def _written(label: str) -> str:
    """What is the same for labels that differ only in how they were written."""
    plain = "".join(character for character in label if not _is_invisible(character))
    plain = " ".join(unicodedata.normalize("NFKC", plain).split()).strip(_QUOTES).strip()
    return repr(float(plain)) if _NUMBER.fullmatch(plain.lower()) else plain


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf"


def _listed(labels: Iterable[str]) -> str:
    return ", ".join(repr(label) for label in labels)


def _with_counts(counts: Mapping[str, int], labels: Iterable[str]) -> str:
    return ", ".join(f"{label!r} {counts[label]}" for label in labels)


def _rest(counts: Mapping[str, int]) -> str:
    return f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
