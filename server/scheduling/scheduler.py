"""The loop: schedule -> step -> drop what was aborted meanwhile -> update and emit.

One thread per model runs it and owns the model's engine. Rows join and leave at every step, forced and free steps
share a batch, and the rows in use are kept compact. A failure belongs to one sequence, never to its batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from server.decoding import NO_TOKEN, choose_tokens
from server.engine import Engine, EngineError
from server.scheduling.errors import QueueFullError, SchedulerStoppedError, SequenceFailedError
from server.scheduling.sequence import Event, Failed, Finished, Generation, Reading, Receiver, Sequence, Tokens

Emission = tuple[Receiver, Event]
Deliver = Callable[[list[Emission]], None]
Outputs = dict[str, NDArray[Any]]

_log = structlog.get_logger(__name__)


class Scheduler:
    """Continuous batching of one model's sequences.

    Args:
        name: the model's, for the log.
        engine: runs the steps; from `start` on only this scheduler's thread touches it.
        input_name: the step's input that sequences force or feed back.
        token_output: the output that scores the next token; None if the model does not generate.
        label_output: the output that readings are shown; None if the model has none.
        forbidden_token: a token that is never generated.
        waiting_limit: how many sequences may wait for a row.
        deliver: takes what a step has brought, in order; called on the scheduler's thread.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        *,
        input_name: str,
        token_output: str | None,
        label_output: str | None,
        forbidden_token: int | None,
        waiting_limit: int,
        deliver: Deliver,
    ) -> None:
        self._name = name
        self._engine = engine
        self._input_name = input_name
        self._token_output = token_output
        self._label_output = label_output
        self._forbidden_token = forbidden_token
        self._waiting_limit = waiting_limit
        self._deliver = deliver
        # Shared with callers, under the lock.
        self._changed = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._stopped = False
        # The thread's own; the index is the engine's row.
        self._running: list[Sequence] = []
        self._thread = threading.Thread(target=self._run, name=f"scheduler {name}", daemon=True)

    def start(self) -> None:
        """Begin to run what is submitted."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop; sequences that wait or run fail with SchedulerStoppedError. Returns when the thread ended."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def submit(self, sequence: Sequence, *, always: bool = False) -> None:
        """Queue a sequence.

        Args:
            sequence: what is to run.
            always: take it however many wait; for a part of what was let in before.

        Raises:
            QueueFullError: too many wait already.
            SchedulerStoppedError: the scheduler has been stopped.
        """
        with self._changed:
            if self._stopped:
                raise SchedulerStoppedError
            # Those who will have a row at the next step are not waiting for one.
            free = self._engine.capacity - len(self._running)
            if not always and len(self._waiting) >= self._waiting_limit + free:
                raise QueueFullError
            self._waiting.append(sequence)
            self._changed.notify()

    def abort(self, sequence: Sequence) -> None:
        """Let a sequence go; it gets no further event. Harmless after its end. Its row is free after one step."""
        with self._changed:
            sequence.aborted = True
            if sequence in self._waiting:
                self._waiting.remove(sequence)

    @property
    def slot_count(self) -> int:
        return self._engine.capacity

    @property
    def waiting_limit(self) -> int:
        return self._waiting_limit

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._admit()
                outputs, failures = self._step()
                emissions, leaving = self._update(outputs, failures)
                self._release(leaving)
                self._deliver(emissions)
            except Exception:
                # A defect of ours: those who were running are told, and the server goes on.
                _log.exception("scheduling failed", model=self._name, running=len(self._running))
                self._fail(self._running, SequenceFailedError("internal error"))
        with self._changed:
            self._fail(self._waiting, SchedulerStoppedError())
        self._fail(self._running, SchedulerStoppedError())

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting or self._running)
            return not self._stopped

    def _admit(self) -> None:
        """Give free rows to those who wait, first come first served."""
        while len(self._running) < self._engine.capacity:
            with self._changed:
                if not self._waiting:
                    return
                sequence = self._waiting.popleft()
            self._running.append(sequence)
            # Always written: a row still holds what its last sequence left there.
            self._engine.insert(len(self._running) - 1, sequence.state)

    def _step(self) -> tuple[Outputs, dict[int, EngineError]]:
        """Take one step of every row; the outputs by name, and the rows that failed."""
        inputs = np.array([sequence.next_input for sequence in self._running])
        failures: dict[int, EngineError] = {}
        try:
            outputs = self._engine.step(range(len(self._running)), {self._input_name: inputs})
        except EngineError:
            outputs, failures = self._step_one_by_one(inputs)
        self._engine.commit()
        for sequence in self._running:
            sequence.position += 1
        return outputs, failures

    def _step_one_by_one(self, inputs: NDArray[Any]) -> tuple[Outputs, dict[int, EngineError]]:
        """A batch has failed: find out whose fault it is, so that the others go on."""
        outputs: Outputs = {}
        failures: dict[int, EngineError] = {}
        for row in range(len(inputs)):
            try:
                found = self._engine.step(range(row, row + 1), {self._input_name: inputs[row : row + 1]})
            except EngineError as error:
                failures[row] = error
                continue
            for name, values in found.items():
                outputs.setdefault(name, np.zeros((len(inputs), *values.shape[1:]), values.dtype))[row] = values[0]
        return outputs, failures

    def _update(self, outputs: Outputs, failures: dict[int, EngineError]) -> tuple[list[Emission], list[int]]:
        """Tell what the step has brought to whom, and which rows leave. Who was aborted meanwhile leaves silently."""
        emissions: list[Emission] = []
        leaving: list[int] = []
        choosing: list[int] = []
        for row, sequence in enumerate(self._running):
            if sequence.aborted:
                leaving.append(row)
            elif row in failures:
                _log.error("step failed", model=self._name, position=sequence.position, error=str(failures[row]))
                emissions.append((sequence.receiver, Failed(SequenceFailedError("the model failed on this input"))))
                leaving.append(row)
            elif isinstance(sequence, Reading):
                assert self._label_output is not None
                sequence.show(outputs[self._label_output][row])
                if sequence.is_done:
                    state = self._engine.extract(row) if sequence.keep_state else None
                    emissions.append((sequence.receiver, sequence.finished(state)))
                    leaving.append(row)
            elif isinstance(sequence, Generation) and sequence.chooses:
                choosing.append(row)
        for row, token in zip(choosing, self._choose(outputs, choosing), strict=True):
            ended = self._accept(row, token, emissions)
            if ended:
                leaving.append(row)
        return emissions, leaving

    def _choose(self, outputs: Outputs, rows: list[int]) -> list[int]:
        if not rows:
            return []
        assert self._token_output is not None
        logits = outputs[self._token_output][rows]
        if self._forbidden_token is not None:
            logits[:, self._forbidden_token] = -np.inf
        generations = [self._running[row] for row in rows]
        temperatures = np.array([generation.params.temperature for generation in generations])  # type: ignore[attr-defined]
        uniforms = np.array([generation.uniform for generation in generations])  # type: ignore[attr-defined]
        tokens: list[int] = choose_tokens(logits, temperatures, uniforms).tolist()
        return tokens

    def _accept(self, row: int, token: int, emissions: list[Emission]) -> bool:
        """Take a chosen token; tell whether the sequence ends with it."""
        generation = self._running[row]
        assert isinstance(generation, Generation)
        if token == NO_TOKEN:
            _log.error("no token can be chosen", model=self._name, position=generation.position)
            error = SequenceFailedError("the model's output is not finite, so no token can be chosen")
            emissions.append((generation.receiver, Failed(error)))
            return True
        reason = generation.accept(token)
        if token != generation.params.end_token:
            emissions.append((generation.receiver, Tokens((token,))))
        if reason is not None:
            emissions.append((generation.receiver, Finished(reason)))
        return reason is not None

    def _release(self, leaving: list[int]) -> None:
        """Free rows, the highest first, so that the last row in use can always fill the hole."""
        for row in sorted(leaving, reverse=True):
            last = len(self._running) - 1
            if row != last:
                self._engine.move(last, row)
                self._running[row] = self._running[last]
            self._running.pop()

    def _fail(self, sequences: deque[Sequence] | list[Sequence], error: Exception) -> None:
        emissions: list[Emission] = [
            (sequence.receiver, Failed(error)) for sequence in sequences if not sequence.aborted
        ]
        sequences.clear()
        self._deliver(emissions)
