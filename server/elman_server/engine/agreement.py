"""Whether runs of several steps give what single steps of the bundle's own graph give, to the bit.

onnxruntime fuses operators by what surrounds them: the end of one step with the beginning of the next, or an output
that nobody has selected with what reads it. A product and a sum that are fused round otherwise. Most models have no
such operators at the borders of their steps; for the others the steps are separated, which costs copies of each state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from elman_server.engine.interface import Chunk
from elman_server.engine.onnx import OnnxEngine
from elman_server.engine.providers import Provider
from elman_server.engine.trials.step import StepTrial

_log = structlog.get_logger(__name__)


def settle_steps(engine: OnnxEngine, count: int) -> bool:
    """Separate the steps of a model where that is needed.

    Args:
        engine: a new engine; its rows hold no sequences.
        count: the smallest number of steps of a run above 1, or 1 if runs take no more.

    Returns:
        Whether runs may take several steps.
    """
    trial, engine.trial = engine.trial, None
    if trial is None or engine.provider != Provider.CPU.value:
        return True  # Kernels of CUDA differ by more than what is fused.
    comparison = _Comparison(engine, trial, count)
    if comparison.steps_agree() and comparison.agrees_with_graph():
        return True
    if not engine.graphs.separated:
        engine.graphs.separate()
        _log.info("steps separated", reason="onnxruntime would fuse operators of different steps")
    if comparison.steps_agree():
        return True
    _log.warning("steps not unrolled", reason="onnxruntime gives other results for several steps in one run")
    return False


@dataclass(frozen=True)
class _Comparison:
    """Trial runs of an engine.

    Attributes:
        engine: the engine.
        trial: what the rows read.
        count: the number of steps of a run.
    """

    engine: OnnxEngine
    trial: StepTrial
    count: int

    def steps_agree(self) -> bool:
        """Whether runs of `count` steps give what runs of one step give."""
        return all(self._run(rows, self.count) == self._run(rows, 1) for rows in self.trial.references)

    def agrees_with_graph(self) -> bool:
        """Whether runs of one step give what the bundle's own graph gives."""
        for rows, reference in self.trial.references.items():
            expected = [values[:, self._steps - 1] for values in reference.states.values()]
            labels = [output.name for output in self.engine.spec.outputs if output.HasField("label_logits")]
            expected += [reference.outputs[name][:, : self._steps] for name in labels]
            if [values.tobytes() for values in expected] != self._run(rows, 1)[: len(expected)]:
                return False
        return True

    @property
    def _steps(self) -> int:
        return self.trial.step_count // self.count * self.count

    def _run(self, rows: int, count: int) -> list[bytes]:
        """The states after all steps, the labels of each step, and the tokens of each step."""
        for row in range(rows):
            self.engine.insert(row, encoded=self.trial.encoded[row] if self.trial.encoded else None)
        labels: list[list[NDArray[np.generic]]] = []
        tokens: list[NDArray[np.int64]] = []
        for start in range(0, self._steps, count):
            results = self.engine.run(range(rows), self._chunk(rows, start, count))
            self.engine.commit(range(rows))
            labels.append([values.copy() for values in results.outputs.values()])
            tokens.append(results.tokens.copy())
        last = [self.engine.extract(row) for row in range(rows)]
        states = [np.stack([state[name] for state in last]) for name in last[0]]
        steps = [np.concatenate(values, axis=1) for values in (*zip(*labels, strict=True), tokens) if values]
        return [values.tobytes() for values in (*states, *steps)]

    def _chunk(self, rows: int, start: int, count: int) -> Chunk:
        inputs = {name: values[:rows, start : start + count] for name, values in self.trial.inputs.items()}
        ones, zeros = np.ones(rows, np.float32), np.zeros(rows, np.float32)
        every = np.full(rows, self.engine.vocabulary_size)
        return Chunk(inputs, np.full((rows, count), 0.5, np.float32), ones, every, ones, zeros)
