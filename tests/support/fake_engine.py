"""An engine whose outputs can be computed by hand, and a model around it.

Its state is the sum of all tokens read; the next token is that sum modulo 9 with certainty. Its logits and its
labels are the same numbers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_bundle import Bundle, CharacterVocabulary, LabelVocabulary, TextVocabulary
from elman_protos import v1
from elman_server.engine import FREE, Arrays, Chunk, Encoded, OutputSelection, Results
from elman_server.errors import EngineError

LETTERS = "�abcdefghij"
SIZE = len(LETTERS)
MODULUS = 9
LABELS = tuple(f"sum{index}" for index in range(SIZE))
POISON = LETTERS.index("j")  # a step that reads it fails
NAN = LETTERS.index("i")  # a step that reads it outputs NaN


def continuation(prompt: list[int], count: int) -> list[int]:
    """Return the greedy continuation of a prompt by the fake model."""
    total = sum(prompt)
    tokens = []
    for _ in range(count):
        tokens.append(total % MODULUS or 1)
        total += tokens[-1]
    return tokens


def log_probabilities(logits: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float32]:
    """Return the log-probabilities of tokens [B, K] under logits [B, K, V], computed in double precision."""
    values = logits.astype(np.float64)
    values -= np.log(np.exp(values).sum(axis=2, keepdims=True))
    return np.take_along_axis(values, targets[:, :, None], axis=2)[:, :, 0].astype(np.float32)


class FakeEngine:
    """Implements `Engine` for greedy decoding.

    Args:
        capacity: the number of rows.
        step_counts: the possible numbers of steps of a run.

    Attributes:
        gate: runs wait while it is cleared.
        runs: the number of rows and of steps of every run.
        replays: the number of steps of every replay.
        ahead: the number of rows and of steps of every prefill.
        seconds: duration of a step, by the number of rows.
        partition_count: the maximum number of row partitions.
    """

    provider = "cpu"

    def __init__(self, capacity: int = 4, step_counts: tuple[int, ...] = (1, 2, 4)) -> None:
        self.capacity = capacity
        self.step_counts = step_counts
        self.gate = threading.Event()
        self.gate.set()
        self.runs: list[tuple[int, int]] = []
        self.replays: list[int] = []
        self.ahead: list[tuple[int, ...]] = []
        self.seconds: dict[int, float] = {}
        self.partition_count = 1
        self.encoded: list[int] = []
        self._front = np.full(capacity, 10**6)  # the content of an unused slot must not matter
        self._back = np.full(capacity, 10**6)

    def step_counts_for(self, filtered: bool, selection: OutputSelection) -> tuple[int, ...]:
        return self.step_counts

    def encode(self, sources: Sequence[NDArray[Any]]) -> list[Encoded]:
        """Return the sum of each source as the initial total of its sequence."""
        self.encoded.append(len(sources))
        if any((source == POISON).any() for source in sources):
            raise EngineError("poison")
        return [Encoded({}, {"total": np.array(source.sum())}) for source in sources]

    def insert(self, row: int, state: Arrays | None = None, encoded: Encoded | None = None) -> None:
        initial = 0 if encoded is None else encoded.state["total"]
        self._front[row] = initial if state is None else state["total"]

    def release(self, row: int) -> None:
        self._front[row] = 10**6

    def move(self, source: int, destination: int) -> None:
        self._front[destination] = self._front[source]

    def rearrange(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        self._front[list(rows)] = self._front[list(sources)]

    def extract(self, row: int) -> dict[str, NDArray[Any]]:
        return {"total": self._front[row].copy()}

    def divide(self, count: int) -> list[range]:
        partitions = min(self.partition_count, count)
        return [
            range(count * partition // partitions, count * (partition + 1) // partitions)
            for partition in range(partitions)
        ]

    def run(self, rows: range, chunk: Chunk, *, partition: int | None = None) -> Results:
        assert self.gate.wait(30)
        time.sleep(self.seconds.get(len(rows), 0.0) * len(chunk))
        ids = chunk.inputs["token"]
        assert len(rows) == len(ids)
        assert len(chunk) in self.step_counts
        assert (ids[:, 0] != FREE).all()
        labels = np.full((len(rows), len(chunk), SIZE), -100.0, dtype=np.float32)
        tokens = np.zeros((len(rows), len(chunk)), dtype=np.int64)
        failed = np.zeros((len(rows), len(chunk)), dtype=np.bool_)
        totals = np.zeros((len(rows), len(chunk)), dtype=np.int64)
        for index, row in enumerate(rows):
            total = int(self._front[row])
            for step in range(len(chunk)):
                token = int(ids[index, step]) if ids[index, step] != FREE else int(tokens[index, step - 1])
                if token == POISON:
                    raise EngineError("poison")
                total += token
                totals[index, step] = total
                labels[index, step, total % MODULUS] = 0.0
                if token == NAN:
                    labels[index, step], failed[index, step] = np.nan, True
                # The unknown token is never generated; if all others are equal, the lowest id is.
                tokens[index, step] = total % MODULUS or 1
            self._back[row] = total
        self.runs.append((len(rows), len(chunk)))
        selection = chunk.selection
        outputs = {"labels": labels} | ({"logits": labels} if selection.outputs else {})
        targets = tokens if chunk.targets is None else np.where(chunk.targets == FREE, tokens, chunk.targets)
        return Results(
            outputs,
            tokens,
            failed,
            logits=labels[:, -1] if selection.logits else None,
            log_probabilities=log_probabilities(labels, targets) if selection.log_probabilities else None,
            states={"total": totals} if selection.states else {},
        )

    def replay(self, row: int, inputs: Arrays) -> None:
        assert (inputs["token"] != FREE).all()
        self.replays.append(len(inputs["token"]))
        self._back[row] = self._front[row] + inputs["token"].sum()

    def prefill(self, rows: range, inputs: Arrays) -> None:
        ids = inputs["token"]
        assert (ids != FREE).all()
        assert ids.shape[1] in self.step_counts
        if (ids == POISON).any():
            raise EngineError("poison")
        self.ahead.append(ids.shape)
        self._front[rows.start : rows.stop] += ids.sum(axis=1)

    def commit(self, rows: range) -> None:
        part = slice(rows.start, rows.stop)
        self._front[part], self._back[part] = self._back[part].copy(), self._front[part].copy()


def fake_bundle(name: str = "fake", *, every_step: bool = True) -> Bundle:
    """Return a bundle without files that generates and labels."""
    spec = v1.ModelSpec(manifest_version=1, name=name)
    spec.vocabularies.add(name="text", kind=v1.VOCABULARY_KIND_CHARACTERS, size=SIZE, unknown_token_id=0)
    spec.vocabularies.add(name="labels", kind=v1.VOCABULARY_KIND_LABELS, size=SIZE)
    spec.step.inputs.add(name="token", data_type=v1.DATA_TYPE_INT64).token.vocabulary = "text"
    spec.step.states.add(input_name="total", output_name="total_after", data_type=v1.DATA_TYPE_INT64)
    spec.step.outputs.add(
        name="logits", data_type=v1.DATA_TYPE_FLOAT32, shape=[SIZE]
    ).next_token_logits.vocabulary = "text"
    meaning = spec.step.outputs.add(name="labels", data_type=v1.DATA_TYPE_FLOAT32, shape=[SIZE]).label_logits
    meaning.vocabulary = "labels"
    meaning.scope = v1.LABEL_SCOPE_STEP if every_step else v1.LABEL_SCOPE_SEQUENCE
    vocabularies: dict[str, TextVocabulary | LabelVocabulary] = {
        "text": CharacterVocabulary(LETTERS, unknown_id=0),
        "labels": LabelVocabulary(LABELS),
    }
    return Bundle(Path("fake"), spec, "sha256:fake", vocabularies)
