"""The tasks with a target at every token of a text: what a batch is, what the loss is, what validation measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from elman_bundle import InputVocabulary
from elman_training.cells import State
from elman_training.config import TextConfig
from elman_training.corpus import LabelledText
from elman_training.errors import TrainingError
from elman_training.lanes import IGNORED, Ids, Lanes, align_documents
from elman_training.network import RecurrentNetwork, detached
from elman_training.task import Tally, Task, Validation, pad
from elman_training.vocabularies import text_vocabulary

_UNITS = {"characters": "character", "bytes": "byte", "words": "word", "subwords": "subword", "symbols": "symbol"}


class Reader(Protocol):
    """Whatever reads tokens and gives logits: a network, or a graph that was made of it."""

    def initial_state(self, rows: int) -> State:
        """What every sequence starts from."""
        ...

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Token ids [B, T] and the state to logits [B, T, C] and the last state."""
        ...


class _LanesTask(Task):
    """One long text with a target at every step, learnt by truncated back-propagation through time over contiguous
    lanes, with teacher forcing: the input is always the true text."""

    def __init__(self, config: TextConfig, vocabulary: InputVocabulary) -> None:
        self.vocabulary = vocabulary
        self.vocabularies = {"": vocabulary}
        self.unit = _UNITS[config.vocabulary]
        self._config = config

    def _make_lanes(self, inputs: Ids, targets: Ids, **options: Any) -> Lanes:
        config = self._config
        try:
            return Lanes(inputs, targets, lanes=config.lanes, window=config.window, seed=config.seed, **options)
        except ValueError as error:
            raise TrainingError(f"{config.corpus}: {error}; lower --lanes or --window, or give more text") from error

    _lanes: Lanes

    def data(self) -> Iterable[Ids]:
        return self._lanes.inputs, self._lanes.targets

    def loss(self, network: RecurrentNetwork, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        window = self._lanes.window(step)
        initial = network.initial_state(len(window.inputs))
        before = detached(carried) or initial
        fresh = torch.from_numpy(window.fresh)[:, None]
        state = {name: torch.where(fresh, value, before[name]) for name, value in initial.items()}
        logits, state = network(torch.from_numpy(window.inputs), state)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), torch.from_numpy(window.targets).flatten())
        return loss, state, window.inputs.size


class LanguageTask(_LanesTask):
    """What is to be predicted is the next token of the text."""

    labels = None

    def __init__(self, config: TextConfig, text: str) -> None:
        cut = int(len(text) * (1 - config.held_out))
        super().__init__(config, text_vocabulary(config, [text[:cut]]))
        training = self.vocabulary.encode(text[:cut])
        self._held_out = self.vocabulary.encode(text[cut:])[: config.validation_limit]
        if len(self._held_out) < 2:
            raise TrainingError(f"{config.corpus}: too short to hold out {config.held_out:.0%} for validation")
        self._lanes = self._make_lanes(training[:-1], training[1:], restart=config.restart)

    def validate(self, network: Reader, *, lanes: int) -> Validation:
        inputs, targets = self._held_out[:-1], self._held_out[1:]
        lanes = max(1, min(lanes, len(inputs) // 64))
        length = len(inputs) // lanes
        rows = torch.from_numpy(inputs[: lanes * length].reshape(lanes, length))
        wanted = torch.from_numpy(targets[: lanes * length].reshape(lanes, length))
        state = network.initial_state(lanes)
        tally = Tally()
        for start in range(0, length, 1024):
            logits, state = network(rows[:, start : start + 1024], state)
            tally.add(logits.flatten(0, 1), wanted[:, start : start + 1024].flatten())
        return tally.validation()


class TaggingTask(_LanesTask):
    """What is to be predicted is a label for every token; each document starts from the initial state."""

    labels: tuple[str, ...]

    def __init__(self, config: TextConfig, labelled: LabelledText) -> None:
        starts = labelled.starts
        place = max(1, int(len(starts) * (1 - config.held_out)))
        if place == len(starts):
            raise TrainingError(
                f"{config.corpus}: has only one document, so none can be held out for validation; "
                "in a TSV file an empty line starts a new document"
            )
        cut = starts[place]
        super().__init__(config, text_vocabulary(config, [labelled.text[:cut]]))
        self.labels = tuple(sorted(set(labelled.labels)))
        inputs, targets = self._encode(labelled.text[:cut], labelled.labels[:cut])
        document_starts = _token_starts(config, labelled.text[:cut])[starts[:place]].tolist()
        inputs, targets, aligned = align_documents(inputs, targets, document_starts, config.window)
        self._lanes = self._make_lanes(inputs, targets, starts=aligned)
        ends = [*starts[place + 1 :], len(labelled.text)]
        limit = cut + config.validation_limit
        held_out = [
            self._encode(labelled.text[start:end], labelled.labels[start:end])
            for start, end in zip(starts[place:], ends, strict=True)
            if start < limit
        ]
        self._held_out = sorted(held_out, key=lambda document: len(document[0]))  # So that little is padding.

    def _encode(self, text: str, labels: Sequence[str]) -> tuple[Ids, Ids]:
        ids = {name: index for index, name in enumerate(self.labels)}
        targets = np.array([ids[label] for label in labels], dtype=np.int64)
        # One label a byte: a character's label counts for each of its bytes.
        return self.vocabulary.encode(text), np.repeat(targets, np.diff(_token_starts(self._config, text)))

    def validate(self, network: Reader, *, lanes: int) -> Validation:
        tally = Tally()
        for start in range(0, len(self._held_out), 32):
            batch = self._held_out[start : start + 32]
            tokens, _ = pad([inputs for inputs, _ in batch])
            wanted, _ = pad([targets for _, targets in batch], fill=IGNORED)
            logits, _ = network(tokens, network.initial_state(len(batch)))
            kept = wanted.flatten() != IGNORED
            tally.add(logits.flatten(0, 1)[kept], wanted.flatten()[kept])
        return tally.validation()


def _token_starts(config: TextConfig, text: str) -> Ids:
    """Where each character starts in tokens, and where the last one ends."""
    if config.vocabulary == "characters":
        return np.arange(len(text) + 1)
    return np.cumsum([0, *(len(character.encode()) for character in text)])
