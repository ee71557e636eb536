"""Runs of a graph before it is served: on random inputs, and no longer than a limit.

A graph that others made may loop for ever. onnxruntime looks at a flag of the run between two nodes, also between those
of a loop's body, so a run can be ended from another thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_server.engine.interface import Arrays
from elman_server.engine.trials.inputs import step_feeds
from elman_server.errors import EngineError, ModelLoadError

_STEPS = 64  # after which a count in the state that doubles at every step is as large as it can be
_ENOUGH_SECONDS = 0.2


class RunLimit:
    """Ends runs that take too long, while a model is loaded.

    Args:
        path: the graph, for the error.

    Attributes:
        options: the options of runs that can be ended.
        current: the same within a block with a limit, otherwise None: onnxruntime takes some 50 microseconds longer for
            a run with bound buffers and options.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._exceeded = False
        self.options = onnxruntime.RunOptions()
        self.current: onnxruntime.RunOptions | None = None
        self._options = [self.options]

    def captured_options(self, number: int) -> onnxruntime.RunOptions:
        """Options of runs that are captured as, and then replayed from, the CUDA graph `number`; -1: not captured."""
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        options.terminate = self._exceeded
        self._options.append(options)
        return options

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """End the runs of the block after a time.

        Args:
            seconds: how long the block may take.

        Raises:
            ModelLoadError: a run was ended.
        """
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()
        self.current = self.options
        try:
            yield
        except EngineError as error:
            if not self._exceeded:
                raise
            raise ModelLoadError(
                f"{self._path}: a trial run has no result after {seconds:g} seconds; a step has to end, whatever it "
                "reads. Look for a Loop with too many iterations"
            ) from error
        finally:
            timer.cancel()
            self.current = None

    def _end(self) -> None:
        self._exceeded = True
        for options in self._options:
            options.terminate = True


def run_limited(
    session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Arrays, *, path: Path, seconds: float
) -> list[NDArray[Any]]:
    """Run a graph once.

    Args:
        session: the graph.
        names: of the outputs.
        feeds: the inputs by name.
        path: the graph, for errors.
        seconds: how long it may take.

    Raises:
        ModelLoadError: it takes longer.
        EngineError: onnxruntime failed.
    """
    limit = RunLimit(path)
    with limit.within(seconds):
        return _run(session, names, feeds, limit)


def _run(
    session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Arrays, limit: RunLimit
) -> list[NDArray[Any]]:
    try:
        found: list[NDArray[Any]] = session.run(names, feeds, limit.options)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own.
        raise EngineError(str(error)) from error
    return found


def check_step_ends(bundle: Bundle, session: onnxruntime.InferenceSession, seconds: float) -> None:
    """Run some steps, each from the state after the one before.

    Args:
        bundle: the model.
        session: its step.
        seconds: how long they may take.

    Raises:
        ModelLoadError: they take longer.
    """
    states = bundle.spec.step.states
    feeds = step_feeds(bundle, 1, np.random.default_rng(0), scale=0)
    names = list(dict.fromkeys([state.output_name for state in states])) or [bundle.spec.step.outputs[0].name]
    steps = 1 if bundle.spec.step.HasField("tree") else _STEPS
    limit, started = RunLimit(bundle.graph_path), time.monotonic()
    # Constants of zeros are none that the encoder returns.
    with contextlib.suppress(EngineError), limit.within(seconds):
        for _ in range(steps):
            found = dict(zip(names, _run(session, names, feeds, limit), strict=True))
            feeds |= {state.input_name: found[state.output_name] for state in states}
            if time.monotonic() - started > _ENOUGH_SECONDS:
                break
