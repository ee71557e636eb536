"""Measure translations with onnxruntime alone.

The sources are encoded as one padded batch; each step is one `run` of the bundle's own step for all rows, and numpy
selects the most probable token of each. There is no network, no scheduling, and no request that arrives or finishes. It
is the fixed reference: do not improve it.

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
        bundle: path of the bundle.
        sources: token ids of the sources of the batch.
        max_tokens: tokens of each translation.
        seconds: rounds are repeated for at least this long.
        threads: onnxruntime's intra-op threads; they spin while waiting, its default.
    """

    bundle: str
    sources: list[list[int]]
    max_tokens: int
    seconds: float
    threads: int


@dataclass(frozen=True)
class TranslationReference:
    """The duration of a round.

    Attributes:
        encoder_seconds: duration of the encoder.
        seconds: duration of the encoder and all steps.
        rounds: number of timed rounds.
    """

    encoder_seconds: float
    seconds: float
    rounds: int


def measure_translation_reference(bundle: Path, **options: object) -> TranslationReference:
    """Measure the reference in another process; see TranslationReferenceOrder."""
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
        """Run a round and return the seconds of encoding and of decoding."""
        started = time.perf_counter()
        rows = len(self._sources)
        outputs = self._encoder.run(self._encoded, {"source": self._sources, "lengths": self._lengths})
        feeds = dict(zip(self._encoded, outputs, strict=True))
        for state in self._states:
            if state.input_name not in feeds:
                feeds[state.input_name] = np.zeros((rows, *state.shape), np.float32)
        encoded = time.perf_counter()
        names = ["logits", *(state.output_name for state in self._states)]
        tokens = np.full(rows, self._begin)
        for _ in range(max_tokens):
            logits, *after = self._step.run(names, {"token": tokens, **feeds})
            feeds |= {state.input_name: value for state, value in zip(self._states, after, strict=True)}
            tokens = logits.argmax(axis=1)
        return encoded - started, time.perf_counter() - encoded


def _measure(payload: Json) -> Json:
    order = TranslationReferenceOrder(**payload)
    loop = _PlainLoop(order)
    loop.round(min(4, order.max_tokens))
    rounds: list[tuple[float, float]] = []
    while sum(map(sum, rounds)) < order.seconds:
        rounds.append(loop.round(order.max_tokens))
    encoding, decoding = np.median(rounds, axis=0)
    return asdict(TranslationReference(float(encoding), float(encoding + decoding), len(rounds)))


if __name__ == "__main__":
    answer(_measure)
