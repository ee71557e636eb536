"""Corpora of pairs: texts with what is to be written for them.

The form is recognised by what the corpus holds: a pronouncing dictionary, a folder of sentences in German and English,
or a TSV file of source TAB target. "stories" is made, not read: questions about small worlds, with their answers.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elman_training.config import STORIES
from elman_training.corpus import existing, read_utf8
from elman_training.errors import TrainingError
from elman_training.stories import make_stories

TEST_SHARE = 0.1  # of a corpus that names no test part

Form = Literal["pronunciations", "sentences", "stories", "pairs"]


@dataclass(frozen=True)
class Pair:
    """A source and its targets.

    Attributes:
        source: what is read.
        targets: what may be written for it, each of them right.
        choices: what a reader may choose from, the right one among them; empty where nobody is asked to.
        facts: of a story, how many of its sentences the answer takes.
    """

    source: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    facts: int = 0


@dataclass(frozen=True)
class PairCorpus:
    """Pairs to learn from, to choose the weights by, and to report on.

    Attributes:
        form: which decides what figures are reported.
    """

    form: Form
    training: list[Pair]
    validation: list[Pair]
    test: list[Pair]


def read_pairs(corpus: str, held_out: float, seed: int = 0) -> PairCorpus:
    """Read, or make, a corpus.

    Args:
        corpus: "stories"; a folder that holds cmudict.dict, or such a file; a folder that holds train, val and
            test_2016_flickr, each .de.gz and .en.gz; or a TSV file of source TAB target, where a source may have
            several lines, each a target that is right.
        held_out: the share kept for validation where the corpus says nothing of it.
        seed: of what is made.

    Raises:
        TrainingError: it is none of these.
    """
    if corpus == STORIES:
        return _make_stories(seed)
    path = existing(corpus)
    if path.is_dir():
        if (path / "cmudict.dict").exists():
            return _by_hash("pronunciations", _pronunciations(path / "cmudict.dict"), held_out)
        if (path / "train.de.gz").exists():
            return _sentences(path)
        raise TrainingError(
            f"{path}: holds neither cmudict.dict nor train.de.gz; give a folder that does, or a TSV file of source "
            "TAB target"
        )
    if "\t" in read_utf8(path).partition("\n")[0]:
        return _by_hash("pairs", _rows(path), held_out)
    return _by_hash("pronunciations", _pronunciations(path), held_out)


def _by_hash(form: Form, rows: Iterable[tuple[str, str]], held_out: float) -> PairCorpus:
    """Sources sorted by the SHA-256 of their text, so that nothing about a word decides where it goes: the last tenth
    is for the test, the end of the rest for validation."""
    targets: dict[str, dict[str, None]] = {}
    for source, target in rows:
        targets.setdefault(source, {})[target] = None
    sources = sorted(targets, key=lambda source: hashlib.sha256(source.encode()).digest())
    pairs = [Pair(source, tuple(targets[source])) for source in sources]
    test = max(1, round(len(pairs) * TEST_SHARE))
    validation = max(1, round((len(pairs) - test) * held_out))
    cut = len(pairs) - test - validation
    if cut < 1:
        raise TrainingError(f"{len(pairs)} sources are too few: one is needed to learn from, to validate and to test")
    return PairCorpus(form, pairs[:cut], pairs[cut:-test], pairs[-test:])


_ENTRY = re.compile(r"(?P<word>\S+?)(?:\(\d+\))?\s+(?P<phones>[A-Z]{1,2}[0-2]?(?: [A-Z]{1,2}[0-2]?)*)\s*(?:#.*)?")


def _pronunciations(path: Path) -> Iterator[tuple[str, str]]:
    """A word and its phonemes, a line each, in the form of cmudict: "read(2) R EH1 D # comment", where (2) is another
    pronunciation of the same word. The digits behind vowels, which say how they are stressed, are left out, as is
    usual where graphemes become phonemes (Yao and Zweig 2015)."""
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip() and not line.startswith((";;;", "#")):
            entry = _ENTRY.fullmatch(line)
            if entry is None:
                raise TrainingError(
                    f"{path}:{number}: expected source TAB target on every line, or a word and its phonemes as in "
                    f"cmudict (read(2) R EH1 D), found {line[:60]!r}"
                )
            yield entry["word"], re.sub(r"\d", "", entry["phones"])


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip():
            columns = [column.strip() for column in line.split("\t")]
            if len(columns) != 2 or not all(columns):
                raise TrainingError(f"{path}:{number}: expected source TAB target, found {line[:60]!r}")
            yield columns[0], columns[1]


def _sentences(folder: Path) -> PairCorpus:
    """The parts as the set gives them."""
    parts = [
        [
            Pair(source, (target,))
            for source, target in zip(*_both(folder, part), strict=True)
            if source.strip() and target.strip()
        ]
        for part in ("train", "val", "test_2016_flickr")
    ]
    return PairCorpus("sentences", *parts)


def _both(folder: Path, part: str) -> tuple[list[str], list[str]]:
    german, english = (_unpack(folder / f"{part}.{language}.gz") for language in ("de", "en"))
    if len(german) != len(english):
        raise TrainingError(
            f"{folder}: {part}.de.gz has {len(german)} lines and {part}.en.gz {len(english)}, so they are not the "
            "same sentences"
        )
    return german, english


def _unpack(path: Path) -> list[str]:
    try:
        return [line.strip() for line in gzip.decompress(path.read_bytes()).decode().rstrip("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: byte {error.start} of what is packed is not UTF-8") from error
    except (OSError, EOFError) as error:
        raise TrainingError(f"{path}: cannot be unpacked: {error}") from error


FACTS = (1, 2, 3)
_STORIES = {"training": 30_000, "validation": 300, "test": 1000}  # of each number of facts


def _make_stories(seed: int) -> PairCorpus:
    """As many stories of one fact as of two and of three. None is in two parts."""
    parts: dict[str, list[Pair]] = {}
    for number, (part, count) in enumerate(_STORIES.items()):
        made = [story for facts in FACTS for story in make_stories(count, 3 * seed + number, facts)]
        pairs = [
            Pair(f"{story.passage} {story.question}", (story.answer,), tuple(story.choices), story.facts)
            for story in made
        ]
        known = {pair.source for before in parts.values() for pair in before}
        parts[part] = [pair for pair in pairs if pair.source not in known]
    return PairCorpus("stories", **parts)
