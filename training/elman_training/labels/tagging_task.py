"""Tagging, one label for every token of a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elman_training.config import TextConfig
from elman_training.corpus_vocabularies import text_vocabulary
from elman_training.labels.tagged_text import LabelledText
from elman_training.language.contiguous_batches import align_documents
from elman_training.language.language_task import SequenceModel, TokenTask
from elman_training.task import IGNORED, Ids, Tally, Validation, count_labels, pad
from elman_training.training_error import TrainingError

_VALIDATION_ROWS = 32


class TaggingTask(TokenTask):
    """The target is a label for every token; each document starts from the initial state."""

    labels: tuple[str, ...]

    def __init__(self, config: TextConfig, labelled: LabelledText) -> None:
        starts = labelled.starts
        first_held_out = max(1, int(len(starts) * (1 - config.held_out)))
        if first_held_out == len(starts):
            raise TrainingError(
                f"{config.corpus}: got only one document; validation needs another. In a TSV file, an empty line "
                "starts a new document"
            )
        cut = starts[first_held_out]
        super().__init__(config, text_vocabulary(config, [labelled.text[:cut]]))
        self.labels = tuple(sorted(set(labelled.labels)))
        self.label_counts = count_labels(self.labels, labelled.labels)
        inputs, targets = self._encode(labelled.text[:cut], labelled.labels[:cut])
        document_starts = _token_starts(config, labelled.text[:cut])[starts[:first_held_out]].tolist()
        inputs, targets, aligned = align_documents(inputs, targets, document_starts, config.window)
        self._batches = self._make_batches(inputs, targets, starts=aligned)
        ends = [*starts[first_held_out + 1 :], len(labelled.text)]
        limit = cut + config.validation_limit
        held_out = [
            self._encode(labelled.text[start:end], labelled.labels[start:end])
            for start, end in zip(starts[first_held_out:], ends, strict=True)
            if start < limit
        ]
        self._held_out = sorted(held_out, key=lambda document: len(document[0]))  # So that little is padding.

    def _encode(self, text: str, labels: Sequence[str]) -> tuple[Ids, Ids]:
        ids = {name: index for index, name in enumerate(self.labels)}
        targets = np.array([ids[label] for label in labels], dtype=np.int64)
        # With bytes as tokens, each byte has the label of its character.
        return self.vocabulary.encode(text), np.repeat(targets, np.diff(_token_starts(self._config, text)))

    def validate(self, network: SequenceModel, *, rows: int) -> Validation:
        tally = Tally()
        for start in range(0, len(self._held_out), _VALIDATION_ROWS):
            batch = self._held_out[start : start + _VALIDATION_ROWS]
            tokens, _ = pad([inputs for inputs, _ in batch])
            targets, _ = pad([targets for _, targets in batch], fill=IGNORED)
            logits, _ = network(tokens, network.initial_state(len(batch)))
            counted = targets.flatten() != IGNORED
            tally.add(logits.flatten(0, 1)[counted], targets.flatten()[counted])
        return tally.validation()


def _token_starts(config: TextConfig, text: str) -> Ids:
    """The position in tokens where each character starts, and where the last one ends."""
    if config.vocabulary == "characters":
        return np.arange(len(text) + 1)
    return np.cumsum([0, *(len(character.encode()) for character in text)])
