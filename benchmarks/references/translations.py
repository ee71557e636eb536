"""What onnxruntime alone gives an engineer for translations, in a process of its own: sources read as one padded batch,
then one `run` of the bundle's own step for all of them, the most probable token of each row by numpy, and so on. No
network, no scheduling, nothing that comes or goes. It is the fixed reference: do not improve it.

    python -m benchmarks.references.translations < order.json
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.processes.worker import Json, answer, measure
from elman_bundle import load_bundle


@dataclass(frozen=True)
class TranslationReferenceOrder:
    """What to measure.

    Attributes:
        bundle: the model.
        sources: token ids, a batch of them.
        max_tokens: of each translation.
        seconds: rounds are repeated until so many have passed.
        threads: of onnxruntime; they spin while they wait, its default.
    """

    bundle: str
    sources: list[list[int]]
    max_tokens: int
    seconds: float
    threads: int


@dataclass(frozen=True)
class TranslationReference:
    """What a round takes.

    Attributes:
        encoder_seconds: reading the sources.
        seconds: that and all steps.
        rounds: how many were timed.
    """

    encoder_seconds: float
    seconds: float
    rounds: int


def measure_translation_reference(bundle: Path, **options: object) -> TranslationReference:
    """Measure it now, in another process; see TranslationReferenceOrder."""
    return TranslationReference(**measure("benchmarks.references.translations", {"bundle": str(bundle), **options}))


class _PlainLoop:
    def __init__(self, order: TranslationReferenceOrder) -> None:
        bundle = load_bundle(Path(order.bundle))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = order.threads
        providers = ["CPUExecutionProvider"]
        self._encoder = onnxruntime.InferenceSession(bundle.encoder_path, options, providers=providers)
        self._step = onnxruntime.InferenceSession(bundle.graph_path, options, providers=providers)
        self._states = bundle.spec.step.states
        self._encoded = [output.name for output in self._encoder.get_outputs()]
        self._lengths = np.array([len(source) for source in order.sources])
        self._sources = np.zeros((len(order.sources), self._lengths.max()), np.int64)
        for row, source in enumerate(order.sources):
            self._sources[row, : len(source)] = source
        self._begin = bundle.vocabulary_spec("text").begin_token_id

    def round(self, max_tokens: int) -> tuple[float, float]:
        """The seconds of reading and of writing."""
        started = time.perf_counter()
        rows = len(self._sources)
        found = self._encoder.run(self._encoded, {"source": self._sources, "lengths": self._lengths})
        kept = dict(zip(self._encoded, found, strict=True))
        for state in self._states:
            if state.input_name not in kept:
                kept[state.input_name] = np.zeros((rows, *state.shape), np.float32)
        read = time.perf_counter()
        names = ["logits", *(state.output_name for state in self._states)]
        tokens = np.full(rows, self._begin)
        for _ in range(max_tokens):
            logits, *after = self._step.run(names, {"token": tokens, **kept})
            kept |= {state.input_name: value for state, value in zip(self._states, after, strict=True)}
            tokens = logits.argmax(axis=1)
        return read - started, time.perf_counter() - read


def _measure(given: Json) -> Json:
    order = TranslationReferenceOrder(**given)
    loop = _PlainLoop(order)
    loop.round(min(4, order.max_tokens))
    rounds: list[tuple[float, float]] = []
    while sum(map(sum, rounds)) < order.seconds:
        rounds.append(loop.round(order.max_tokens))
    reading, writing = np.median(rounds, axis=0)
    return asdict(TranslationReference(float(reading), float(reading + writing), len(rounds)))


if __name__ == "__main__":
    answer(_measure)
