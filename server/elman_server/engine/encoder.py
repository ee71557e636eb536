"""The encoder of a model: its graph runs once per source, several sources in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_protos.element_types import element_type
from elman_server.engine.checking import check_encoder
from elman_server.engine.interface import Encoded
from elman_server.engine.policy import DEFAULT_ENGINE_POLICY, EnginePolicy
from elman_server.engine.providers import Opener
from elman_server.engine.trials.encoder import try_encoder
from elman_server.engine.trials.limits import RunLimit
from elman_server.errors import EngineError

_SHORT = 16  # positions; shorter sources count as this long when they are grouped
_MOST_POSITIONS = 4096  # of the sources of one run, padding included


class Encoder:
    """A bundle's encoder.

    Args:
        bundle: a bundle with an encoder.
        opener: opens sessions where the model runs.
        policy: the thresholds.

    Raises:
        ModelLoadError: the graph is rejected, or is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, opener: Opener, policy: EnginePolicy = DEFAULT_ENGINE_POLICY) -> None:
        self._spec = bundle.spec.encoder
        path = bundle.encoder_path
        assert path is not None
        opened = opener.open(path, path)
        self._session: onnxruntime.InferenceSession = opened.session
        self._cores = opened.cores
        check_encoder(bundle, path, self._session)
        on_cpu = opener.open_on_cpu(opened, path)
        if on_cpu is not None:
            try_encoder(bundle, path, on_cpu, policy.trial_run_seconds)
        step = bundle.spec.step
        self._constants = {constant.name: constant.variable_length for constant in step.constants}
        # By state input name, the axis of its rows in the graph's output.
        self._states = {state.input_name: state.row_axis for state in step.states if state.HasField("encoded")}
        self._shapes = {constant.name: tuple(constant.shape) for constant in step.constants}
        self._shapes |= {state.input_name: tuple(state.shape) for state in step.states}
        self._dtype = element_type(self._spec.input.data_type).dtype
        self._shape = tuple(self._spec.input.shape)
        self._limit = RunLimit(path)
        with self._limit.within(policy.trial_run_seconds):
            self.encode([self.example()])

    def encode(self, sources: Sequence[NDArray[Any]]) -> list[Encoded]:
        """Encode sources, [positions, *shape] each; sources of similar lengths share a run.

        Raises:
            EngineError: onnxruntime failed, or returned a shape that the manifest does not name.
        """
        encoded: dict[int, Encoded] = {}
        for places in _groups([len(source) for source in sources]):
            found = self._encode_together([sources[place] for place in places])
            encoded.update(zip(places, found, strict=True))
        return [encoded[place] for place in range(len(sources))]

    def _encode_together(self, sources: Sequence[NDArray[Any]]) -> list[Encoded]:
        lengths = np.array([len(source) for source in sources], np.int64)
        padded = np.zeros((len(sources), int(lengths.max()), *self._shape), self._dtype)
        for row, source in enumerate(sources):
            padded[row, : len(source)] = source
        names = [*self._constants, *self._states]
        try:
            with self._cores.pinned(0):
                feeds = {self._spec.input.name: padded, self._spec.length_name: lengths}
                found = self._session.run(names, feeds, self._limit.options)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own.
            raise EngineError(f"the encoder failed: {error}") from error
        values = dict(zip(names, found, strict=True))
        for name, value in values.items():
            values[name] = self._rows_first(name, value, padded.shape)
        return [self._row(values, row, length) for row, length in enumerate(lengths.tolist())]

    def _rows_first(self, name: str, value: NDArray[Any], padded: tuple[int, ...]) -> NDArray[Any]:
        """Compare the shape of an output with the manifest, for a graph need not declare it; return the output with its
        rows on axis 0."""
        shape, axis = list(self._shapes[name]), self._states.get(name, 0)
        if self._constants.get(name):
            shape[0] = padded[1]
        shape.insert(axis, padded[0])
        if value.shape != tuple(shape):
            raise EngineError(f"the encoder returned {name} of shape {value.shape}; the manifest says {tuple(shape)}")
        return np.moveaxis(value, axis, 0)

    def _row(self, values: dict[str, NDArray[Any]], row: int, length: int) -> Encoded:
        # Copied: a view would keep the whole batch alive.
        return Encoded(
            {
                name: (values[name][row, :length] if variable else values[name][row]).copy()
                for name, variable in self._constants.items()
            },
            {name: values[name][row].copy() for name in self._states},
        )

    def example(self) -> NDArray[Any]:
        """A source of a typical length."""
        return np.zeros((min(self._spec.longest_source, 16), *self._shape), self._dtype)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Group sources by length, so that little is padded and the size of a run is bounded: the longest of a group is at
    most twice as long as the shortest. Returns the indices of each group."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        group = groups[-1] if groups else []
        shortest = max(lengths[group[0]], _SHORT) if group else 0
        if group and lengths[place] <= 2 * shortest and (len(group) + 1) * lengths[place] <= _MOST_POSITIONS:
            group.append(place)
        else:
            groups.append([place])
    return groups
