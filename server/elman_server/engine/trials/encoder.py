"""Trial runs of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_bundle import Bundle
from elman_server.engine.interface import Arrays
from elman_server.engine.trials.graph import TrialGraph, TrialOutput
from elman_server.engine.trials.rows import check_loud_neighbours, check_neighbours, check_rounding
from elman_server.engine.trials.step import random_sources

_SEED = 8


def try_encoder(bundle: Bundle, path: Path, session: onnxruntime.InferenceSession, seconds: float) -> None:
    """Check that the results for a source depend neither on other sources nor on padding.

    Args:
        bundle: a bundle with an encoder.
        path: the file of its graph.
        session: a session on it, on the CPU.
        seconds: how long a run may take.

    Raises:
        ModelLoadError: they do, or an output is not what the manifest says.
        EngineError: onnxruntime failed.
    """
    step, encoder = bundle.spec.step, bundle.spec.encoder
    outputs = {
        constant.name: TrialOutput([None, *constant.shape[1:]] if constant.variable_length else constant.shape)
        for constant in step.constants
    }
    outputs |= {
        state.input_name: TrialOutput(state.shape, state.row_axis) for state in step.states if state.HasField("encoded")
    }
    graph = TrialGraph(path, session, seconds, outputs)
    random = np.random.default_rng(_SEED)
    first, second = (random_sources(bundle, random) for _ in range(2))

    def feeds(sources: Sequence[NDArray[Any]]) -> Arrays:
        lengths = np.array([len(source) for source in sources])
        padded = np.zeros((len(sources), lengths.max(), *sources[0].shape[1:]), sources[0].dtype)
        for row, source in enumerate(sources):
            padded[row, : len(source)] = source
        return {encoder.input.name: padded, encoder.length_name: lengths}

    batch, _ = check_neighbours(graph, feeds(first), feeds(second))
    check_loud_neighbours(graph, feeds(first), feeds(second))
    variable = {constant.name for constant in step.constants if constant.variable_length}
    alone = [graph.run(feeds([source])) for source in first]

    def flat(name: str, rows: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """The results for all sources, without those for padding."""
        parts = [row[: len(source)] if name in variable else row for row, source in zip(rows, first, strict=True)]
        return np.concatenate([part.ravel() for part in parts])

    check_rounding(
        graph,
        {name: flat(name, [values[name][0] for values in alone]) for name in outputs},
        {name: flat(name, list(batch[name])) for name in outputs},
        "the number or the padding of sources",
    )
