"""Reading sources: the encoder's graph, run once for a sequence, some of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bundle import Bundle
from server.engine.checking import check_encoder
from server.engine.errors import EngineError
from server.engine.interface import Encoded
from server.engine.providers import Opener
from server.engine.unrolling import DTYPES


class Encoder:
    """A bundle's encoder.

    Args:
        bundle: which has one.
        opener: opens sessions where the model is to run.

    Raises:
        ModelLoadError: the graph is rejected, or is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, opener: Opener) -> None:
        self._spec = bundle.spec.encoder
        path = bundle.encoder_path
        assert path is not None
        self._session: onnxruntime.InferenceSession = opener.open(path, path).session
        check_encoder(bundle, path, self._session)
        step = bundle.spec.step
        self._constants = {constant.name: constant.variable_length for constant in step.constants}
        self._states = [state.input_name for state in step.states if state.HasField("encoded")]
        self._dtype = DTYPES[self._spec.input.data_type]
        self._shape = tuple(self._spec.input.shape)

    def encode(self, sources: Sequence[NDArray[Any]]) -> list[Encoded]:
        """Read sources, [positions, *shape] each, side by side.

        Raises:
            EngineError: onnxruntime failed, or has made what it should not.
        """
        lengths = np.array([len(source) for source in sources], np.int64)
        padded = np.zeros((len(sources), int(lengths.max()), *self._shape), self._dtype)
        for row, source in enumerate(sources):
            padded[row, : len(source)] = source
        names = [*self._constants, *self._states]
        try:
            found = self._session.run(names, {self._spec.input.name: padded, self._spec.length_name: lengths})
        except Exception as error:  # onnxruntime's exceptions share no base class of their own.
            raise EngineError(f"the encoder failed: {error}") from error
        values = dict(zip(names, found, strict=True))
        for name, variable in self._constants.items():
            if variable and values[name].shape[1] < padded.shape[1]:
                raise EngineError(f"the encoder makes {name} of {values[name].shape[1]} of {padded.shape[1]} positions")
        return [self._row(values, row, length) for row, length in enumerate(lengths.tolist())]

    def _row(self, values: dict[str, NDArray[Any]], row: int, length: int) -> Encoded:
        # Copies: a view would keep the whole batch alive.
        return Encoded(
            {
                name: (values[name][row, :length] if variable else values[name][row]).copy()
                for name, variable in self._constants.items()
            },
            {name: values[name][row].copy() for name in self._states},
        )

    def example(self) -> NDArray[Any]:
        """A source of a likely length."""
        return np.zeros((min(self._spec.longest_source, 16), *self._shape), self._dtype)
