"""The three tasks: what a batch is, what the loss is, what validation measures.

A task is a pure function of the step number: it keeps no position of its own, so that training can stop and resume.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bundle import ByteVocabulary, CharacterVocabulary
from training.cells import State
from training.config import TrainingConfig
from training.corpus import LabelledExample, read_labelled_examples, read_labelled_text, read_text
from training.errors import TrainingError
from training.lanes import Lanes
from training.network import RecurrentNetwork, at_last_step, detached

InputVocabulary = CharacterVocabulary | ByteVocabulary


@dataclass(frozen=True)
class Validation:
    """What the held-out part says.

    Attributes:
        nats: mean negative log-likelihood of what was to be predicted.
        accuracy: the share predicted right.
        majority: the share that always guessing the commonest class gets right.
    """

    nats: float
    accuracy: float
    majority: float

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    def as_metrics(self) -> dict[str, float]:
        return {
            "validation_nats": self.nats,
            "validation_bits": self.bits,
            "validation_accuracy": self.accuracy,
            "validation_majority": self.majority,
        }


class Task(ABC):
    """What the trainer asks of a task.

    Attributes:
        vocabulary: of the inputs.
        labels: the classes, or None where the outputs are the vocabulary itself.
        unit: what `nats` is counted per, for people.
    """

    vocabulary: InputVocabulary
    labels: tuple[str, ...] | None
    unit: str

    @property
    def outputs(self) -> int:
        """How many logits the network has."""
        return self.vocabulary.size if self.labels is None else len(self.labels)

    @abstractmethod
    def loss(self, network: RecurrentNetwork, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        """The loss of batch `step` in nats, the state to carry to the next one, and the number of steps it read."""

    @abstractmethod
    def validate(self, network: RecurrentNetwork, *, lanes: int) -> Validation:
        """Measure the held-out part, read in `lanes` rows; 1 is exact and slow, more is faster and, for text whose
        rows then start cold, a little pessimistic."""


def make_task(config: TrainingConfig) -> Task:
    """The task that a configuration asks for, its corpus read.

    Raises:
        TrainingError: the corpus cannot be read or is too small.
    """
    if config.task == "classify":
        return ClassificationTask(config, read_labelled_examples(config.corpus))
    if config.task == "tag":
        labelled = read_labelled_text(config.corpus, config.corpus_limit)
        return _tagging_task(config, labelled.text, labelled.labels)
    text = read_text(config.corpus)[: config.corpus_limit]
    return _language_task(config, text)


def _make_vocabulary(config: TrainingConfig, training_text: str) -> InputVocabulary:
    if config.vocabulary == "bytes":
        return ByteVocabulary()
    return CharacterVocabulary.from_text(training_text, config.minimum_count)


def _language_task(config: TrainingConfig, text: str) -> TextTask:
    cut = int(len(text) * (1 - config.held_out))
    vocabulary = _make_vocabulary(config, text[:cut])
    training, held_out = vocabulary.encode(text[:cut]), vocabulary.encode(text[cut:])
    return TextTask(config, vocabulary, None, (training[:-1], training[1:]), (held_out[:-1], held_out[1:]), "character")


def _tagging_task(config: TrainingConfig, text: str, labels: list[str]) -> TextTask:
    cut = int(len(text) * (1 - config.held_out))
    names = tuple(sorted(set(labels)))
    ids = {name: index for index, name in enumerate(names)}
    targets = np.array([ids[label] for label in labels], dtype=np.int64)
    if config.vocabulary == "bytes":  # One label a byte: a character's label counts for each of its bytes.
        widths = [len(character.encode()) for character in text]
        cut_targets = sum(widths[:cut])
        targets = np.repeat(targets, widths)
    else:
        cut_targets = cut
    vocabulary = _make_vocabulary(config, text[:cut])
    training = (vocabulary.encode(text[:cut]), targets[:cut_targets])
    held_out = (vocabulary.encode(text[cut:]), targets[cut_targets:])
    return TextTask(config, vocabulary, names, training, held_out, "character")


Pair = tuple[NDArray[np.int64], NDArray[np.int64]]


class TextTask(Task):
    """One long text with a target at every step: language modelling (the next token) and tagging (a label).

    Truncated back-propagation through time over contiguous lanes, with teacher forcing: the input is always the
    true text.
    """

    def __init__(
        self,
        config: TrainingConfig,
        vocabulary: InputVocabulary,
        labels: tuple[str, ...] | None,
        training: Pair,
        held_out: Pair,
        unit: str,
    ) -> None:
        self.vocabulary = vocabulary
        self.labels = labels
        self.unit = unit if config.vocabulary == "characters" else "byte"
        if len(held_out[0]) < 1:
            raise TrainingError(f"{config.corpus}: too short to hold out {config.held_out:.0%} for validation")
        try:
            self._lanes = Lanes(*training, lanes=config.lanes, window=config.window, seed=config.seed)
        except ValueError as error:
            raise TrainingError(f"{config.corpus}: {error}; lower --lanes or --window, or give more text") from error
        self._held_out = tuple(part[: config.validation_limit] for part in held_out)

    def loss(self, network: RecurrentNetwork, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        window = self._lanes.window(step)
        state = network.initial_state(len(window.inputs)) if window.fresh else detached(carried)
        logits, state = network(torch.from_numpy(window.inputs), state)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), torch.from_numpy(window.targets).flatten())
        return loss, state, window.inputs.size

    def validate(self, network: RecurrentNetwork, *, lanes: int) -> Validation:
        inputs, targets = self._held_out
        lanes = max(1, min(lanes, len(inputs) // 64))
        length = len(inputs) // lanes
        rows = torch.from_numpy(inputs[: lanes * length].reshape(lanes, length))
        wanted = torch.from_numpy(targets[: lanes * length].reshape(lanes, length))
        state = network.initial_state(lanes)
        total = 0.0
        right = 0
        for start in range(0, length, 1024):
            logits, state = network(rows[:, start : start + 1024], state)
            flat = wanted[:, start : start + 1024].flatten()
            logits = logits.flatten(0, 1).float()
            total += float(functional.cross_entropy(logits, flat, reduction="sum"))
            right += int((logits.argmax(1) == flat).sum())
        count = lanes * length
        return Validation(total / count, right / count, float(np.bincount(targets).max() / len(targets)))


class ClassificationTask(Task):
    """Many to one: a class for each text, read off at its last step.

    Texts of different lengths share a batch, padded at the end. Padding cannot influence the result: the network
    reads left to right, and what stands at a row's own last step has not seen what follows it.
    """

    unit = "example"

    def __init__(self, config: TrainingConfig, examples: Sequence[LabelledExample]) -> None:
        training, held_out = split_by_class(examples, config.held_out, config.seed)
        self.vocabulary = _make_vocabulary(config, "".join(example.text for example in training))
        self.labels = tuple(sorted({example.label for example in examples}))
        self._training = self._encode(training)
        self._held_out = self._encode(held_out)[: config.validation_limit]
        self._config = config

    def _encode(self, examples: Sequence[LabelledExample]) -> list[tuple[NDArray[np.int64], int]]:
        assert self.labels is not None
        ids = {name: index for index, name in enumerate(self.labels)}
        return [(self.vocabulary.encode(example.text), ids[example.label]) for example in examples]

    def loss(self, network: RecurrentNetwork, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        size = min(self._config.lanes, len(self._training))
        epoch, within = divmod(step, len(self._training) // size)
        order = np.random.default_rng([self._config.seed, epoch]).permutation(len(self._training))
        chosen = [self._training[index] for index in order[within * size : (within + 1) * size]]
        logits, labels = self._logits(network, chosen)
        return functional.cross_entropy(logits.float(), labels), {}, sum(len(tokens) for tokens, _ in chosen)

    def validate(self, network: RecurrentNetwork, *, lanes: int) -> Validation:
        total = 0.0
        right = 0
        by_length = sorted(self._held_out, key=lambda example: len(example[0]))
        for start in range(0, len(by_length), 256):
            logits, labels = self._logits(network, by_length[start : start + 256])
            total += float(functional.cross_entropy(logits.float(), labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
        count = len(by_length)
        commonest = Counter(label for _, label in by_length).most_common(1)[0][1]
        return Validation(total / count, right / count, commonest / count)

    @staticmethod
    def _logits(network: RecurrentNetwork, examples: Sequence[tuple[NDArray[np.int64], int]]) -> tuple[Tensor, Tensor]:
        tokens, lengths = pad([tokens for tokens, _ in examples])
        features, _ = network.features(tokens, network.initial_state(len(examples)))
        return network.head(at_last_step(features, lengths)), torch.tensor([label for _, label in examples])


def pad(sequences: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths as one [B, T] with zeros behind the shorter ones, and their lengths [B]."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = torch.from_numpy(sequence)
    return padded, lengths


def split_by_class(
    examples: Sequence[LabelledExample], held_out: float, seed: int
) -> tuple[list[LabelledExample], list[LabelledExample]]:
    """Part examples into training and held-out, the same share of every class (stratified); each class that has two
    examples or more is in both."""
    by_class: dict[str, list[LabelledExample]] = defaultdict(list)
    for example in examples:
        by_class[example.label].append(example)
    training: list[LabelledExample] = []
    validation: list[LabelledExample] = []
    for label, members in sorted(by_class.items()):
        order = _shuffled(members, seed, label)
        count = min(len(members) - 1, max(1, round(len(members) * held_out)))
        validation.extend(order[:count])
        training.extend(order[count:])
    if not validation:
        raise TrainingError("every class has only one example: nothing can be held out for validation")
    return training, validation


def _shuffled(members: list[LabelledExample], seed: int, label: str) -> list[LabelledExample]:
    order = np.random.default_rng([seed, *label.encode()]).permutation(len(members))
    return [members[index] for index in order]
