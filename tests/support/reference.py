"""Reference results without a server: one sequence in a plain onnxruntime loop, with sampling in numpy."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from elman_bundle import Bundle, load_bundle
from elman_server.decoding.randomness import UniformStream


def open_graph(graph: Path | bytes) -> onnxruntime.InferenceSession:
    """Return a session of a graph, from a file or serialized, that takes no second core from other tests."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def choose_token(
    logits: NDArray[np.floating],
    temperature: float,
    uniform: float,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> int:
    """Choose a token from logits [V], in double precision.

    At temperature 0, the largest logit wins, and the first of equal ones. Otherwise the token is sampled by the inverse
    of the cumulative distribution, in the order of the ids, or with top_k, top_p or min_p in the order of probability.
    """
    values = logits.astype(np.float64)
    if temperature == 0:
        return int(values.argmax())
    weights = np.exp((values - values.max()) / temperature)
    order = np.arange(len(values))
    if top_k is not None or top_p < 1 or min_p:
        order = np.argsort(-values, kind="stable")[:top_k]
        before = weights[order].cumsum() - weights[order]
        order = order[before < top_p * weights[order].sum()]
        order = order[weights[order] >= min_p]
    cumulative = weights[order].cumsum()
    return int(order[np.flatnonzero(cumulative > uniform * cumulative[-1])[0]])


def read_alone(bundle: Bundle, ids: list[int]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Run tokens from a zero initial state.

    Returns:
        The outputs by name and the states by input name, after every step, [steps, *shape].
    """
    session = open_graph(bundle.graph_path)
    step = bundle.spec.step
    outputs = [output.name for output in step.outputs]
    state = {spec.input_name: np.zeros((1, *spec.shape), np.float32) for spec in step.states}
    shown: dict[str, list[Any]] = {name: [] for name in [*outputs, *state]}
    for token in ids:
        values = session.run(
            [*outputs, *(spec.output_name for spec in step.states)], {"token": np.array([token]), **state}
        )
        state = dict(zip(state, values[len(outputs) :], strict=True))
        for name, value in zip(shown, values, strict=True):
            shown[name].append(value[0])
    result = {name: np.stack(values) for name, values in shown.items()}
    return {name: result[name] for name in outputs}, {name: result[name] for name in state}


def generate_alone(
    bundle: Bundle,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> str:
    """Return the continuation of `prompt` by `bundle`."""
    return _generate_alone(bundle.path, prompt, max_tokens, temperature, seed, top_k, top_p)


@cache  # Tests of every store compare with the same texts, some of them long.
def _generate_alone(
    path: Path, prompt: str, max_tokens: int, temperature: float, seed: int, top_k: int | None, top_p: float
) -> str:
    bundle = load_bundle(path)
    session = open_graph(bundle.graph_path)
    vocabulary = bundle.text_vocabulary("text")
    state = {spec.input_name: np.zeros((1, *spec.shape), np.float32) for spec in bundle.spec.step.states}
    names = ["logits", *[spec.output_name for spec in bundle.spec.step.states]]
    forced = vocabulary.encode(prompt).tolist()
    uniforms = UniformStream(seed).take(len(forced), max_tokens)
    tokens: list[int] = []
    for position in range(len(forced) + max_tokens - 1):
        token = forced[position] if position < len(forced) else tokens[-1]
        logits, *after = session.run(names, {"token": np.array([token]), **state})
        state = dict(zip(state, after, strict=True))
        if position >= len(forced) - 1:
            logits[:, list(bundle.ungenerated_ids("text"))] = -np.inf
            tokens.append(choose_token(logits[0], temperature, uniforms[len(tokens)], top_k, top_p))
    return vocabulary.decoder().decode(tokens, final=True)
