"""Sequences that run step by step: each has a row of the engine, a beam search has several.

Forced and free steps share a batch, rows join and leave between iterations, and rows in use are kept compact. Work that
most iterations do for most rows is done for all of them at once, in numpy: after a run the caches hold the weights, so
that it takes some percent of the run's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Several
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from elman_server.engine import DEFAULT_OUTPUTS, Chunk, Engine, Results
from elman_server.errors import EngineError
from elman_server.scheduling.compaction import RowStore, compact
from elman_server.scheduling.costs import StepCosts
from elman_server.scheduling.events import (
    BeamsFinished,
    Event,
    Failed,
    Finished,
    FinishReason,
    Snapshot,
    TokenReport,
)
from elman_server.scheduling.interface import INTERNAL, MODEL_FAILED, Emission
from elman_server.scheduling.isolation import engine_error, log_defect, try_each
from elman_server.scheduling.policy import SchedulingPolicy
from elman_server.scheduling.rows.choices import Choices
from elman_server.scheduling.rows.emissions import defect_end, new_tokens
from elman_server.scheduling.rows.encoding import encode_sources
from elman_server.scheduling.rows.endings import DEFECT, Ending, Endings
from elman_server.scheduling.rows.execution import Execution, ModelOutput
from elman_server.scheduling.rows.host_sampler import HostSampler, reports_of
from elman_server.scheduling.rows.inputs import RowInputs
from elman_server.scheduling.rows.pending import PendingTokens
from elman_server.scheduling.rows.planning import Planner, Prefill, Schedule
from elman_server.scheduling.rows.preemption import RowPreemption
from elman_server.scheduling.rows.release import release
from elman_server.scheduling.rows.search import BeamRows
from elman_server.scheduling.rows.table import Progress, RowTable
from elman_server.scheduling.sequence import Beams, Generation, Reading, Sequence

_log = structlog.get_logger(__name__)


class RowBatch:
    """The running sequences that have rows; implements `RunningBatch`.

    It is long because all that an iteration does with rows is in one place, each part guarded by itself.

    Args:
        name: the model's name, for the log.
        engine: runs the steps; its rows are these.
        policy: the thresholds.
        input_name: the step's input that sequences force or feed back; None if the step has no inputs.
        vocabulary_size: of the generated tokens; 0 if the model generates none.
        forbidden_tokens: the tokens that are never generated.
        label_output: the output that readings return unless they name another; None if the model has none.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        policy: SchedulingPolicy,
        *,
        input_name: str | None,
        vocabulary_size: int,
        forbidden_tokens: Several[int] = (),
        label_output: str | None,
    ) -> None:
        self._name = name
        self._engine = engine
        self._policy = policy
        self._label_output = label_output
        self._costs = StepCosts(policy)
        self._table = table = RowTable(engine.capacity, vocabulary_size)
        self._pending = PendingTokens(table, engine.capacity)
        self._inputs = RowInputs(table, engine.capacity, input_name)
        self._host = HostSampler(name, policy, vocabulary_size, forbidden_tokens)
        self._stores: tuple[RowStore, ...] = (self._inputs, self._pending, self._host, engine)
        self._planner = Planner(engine, policy, self._costs, table, self._pending, self._inputs)
        self._endings = Endings(name, table)
        self._beams = BeamRows(name, engine, table, self._inputs, self._host, forbidden_tokens)
        self._preemption = RowPreemption(
            name, engine, table, self._pending, self._inputs, self._host, self._stores, self.fail
        )
        self._single_steps = 0  # how many are still to be run one by one, because a run of several failed
        self._executor = ThreadPoolExecutor(thread_name_prefix=f"partitions {name}")

    @property
    def capacity(self) -> int:
        return self._engine.capacity

    def __len__(self) -> int:
        return len(self._table)

    @property
    def sequences(self) -> Several[Sequence]:
        return self._table.sequences

    @property
    def preemption(self) -> RowPreemption:
        return self._preemption

    @property
    def free(self) -> int:
        return self._engine.capacity - len(self._table) - self._table.reserved

    def admit(self, sequences: list[Sequence]) -> list[Emission]:
        encode_sources(self._name, self._engine, sequences)
        emissions: list[Emission] = []
        for sequence in sequences:
            source = sequence.source
            if source is not None and source.encoded is None:
                sequence.is_finished = True
                emissions.append((sequence.receiver, Failed(source.failure or MODEL_FAILED)))
                continue
            try:
                if sequence.preempted is None:
                    self._append(sequence)
                else:
                    self._preemption.resume(sequence)
            except Exception:
                log_defect(self._name)
                emissions.append(defect_end(sequence))
        return emissions

    def _append(self, sequence: Sequence) -> None:
        """Give a sequence a row; if that fails, nothing has changed."""
        row, encoded = len(self._table), sequence.source.encoded if sequence.source else None
        try:
            self._table.append(sequence)
            self._inputs.append(row, sequence)
            self._host.append(row, sequence)
            # Always written: the row still holds the state of its last sequence.
            self._engine.insert(row, sequence.state, encoded)
        except Exception:
            compact(range(row, len(self._table)), len(self._table), self._table, self._stores)
            raise

    def pending(self) -> dict[Sequence, Future[Any]]:
        return {self._table.sequences[row]: work for row, work in self._host.pending().items()}

    def schedule(self, others_wait: bool) -> Schedule | Prefill:
        if self._single_steps:
            self._single_steps -= 1
            return self._planner.single_step(others_wait)
        try:
            return self._planner.plan(others_wait)
        except Exception:  # Planning changes nothing.
            log_defect(self._name)
            return self._planner.single_step(others_wait)

    def run(self, schedule: Schedule | Prefill, interrupted: Callable[[], bool]) -> ModelOutput | None:
        if isinstance(schedule, Prefill):
            self._prefill(schedule)
            return None
        self._host.prepare(self._table.rows_needing_logits(schedule.count))
        execution = Execution(self._engine, self._costs, schedule, interrupted, self._table.end_tokens)
        output = execution.run(self._executor)
        if output is None:
            self._single_steps = schedule.count
        return output

    def update(self, schedule: Schedule | Prefill, output: ModelOutput | None, *, aborted: bool) -> list[Emission]:
        if output is None or isinstance(schedule, Prefill):
            return self._release(set(), aborted=aborted)
        self._single_steps = max(self._single_steps, output.failed_count)
        progress = self._table.progress(output.counts)
        rows = self._table.rows_needing_logits(schedule.count)
        results, choices = self._sample(rows, schedule.chunk, output)
        endings = self._endings.find(progress, results, output.failures, choices)
        endings |= dict.fromkeys(self._inputs.defective, DEFECT)
        branchings = self._beams.advance(rows, results, endings)
        self._replay(schedule.chunk, output, results, endings)
        for committed in output.uncommitted:
            self._engine.commit(committed)
        self._table.advance(output.counts, results.tokens)
        self._collect(progress, results, endings)
        emissions = self._due_events(progress, endings)
        try:
            surplus, failed = self._beams.branch(branchings)
            emissions += [defect_end(beams) for beams in failed]
            return emissions + self._release({*endings, *surplus}, aborted=aborted)
        except Exception:  # What is due is emitted nevertheless.
            log_defect(self._name)
            return emissions + self.fail(INTERNAL)

    def _release(self, leaving: set[int], *, aborted: bool) -> list[Emission]:
        """Free rows, and those of aborted sequences; returns the ends of those that fail by it."""
        if aborted:
            leaving |= {row for row, sequence in enumerate(self._table.sequences) if sequence.aborted}
        return release(leaving, self._table, self._stores)

    def record_emission(self, count: int, seconds: float) -> None:
        self._costs.record_emission(count, seconds)

    def fail(self, error: Exception) -> list[Emission]:
        emissions: list[Emission] = []
        for row, sequence in enumerate(self._table.sequences):
            if sequence.aborted or sequence.is_finished:
                continue
            try:
                tokens = self._pending.take(row, 0.0, 0.0)
                if tokens:
                    emissions.append(new_tokens(sequence, tokens))
            except Exception:
                log_defect(self._name)
            sequence.is_finished = True  # A search has several rows.
            emissions.append((sequence.receiver, Failed(error)))
        self._table.clear()
        try_each(self._name, range(self.capacity), self._host.release)
        return emissions

    def _prefill(self, prefill: Prefill) -> None:
        started = time.perf_counter()
        try:
            self._engine.prefill(prefill.rows, self._inputs.prefill(prefill.rows, prefill.count))
        except Exception as error:
            engine_error(error)
            self._single_steps = 1  # The row that fails is found when it runs with the others.
            return
        self._costs.record_prefill(len(prefill.rows), prefill.count, time.perf_counter() - started)
        self._table.records["position"][prefill.rows.start : prefill.rows.stop] += prefill.count

    def _sample(self, rows: list[int], chunk: Chunk, output: ModelOutput) -> tuple[Results, Choices | None]:
        """Choose the tokens that are chosen on the host, and report log-probabilities.

        Returns:
            The results with the chosen tokens, and what was chosen, if anything.
        """
        results = output.results
        generations = {
            row: sequence
            for row in rows
            if isinstance(sequence := self._table.sequences[row], Generation) and row not in output.failures
        }
        if not generations:
            return results, None
        assert results.logits is not None
        tokens, choices = results.tokens.copy(), None
        choosing = [row for row, generation in generations.items() if generation.params.needs_logits]
        if choosing:
            choices = self._choose(choosing, results.logits[choosing], chunk.uniforms[choosing, -1])
            tokens[choosing, -1] = choices.tokens
        counts = {row: one.report_count for row, one in generations.items() if one.report_count is not None}
        if counts:
            reporting = list(counts)
            reports = self._reports(results.logits[reporting], tokens[reporting, -1], list(counts.values()))
            for row, report in zip(reporting, reports, strict=True):
                if report is not None:
                    generations[row].reports.append(report)
                    continue
                choices = choices or Choices(tokens[:, -1], {}, [], [])
                choices.errors[row] = INTERNAL
        return replace(results, tokens=tokens), choices

    def _choose(self, rows: list[int], logits: NDArray[np.float32], uniforms: NDArray[np.float32]) -> Choices:
        try:
            return self._host.choose(rows, logits, uniforms)
        except Exception:
            log_defect(self._name)
            return Choices(np.zeros(len(rows), np.int64), dict.fromkeys(rows, INTERNAL), [], [])

    def _reports(
        self, logits: NDArray[np.float32], tokens: NDArray[np.int64], counts: list[int]
    ) -> Several[TokenReport | None]:
        """The log-probabilities of chosen tokens, [R]; None where a row has met a defect."""
        try:
            return reports_of(logits, tokens, counts)
        except Exception:
            alone, _ = try_each(
                self._name,
                range(len(counts)),
                lambda row: reports_of(logits[row : row + 1], tokens[row : row + 1], [counts[row]])[0],
            )
            return [alone.get(row) for row in range(len(counts))]

    def _replay(self, chunk: Chunk, output: ModelOutput, results: Results, endings: dict[int, Ending]) -> None:
        """Bring rows that finished before their last step, and whose state is kept, to where they finished."""
        for row, ending in endings.items():
            sequence = self._table.sequences[row]
            kept = sequence.keep_state and not sequence.aborted and ending.error is None
            if kept and ending.kept_steps < output.counts[row]:
                committed = int(output.committed[row])
                try:
                    inputs = self._inputs.replay(row, chunk, results.tokens, committed, ending.kept_steps)
                    self._engine.replay(row, inputs)
                except EngineError as failure:
                    _log.error("replay failed", model=self._name, steps=ending.steps, error=str(failure))
                    endings[row] = Ending(ending.steps, ending.tokens, error=MODEL_FAILED)
                except Exception:
                    log_defect(self._name)
                    endings[row] = DEFECT

    def _collect(self, progress: Progress, results: Results, endings: dict[int, Ending]) -> None:
        """Give generations their tokens and readings their outputs."""
        table = self._table
        for row, ending in endings.items():
            progress.gained[row] = ending.tokens
        if results.tokens.size:
            self._pending.add(progress, results.tokens)
        if table.count(Reading) and (self._label_output is not None or table.selection != DEFAULT_OUTPUTS):
            for row, sequence in enumerate(table.sequences):
                steps = endings[row].steps if row in endings else int(progress.counts[row])
                if isinstance(sequence, Reading) and steps:
                    try:
                        sequence.show(results, row, steps, self._label_output, last=row in endings)
                    except Exception:
                        log_defect(self._name)
                        endings[row] = DEFECT

    def _due_events(self, progress: Progress, endings: dict[int, Ending]) -> list[Emission]:
        """The events of rows whose tokens or whose snapshot are due, or that finish."""
        table, pending, now = self._table, self._pending, time.perf_counter()
        interval = self._policy.flush_interval(len(table), self._costs.emission_seconds(len(table)))
        snapshots = set(np.flatnonzero(table.records["position"] >= table.records["snapshot_at"]).tolist())
        longest_run = self._engine.step_counts_for(False, DEFAULT_OUTPUTS)[-1]
        due = {*pending.due_rows(now, longest_run), *snapshots, *endings}
        emissions: list[Emission] = []
        # Writing to all takes a while, and a row that waits for its first token has been due for the longest.
        for row in sorted(due, key=table.records["due"].__getitem__):
            sequence = table.sequences[row]
            try:
                tokens = pending.take(row, now, interval)
                if sequence.aborted or sequence.is_finished:
                    continue
                if tokens:
                    emissions.append(new_tokens(sequence, tokens))
                if row in snapshots and row not in endings:
                    emissions.append((sequence.receiver, Snapshot(table.take_snapshot(row), self._engine.extract(row))))
                if row in endings:
                    event = self._last_event(row, sequence, endings[row], int(progress.position[row]))
                    sequence.is_finished = True
                    emissions.append((sequence.receiver, event))
            except Exception:
                log_defect(self._name)
                endings[row] = DEFECT
                emissions.append(defect_end(sequence))
        return emissions

    def _last_event(self, row: int, sequence: Sequence, ending: Ending, position: int) -> Event:
        if ending.error is not None:
            return Failed(ending.error)
        state = self._engine.extract(row) if sequence.keep_state else None
        if isinstance(sequence, Reading):
            return sequence.finished(state)
        if isinstance(sequence, Beams):
            assert sequence.search is not None
            cut_short = ending.reason is FinishReason.TIME_LIMIT
            return BeamsFinished(tuple(sequence.search.results()), cut_short, sequence.step_count, sequence.started_at)
        assert ending.reason is not None
        steps = position + ending.steps - sequence.position
        return Finished(ending.reason, position + ending.kept_steps, state, steps, sequence.started_at)
