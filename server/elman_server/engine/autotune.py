"""Start-up calibration: run what requests are likely to need, and measure which way is fastest on this machine."""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from elman_protos.element_types import element_type
from elman_server.engine.agreement import settle_steps
from elman_server.engine.interface import DEFAULT_OUTPUTS, Chunk, OutputSelection
from elman_server.engine.onnx import OnnxEngine
from elman_server.engine.threads import run_concurrently

# What requests often select beyond tokens and labels.
_LIKELY = (OutputSelection(logits=True), OutputSelection(log_probabilities=True))
_DISTURBANCE_BYTES = 2**21


def autotune(engine: OnnxEngine) -> None:
    """Run every likely batch size, so that no request pays for first-time work, and find out how to divide rows among
    threads and how many steps one run may take.

    Args:
        engine: a new engine; its rows hold no sequences.
    """
    Autotuner(engine).tune()


class Autotuner:
    """Calibrates one engine.

    Args:
        engine: a new engine.
    """

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self._policy = engine.policy
        self._run_seconds = engine.run_seconds
        # Powers of two, and the capacity.
        powers = [2**power for power in range((engine.capacity - 1).bit_length())]
        self._sizes = [*powers, engine.capacity]

    def tune(self) -> None:
        """Warm up and measure."""
        engine = self._engine
        engine.fill_with_example()
        seconds = self._best_time(1)
        counts = self._policy.step_counts[1:] if engine.spec.inputs else ()
        fits = bool(counts) and counts[0] * seconds <= self._run_seconds
        several = settle_steps(engine, counts[0] if fits else 1)
        engine.fill_with_example()
        if engine.thread_count > 1:
            with _disturbance():
                self._divide_rows()
        step_seconds = self._warm_up_single_steps() if self._policy.warm_up else {}
        for count in counts if several else ():
            if count * seconds > self._run_seconds:
                break
            engine.allow_steps(count)
            # Larger batches will not run as many steps in one run.
            self._warm_up(count, [size for size in step_seconds if count * step_seconds[size] < 2 * self._run_seconds])
            seconds = min(seconds, self._best_time(count) / count)

    def _warm_up_single_steps(self) -> dict[int, float]:
        """Returns the seconds of a step by batch size."""
        step_seconds = {size: self.time(size, 1) for size in self._sizes}
        self._warm_up_filters(1, self._sizes)
        for selection in _LIKELY if self._engine.generates else ():
            for size in self._sizes_by_partitions(self._sizes):
                self.time(size, 1, selection=selection)
        return step_seconds

    def _warm_up(self, count: int, sizes: list[int]) -> None:
        for size in sizes:
            self.time(size, count)
        self._warm_up_filters(count, sizes)

    def time(
        self,
        size: int,
        count: int,
        *,
        runs: int = 2,
        filtered: bool = False,
        selection: OutputSelection = DEFAULT_OUTPUTS,
    ) -> float:
        """Returns the seconds of a run of `count` steps of `size` rows, without the first run, which may have
        first-time work to do.

        Args:
            size: the number of rows.
            count: the number of steps.
            runs: how often it runs, twice at least: state is read from either buffer.
            filtered: whether rows sample from their most probable tokens only.
            selection: what the runs return beyond tokens and labels.
        """
        chunk = self._chunk(size, count, filtered, selection)
        ranges, seconds = self._engine.partitions.ranges(size), list[float]()

        def run(number: int, rows: range, times: int) -> None:
            part, started = chunk.part(rows), time.perf_counter()
            for _ in range(times):
                self._engine.run(rows, part, partition=number if len(ranges) > 1 else None)
                self._engine.commit(rows)
            seconds.append((time.perf_counter() - started) / times)

        with ThreadPoolExecutor() as executor:
            with self._engine.run_limit.within(self._policy.warm_up_seconds):
                run_concurrently(executor, [partial(run, number, rows, 1) for number, rows in enumerate(ranges)])
            seconds.clear()
            run_concurrently(executor, [partial(run, number, rows, runs - 1) for number, rows in enumerate(ranges)])
        return float(np.mean(seconds))  # A partition does not wait for the others.

    def _chunk(self, size: int, count: int, filtered: bool, selection: OutputSelection) -> Chunk:
        inputs = {
            given.name: np.zeros((size, count, *given.shape), element_type(given.data_type).dtype)
            for given in self._engine.spec.inputs
        }
        ones, zeros = np.ones(size, np.float32), np.zeros(size, np.float32)
        top_k = np.full(size, 1 if filtered else self._engine.vocabulary_size)
        return Chunk(inputs, np.zeros((size, count), np.float32), ones, top_k, ones, zeros, filtered, selection)

    def _best_time(self, count: int) -> float:
        return min(self.time(1, count) for _ in range(self._policy.calibration_runs))

    def _warm_up_filters(self, count: int, sizes: list[int]) -> None:
        """The same for rows with top-k, top-p or min-p: once for every way to divide rows."""
        if self._engine.generates and count <= self._policy.filtered_step_limit:
            for size in self._sizes_by_partitions(sizes):
                self.time(size, count, filtered=True)

    def _sizes_by_partitions(self, sizes: list[int]) -> list[int]:
        """One of the batch sizes for every number of partitions."""
        return list({self._engine.partitions.count(size): size for size in sizes}.values())

    def _divide_rows(self) -> None:
        """Find the batch sizes at which threads with rows of their own are faster."""
        policy, partitions, threads = self._policy, self._engine.partitions, self._engine.thread_count
        divided = False
        for size in self._sizes:
            if size < threads:
                continue
            step_seconds = self.time(size, 1)
            fitting = [count for count in policy.step_counts if count * step_seconds <= self._run_seconds]
            count = min(policy.partition_trial_steps, max(fitting, default=1))
            if count * step_seconds < policy.partition_least_run_seconds:
                continue
            # The smallest size that is divided is measured twice: one bad moment would divide rows that are faster
            # together.
            divided = all(self._is_faster_divided(size, count) for _ in range(1 if divided else 2))
            partitions.set(size, threads if divided else 1)

    def _is_faster_divided(self, size: int, count: int) -> bool:
        policy, partitions, threads = self._policy, self._engine.partitions, self._engine.thread_count
        seconds: dict[int, list[float]] = {1: [], threads: []}
        for _ in range(policy.partition_trials):  # Alternating: the rest of the machine disturbs both alike.
            for number, measured in seconds.items():
                partitions.set(size, number)
                measured.append(self.time(size, count, runs=policy.partition_trial_runs))
        together, divided = (float(np.median(measured)) for measured in seconds.values())
        return policy.partition_speedup * divided < together


@contextlib.contextmanager
def _disturbance() -> Iterator[None]:
    """Occupy a core for a tenth of the time, as the event loop does when it serializes responses. On an idle machine
    the two ways to use the threads differ by less than the noise."""
    over = threading.Event()

    def disturb() -> None:
        block = bytes(_DISTURBANCE_BYTES)
        while not over.is_set():
            started = time.perf_counter()
            zlib.crc32(block)  # Does not hold the interpreter.
            over.wait(9 * (time.perf_counter() - started))

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
