"""Metrics of written targets: error rates, BLEU, exact matches."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from elman_training.encoder_decoder.pair_corpus import Form, Pair


def output_metrics(form: Form, pairs: Sequence[Pair], outputs: Sequence[str]) -> dict[str, float]:
    """The metrics of the outputs for pairs, by names that begin with "test_".

    Args:
        form: the form of the corpus.
        pairs: the sources with their correct targets.
        outputs: what the model wrote for each, in the same order.
    """
    correct = [output in pair.targets for pair, output in zip(pairs, outputs, strict=True)]
    if form == "pronunciations":
        return {
            "test_word_error_rate": 1 - sum(correct) / len(correct),
            "test_phoneme_error_rate": _symbol_error_rate(pairs, outputs),
        }
    if form == "sentences":
        return {"test_bleu": bleu(pairs, outputs)}
    if form == "stories":
        return accuracy_by_facts("test_answered", pairs, correct)
    return {"test_exact": sum(correct) / len(correct), "test_bleu": bleu(pairs, outputs)}


def accuracy_by_facts(name: str, pairs: Sequence[Pair], correct: Sequence[bool]) -> dict[str, float]:
    """The accuracy for each number of facts, under "NAME_1_fact", "NAME_2_facts" and so on."""
    accuracies: dict[str, float] = {}
    for facts in sorted({pair.facts for pair in pairs}):
        of_facts = [hit for pair, hit in zip(pairs, correct, strict=True) if pair.facts == facts]
        accuracies[f"{name}_{facts}_fact{'s' if facts > 1 else ''}"] = sum(of_facts) / len(of_facts)
    return accuracies


def bleu(pairs: Sequence[Pair], outputs: Sequence[str]) -> float:
    """BLEU of a corpus by sacrebleu (Post 2018) with its default settings, on plain, cased text."""
    from sacrebleu import corpus_bleu

    most = max(len(pair.targets) for pair in pairs)
    # sacrebleu needs the same number of references for each; repeating one changes nothing.
    references = [[pair.targets[min(index, len(pair.targets) - 1)] for pair in pairs] for index in range(most)]
    return float(corpus_bleu(list(outputs), references).score)


def _symbol_error_rate(pairs: Sequence[Pair], outputs: Sequence[str]) -> float:
    """Insertions, deletions and substitutions per symbol of the target; of several targets, the nearest counts."""
    errors = symbols = 0
    for pair, output in zip(pairs, outputs, strict=True):
        distance, length = min(
            (Levenshtein.distance(target.split(), output.split()), len(target.split())) for target in pair.targets
        )
        errors, symbols = errors + distance, symbols + length
    return errors / symbols
