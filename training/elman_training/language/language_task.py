"""The tasks with a target at every token of a text, and the language model's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from elman_bundle import InputVocabulary
from elman_training.cells.cell import State
from elman_training.cells.stack import detached
from elman_training.config import TextConfig
from elman_training.corpus_vocabularies import text_vocabulary
from elman_training.language.contiguous_batches import ContiguousBatches
from elman_training.language.recurrent_network import RecurrentNetwork
from elman_training.task import Ids, Tally, Task, Validation
from elman_training.training_error import TrainingError

_UNITS = {"characters": "character", "bytes": "byte", "words": "word", "subwords": "subword", "symbols": "symbol"}
_VALIDATION_STEPS = 1024  # of one call of the network


class SequenceModel(Protocol):
    """A model from tokens to logits at every step: a network, or a graph exported from one."""

    def initial_state(self, rows: int) -> State:
        """The state that every sequence starts from."""
        ...

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Token ids [B, T] and the state to logits [B, T, C] and the last state."""
        ...


class TokenTask(Task):
    """One long text with a target at every step.

    It is learned by truncated back-propagation through time over contiguous rows, with teacher forcing: the input is
    always the true text.
    """

    def __init__(self, config: TextConfig, vocabulary: InputVocabulary) -> None:
        self.vocabulary = vocabulary
        self.vocabularies = {"": vocabulary}
        self.unit = _UNITS[config.vocabulary]
        self._config = config

    _batches: ContiguousBatches

    def _make_batches(self, inputs: Ids, targets: Ids, **options: Any) -> ContiguousBatches:
        config = self._config
        try:
            return ContiguousBatches(
                inputs, targets, rows=config.lanes, window=config.window, seed=config.seed, **options
            )
        except ValueError as error:
            raise TrainingError(f"{config.corpus}: {error}. Lower --lanes or --window, or give more text") from error

    def data(self) -> Iterable[Ids]:
        return self._batches.inputs, self._batches.targets

    def loss(self, network: RecurrentNetwork, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        window = self._batches.window(step)
        initial = network.initial_state(len(window.inputs))
        before = detached(carried) or initial
        fresh = torch.from_numpy(window.fresh)[:, None]
        state = {name: torch.where(fresh, value, before[name]) for name, value in initial.items()}
        logits, state = network(torch.from_numpy(window.inputs), state)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), torch.from_numpy(window.targets).flatten())
        return loss, state, window.inputs.size


class LanguageTask(TokenTask):
    """A language model: the target is the next token of the text."""

    labels = None

    def __init__(self, config: TextConfig, text: str) -> None:
        cut = int(len(text) * (1 - config.held_out))
        super().__init__(config, text_vocabulary(config, [text[:cut]]))
        training = self.vocabulary.encode(text[:cut])
        self._held_out = self.vocabulary.encode(text[cut:])[: config.validation_limit]
        if len(self._held_out) < 2:
            raise TrainingError(
                f"{config.corpus}: got a text too short to hold out {config.held_out:.0%} of it; validation needs two "
                "tokens or more"
            )
        self._batches = self._make_batches(training[:-1], training[1:], restart=config.restart)

    def validate(self, network: SequenceModel, *, rows: int) -> Validation:
        inputs, targets = self._held_out[:-1], self._held_out[1:]
        rows = max(1, min(rows, len(inputs) // 64))
        length = len(inputs) // rows
        tokens = torch.from_numpy(inputs[: rows * length].reshape(rows, length))
        following = torch.from_numpy(targets[: rows * length].reshape(rows, length))
        state = network.initial_state(rows)
        tally = Tally()
        for start in range(0, length, _VALIDATION_STEPS):
            logits, state = network(tokens[:, start : start + _VALIDATION_STEPS], state)
            tally.add(logits.flatten(0, 1), following[:, start : start + _VALIDATION_STEPS].flatten())
        return tally.validation()
