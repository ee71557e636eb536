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
from elman_protos import v1
from elman_protos.element_types import element_type
from elman_server.errors import EngineError, ModelLoadError

Feeds = dict[str, NDArray[Any]]

_STEPS = 64  # after which a count in the state that doubles at every step is as large as it can be
_ENOUGH_SECONDS = 0.2
_POSITIONS = 3  # of constants of variable length
_CHILDREN = 2  # of a node, where it may have any number


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
    session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Feeds, *, path: Path, seconds: float
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
    session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Feeds, limit: RunLimit
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


def step_feeds(bundle: Bundle, rows: int, generator: np.random.Generator, *, scale: float) -> Feeds:
    """Random inputs of a step.

    Args:
        bundle: the model.
        rows: the number of rows.
        generator: of the random numbers.
        scale: the standard deviation of numbers; with 0 everything, tokens included, is zero.

    Returns:
        By input name: any tokens, normally distributed numbers, and zeros or ones for integers that are no tokens.
    """
    step = bundle.spec.step
    feeds: Feeds = {}
    for given in step.inputs:
        size = bundle.vocabulary_spec(given.token.vocabulary).size if given.HasField("token") else 2
        feeds[given.name] = _values(given, rows, list(given.shape), generator, scale, size)
    for constant in step.constants:
        shape = [_POSITIONS, *constant.shape[1:]] if constant.variable_length else list(constant.shape)
        feeds[constant.name] = _values(constant, rows, shape, generator, scale)
    for state in step.states:
        children = [step.tree.child_count or _CHILDREN] if step.HasField("tree") else []
        feeds[state.input_name] = _values(state, rows, [*children, *state.shape], generator, scale)
    return feeds


def _values(
    spec: v1.InputSpec | v1.ConstantSpec | v1.StateSpec,
    rows: int,
    shape: list[int],
    generator: np.random.Generator,
    scale: float,
    below: int = 2,
) -> NDArray[Any]:
    """Random numbers with the rows on their axis; integers are less than `below`."""
    whole = [*shape[: spec.row_axis], rows, *shape[spec.row_axis :]]
    kind = element_type(spec.data_type)
    if kind.is_integer:
        return generator.integers(below if scale else 1, size=whole).astype(kind.dtype)
    return (scale * generator.standard_normal(whole)).astype(kind.dtype)
