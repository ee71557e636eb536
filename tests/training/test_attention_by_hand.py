"""Attention (Bahdanau et al. 2015, section 3.1) computed in numpy, one source at a time, compared with torch and the
exported graphs on padded batches.

Axes: S positions of a source, M features of the memory, A of the comparison, H hidden units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.support.cells import gru_step, sigmoid, weights_of
from tests.support.encoder_models import LETTERS, BothWays, Translator, translator_bundle
from tests.support.reference import open_graph

Array = NDArray[np.float64]


def matrix(layer: nn.Linear | nn.Embedding) -> Array:
    return layer.weight.detach().numpy().astype(np.float64)


def vector(layer: nn.Linear) -> Array:
    return layer.bias.detach().numpy().astype(np.float64)


def read_one_way(layer: nn.GRU, features: Array) -> Array:
    """Run a GRU from a zero state, [S, X] to [S, H], by the equations of Cho et al. 2014 in torch's form."""
    w, u, b, c = (parameter.detach().numpy().astype(np.float64) for parameter in layer.parameters())
    hidden, shown = np.zeros(layer.hidden_size), []
    for value in features:
        projected, kept = np.split(w @ value + b, 3), np.split(u @ hidden + c, 3)
        reset, update = sigmoid(projected[0] + kept[0]), sigmoid(projected[1] + kept[1])
        candidate = np.tanh(projected[2] + reset * kept[2])
        hidden = (1 - update) * candidate + update * hidden
        shown.append(hidden)
    return np.stack(shown)


def memory_by_hand(reader: BothWays, source: NDArray[np.int64]) -> Array:
    """Return the bidirectional features of each position, [S, M]."""
    features = matrix(reader.embedding)[source]
    back = read_one_way(reader.backwards, features[::-1])[::-1]
    return np.concatenate([read_one_way(reader.forwards, features), back], axis=1)


def attend(query: Array, keys: Array, memory: Array, v: Array) -> tuple[Array, Array]:
    """e_j = v tanh(W s + U h_j), a = softmax(e), c = sum of a_j h_j.

    Args:
        query: W s, [A].
        keys: U h, [S, A].
        memory: h, [S, M].
        v: [A].

    Returns:
        The context [M] and the weights [S].
    """
    scores = np.tanh(query + keys) @ v
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights @ memory, weights


def logits_by_hand(module: Translator, source: NDArray[np.int64], tokens: list[int]) -> Array:
    """Return the logits after each token, [tokens, V]."""
    memory = memory_by_hand(module.reader, source)
    keys = memory @ matrix(module.keys).T + vector(module.keys)
    state = {"hidden": np.tanh(matrix(module.start) @ memory[0] + vector(module.start))[None]}
    shown = []
    for token in tokens:
        state = dict(gru_step(weights_of(module.cell), matrix(module.embedding)[token][None], state))
        hidden = state["hidden"][0]
        context, weights = attend(matrix(module.query) @ hidden, keys, memory, matrix(module.score)[0])
        assert weights.sum() == pytest.approx(1)
        shown.append(matrix(module.head) @ np.concatenate([hidden, context]) + vector(module.head))
    return np.stack(shown)


def test_torch_and_exported_graphs_match_the_paper() -> None:
    module, tokens = Translator().eval(), [1, 4, 9, 3, 3]
    bundle = translator_bundle()
    sources = [LETTERS.encode(word) for word in ("jordan", "a", "the serial order of behavior")]
    expected = [logits_by_hand(module, source, tokens) for source in sources]
    lengths = np.array([len(source) for source in sources])
    padded = np.zeros((3, lengths.max()), np.int64)
    for row, source in enumerate(sources):
        padded[row, : len(source)] = source

    with torch.no_grad():
        constants, state = module.encode(torch.from_numpy(padded), torch.from_numpy(lengths))
        for step, token in enumerate(tokens):
            outputs, state = module.step({"token": torch.full((3,), token)}, constants, state)
            for row in range(3):
                assert outputs["logits"][row].numpy() == pytest.approx(expected[row][step], abs=1e-4)

    encoder = open_graph(bundle.encoder_path)
    graph = open_graph(bundle.graph_path)
    names = [output.name for output in encoder.get_outputs()]
    result = encoder.run(names, {"source": padded, "lengths": lengths})
    kept: dict[str, Any] = dict(zip(names, result, strict=True))
    for step, token in enumerate(tokens):
        logits, kept["state.hidden"] = graph.run(["logits", "next.hidden"], {"token": np.full(3, token), **kept})
        for row in range(3):
            assert logits[row] == pytest.approx(expected[row][step], abs=1e-4)
