"""A scan of steps equals the whole-sequence forward, for every cell and any depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elman_training.cells import CELLS
from elman_training.cells.stack import at_last_step
from elman_training.language.recurrent_network import RecurrentNetwork
from elman_training.task import pad

ALL = sorted(CELLS)


def network(cell: str, layers: int = 2) -> RecurrentNetwork:
    torch.manual_seed(0)
    made = RecurrentNetwork(cell=cell, tokens=11, outputs=7, layers=layers, embedding=5, hidden=9, dropout=0.5)
    return made.eval()


def random_state(model: RecurrentNetwork, rows: int) -> dict[str, torch.Tensor]:
    return {name: torch.rand_like(value) - 0.5 for name, value in model.initial_state(rows).items()}


@pytest.mark.parametrize("cell", ALL)
@pytest.mark.parametrize("layers", [1, 3])
def test_scan_of_steps_equals_forward(cell: str, layers: int) -> None:
    model = network(cell, layers)
    tokens = torch.randint(11, (4, 13))
    state = start = random_state(model, 4)
    with torch.no_grad():
        whole, after_whole = model(tokens, start)
        stepped = []
        for step in range(13):
            logits, state = model.step(tokens[:, step], state)
            stepped.append(logits)
    torch.testing.assert_close(torch.stack(stepped, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert state.keys() == after_whole.keys() == start.keys()
    for name in state:
        torch.testing.assert_close(state[name], after_whole[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", ALL)
def test_forward_in_windows_equals_one_forward(cell: str) -> None:
    model = network(cell)
    tokens = torch.randint(11, (3, 20))
    with torch.no_grad():
        whole, _ = model(tokens, model.initial_state(3))
        state = model.initial_state(3)
        parts = []
        for window in tokens.split(6, dim=1):
            logits, state = model(window, state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", ALL)
def test_gradients_of_step_and_forward_agree(cell: str) -> None:
    model = network(cell)
    tokens = torch.randint(11, (2, 6))
    model(tokens, model.initial_state(2))[0].sum().backward()
    whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    state = model.initial_state(2)
    total = torch.zeros(())
    for step in range(6):
        logits, state = model.step(tokens[:, step], state)
        total = total + logits.sum()
    total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, whole[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", ALL)
def test_step_does_not_modify_its_input_state(cell: str) -> None:
    model = network(cell)
    state = random_state(model, 2)
    before = {name: value.clone() for name, value in state.items()}
    tokens = torch.tensor([1, 2])
    first, _ = model.step(tokens, state)
    second, _ = model.step(tokens, state)
    assert torch.equal(first, second)
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.parametrize("cell", ALL)
def test_padding_cannot_influence_the_result(cell: str) -> None:
    model = network(cell)
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 11, length) for length in (1, 3, 8, 8, 2)]
    tokens, lengths = pad(sequences)
    garbage = tokens.clone()
    for row, length in enumerate(lengths):
        garbage[row, length:] = 5
    with torch.no_grad():
        features = [model.features(variant, model.initial_state(5))[0] for variant in (tokens, garbage)]
        clean, dirty = (at_last_step(result, lengths) for result in features)
        assert torch.equal(clean, dirty)
        for row, sequence in enumerate(sequences):
            alone, _ = model.features(torch.from_numpy(sequence)[None], model.initial_state(1))
            torch.testing.assert_close(clean[row], alone[0, -1], atol=1e-6, rtol=1e-5)


def test_padding_gets_no_gradient() -> None:
    model = network("gru")
    tokens, lengths = pad([np.array([1, 2]), np.array([3, 4, 6, 7])])
    tokens[0, 2:] = 10  # a token that occurs nowhere else
    features, _ = model.features(tokens, model.initial_state(2))
    at_last_step(features, lengths).sum().backward()  # type: ignore[no-untyped-call]
    gradient = model.embedding.weight.grad
    assert gradient is not None
    assert gradient[10].abs().sum() == 0
    assert gradient[2].abs().sum() > 0
