"""Generation worked out without a server: onnxruntime alone, one sequence, a plain loop."""

from __future__ import annotations

import numpy as np
import onnxruntime

from bundle import Bundle
from server.decoding import UniformStream, choose_tokens


def generate_alone(bundle: Bundle, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> str:
    """What `bundle` continues `prompt` with."""
    session = onnxruntime.InferenceSession(bundle.graph_path, providers=["CPUExecutionProvider"])
    step = bundle.spec.step
    vocabulary = bundle.text_vocabulary("text")
    state = {spec.input_name: np.zeros((1, *spec.shape), np.float32) for spec in step.states}
    names = ["logits", *[spec.output_name for spec in step.states]]
    uniforms = UniformStream(seed)
    forced = vocabulary.encode(prompt).tolist()
    tokens: list[int] = []
    position = 0
    while len(tokens) < max_tokens:
        token = forced[position] if position < len(forced) else tokens[-1]
        logits, *after = session.run(names, {"token": np.array([token]), **state})
        state = dict(zip(state, after, strict=True))
        position += 1
        if position >= len(forced):
            logits[:, vocabulary.unknown_id] = -np.inf
            chosen = choose_tokens(logits, np.array([temperature]), np.array([uniforms.at(position)]))
            tokens.append(int(chosen[0]))
    return vocabulary.decoder().decode(tokens, final=True)
