"""What the field reports of written targets: error rates, BLEU, exact matches."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from elman_training.pairs import Form, Pair


def figures_of(form: Form, pairs: Sequence[Pair], written: Sequence[str]) -> dict[str, float]:
    """The figures of what was written for pairs, by a name that begins with "test_".

    Args:
        form: of the corpus.
        pairs: what was to be written.
        written: what was, in the same order.
    """
    right = [text in pair.targets for pair, text in zip(pairs, written, strict=True)]
    if form == "pronunciations":
        return {
            "test_word_error_rate": 1 - sum(right) / len(right),
            "test_phoneme_error_rate": _symbol_error_rate(pairs, written),
        }
    if form == "sentences":
        return {"test_bleu": bleu(pairs, written)}
    if form == "stories":
        return by_facts("test_answered", pairs, right)
    return {"test_exact": sum(right) / len(right), "test_bleu": bleu(pairs, written)}


def by_facts(name: str, pairs: Sequence[Pair], right: Sequence[bool]) -> dict[str, float]:
    """The share that is right, for each number of facts: "NAME_1_fact", "NAME_2_facts"."""
    found: dict[str, float] = {}
    for facts in sorted({pair.facts for pair in pairs}):
        of_facts = [hit for pair, hit in zip(pairs, right, strict=True) if pair.facts == facts]
        found[f"{name}_{facts}_fact{'s' if facts > 1 else ''}"] = sum(of_facts) / len(of_facts)
    return found


def bleu(pairs: Sequence[Pair], written: Sequence[str]) -> float:
    """BLEU of a corpus by sacrebleu (Post 2018) with its own settings, on text as it is read: case counts."""
    from sacrebleu import corpus_bleu

    most = max(len(pair.targets) for pair in pairs)
    # As many for each: one that is given twice changes nothing.
    references = [[pair.targets[min(place, len(pair.targets) - 1)] for pair in pairs] for place in range(most)]
    return float(corpus_bleu(list(written), references).score)


def _symbol_error_rate(pairs: Sequence[Pair], written: Sequence[str]) -> float:
    """Insertions, deletions and substitutions a symbol of the target, of several targets of the nearest one."""
    errors = symbols = 0
    for pair, text in zip(pairs, written, strict=True):
        distance, length = min(
            (Levenshtein.distance(target.split(), text.split()), len(target.split())) for target in pair.targets
        )
        errors, symbols = errors + distance, symbols + length
    return errors / symbols
