"""Corpora of pairs: sources with the targets to be written for them.

The form is recognised by the contents: a pronouncing dictionary, a folder of sentences in German and English, or a TSV
file of source TAB target. "stories" is generated, not read: questions about small worlds, with their answers.
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
from elman_training.corpus_files import Note, existing, no_note, read_utf8
from elman_training.encoder_decoder.stories import make_stories
from elman_training.headings import names_source_and_target
from elman_training.training_error import TrainingError

TEST_SHARE = 0.1  # of a corpus without a test part

Form = Literal["pronunciations", "sentences", "stories", "pairs"]


@dataclass(frozen=True)
class Pair:
    """A source and its targets.

    Attributes:
        source: the text to read.
        targets: the correct texts to write for it.
        choices: the answers to choose from, with the correct one; empty if there is no choice.
        facts: of a story, the number of its sentences that are needed for the answer; 0 for other pairs.
    """

    source: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    facts: int = 0


@dataclass(frozen=True)
class PairCorpus:
    """Pairs in three parts.

    Attributes:
        form: decides which metrics are reported.
        training: the pairs to learn from.
        validation: the pairs that decide which weights are kept.
        test: the pairs on which the kept weights are measured.
    """

    form: Form
    training: list[Pair]
    validation: list[Pair]
    test: list[Pair]


def read_pairs(corpus: str, held_out: float, seed: int = 0, note: Note = no_note) -> PairCorpus:
    """Read or generate a corpus.

    Args:
        corpus: "stories"; a folder that holds cmudict.dict, or such a file; a folder that holds train, val and
            test_2016_flickr, each as .de.gz and .en.gz; or a TSV file of source TAB target, with or without a line of
            headings, where a source may have several lines, each with a correct target.
        held_out: the share kept for validation if the corpus has no validation part.
        seed: of a generated corpus.
        note: called with what was left out.

    Raises:
        TrainingError: the corpus has none of these forms.
    """
    if corpus == STORIES:
        return _make_stories(seed)
    path = existing(corpus)
    if path.is_dir():
        if (path / "cmudict.dict").exists():
            return _by_hash("pronunciations", _pronunciations(path / "cmudict.dict"), held_out)
        if (path / "train.de.gz").exists():
            return _sentences(path, note)
        raise TrainingError(
            f"{path}: holds neither cmudict.dict nor train.de.gz; give a folder that does, or a TSV file of source "
            "TAB target"
        )
    if "\t" in read_utf8(path).partition("\n")[0]:
        return _by_hash("pairs", _rows(path, note), held_out)
    return _by_hash("pronunciations", _pronunciations(path), held_out)


def _by_hash(form: Form, rows: Iterable[tuple[str, str]], held_out: float) -> PairCorpus:
    """Split pairs by the SHA-256 of their sources, so that no property of a word decides its part.

    In that order, the last tenth is for the test, and the end of the rest for validation.
    """
    targets: dict[str, dict[str, None]] = {}
    for source, target in rows:
        targets.setdefault(source, {})[target] = None
    sources = sorted(targets, key=lambda source: hashlib.sha256(source.encode()).digest())
    pairs = [Pair(source, tuple(targets[source])) for source in sources]
    test = max(1, round(len(pairs) * TEST_SHARE))
    validation = max(1, round((len(pairs) - test) * held_out))
    cut = len(pairs) - test - validation
    if cut < 1:
        raise TrainingError(f"got {len(pairs)} sources; training, validation and test need one each")
    return PairCorpus(form, pairs[:cut], pairs[cut:-test], pairs[-test:])


_ENTRY = re.compile(r"(?P<word>\S+?)(?:\(\d+\))?\s+(?P<phones>[A-Z]{1,2}[0-2]?(?: [A-Z]{1,2}[0-2]?)*)\s*(?:#.*)?")


def _pronunciations(path: Path) -> Iterator[tuple[str, str]]:
    """Words with their phonemes, one on each line, in the form of cmudict.

    In "read(2) R EH1 D # comment", (2) marks another pronunciation of the same word. The digits after vowels, which
    mark stress, are left out, as is usual in grapheme-to-phoneme conversion (Yao and Zweig 2015).
    """
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip() and not line.startswith((";;;", "#")):
            entry = _ENTRY.fullmatch(line)
            if entry is None:
                raise TrainingError(
                    f"{path}:{number}: expected source TAB target on every line, or a word and its phonemes as in "
                    f"cmudict (read(2) R EH1 D), found {line[:60]!r}"
                )
            yield entry["word"], re.sub(r"\d", "", entry["phones"])


def _rows(path: Path, note: Note) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip():
            columns = [column.strip() for column in line.split("\t")]
            if len(columns) != 2 or not all(columns):
                raise TrainingError(f"{path}:{number}: expected source TAB target, found {line[:60]!r}")
            if number == 1 and names_source_and_target(*columns):
                note(f"{path}:1: read as headings: {line[:60]!r}")
                continue
            yield columns[0], columns[1]


def _sentences(folder: Path, note: Note) -> PairCorpus:
    """The parts of multi30k."""
    parts = []
    for name in ("train", "val", "test_2016_flickr"):
        lines = list(zip(*_both_languages(folder, name), strict=True))
        parts.append([Pair(source, (target,)) for source, target in lines if source.strip() and target.strip()])
        if len(parts[-1]) < len(lines):
            note(f"{folder}: left out: {len(lines) - len(parts[-1])} lines of {name} that are empty in one language")
    return PairCorpus("sentences", *parts)


def _both_languages(folder: Path, part: str) -> tuple[list[str], list[str]]:
    german, english = (_decompress(folder / f"{part}.{language}.gz") for language in ("de", "en"))
    if len(german) != len(english):
        raise TrainingError(
            f"{folder}: {part}.de.gz has {len(german)} lines and {part}.en.gz {len(english)}; both need the same "
            "sentences"
        )
    return german, english


def _decompress(path: Path) -> list[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") as file:
            return [line.strip() for line in file.read().rstrip("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: byte {error.start} of the decompressed file is not UTF-8") from error
    except (OSError, EOFError) as error:
        raise TrainingError(f"{path}: cannot be decompressed: {error}") from error


FACTS = (1, 2, 3)
_STORIES = {"training": 30_000, "validation": 300, "test": 1000}  # of each number of facts


def _make_stories(seed: int) -> PairCorpus:
    """The same number of stories of one, two and three facts. No story is in two parts."""
    parts: dict[str, list[Pair]] = {}
    for number, (part, count) in enumerate(_STORIES.items()):
        made = [story for facts in FACTS for story in make_stories(count, 3 * seed + number, facts)]
        pairs = [
            Pair(f"{story.passage} {story.question}", (story.answer,), story.choices, story.facts) for story in made
        ]
        known = {pair.source for before in parts.values() for pair in before}
        parts[part] = [pair for pair in pairs if pair.source not in known]
    return PairCorpus("stories", **parts)
