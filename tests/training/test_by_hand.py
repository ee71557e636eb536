"""The cells computed in numpy from the papers' equations, compared with torch and the exported graph.

Axes: B rows, T steps, X input features, H hidden units, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from elman_bundle import Bundle
from elman_training.cells.elman import Elman
from elman_training.trees import tree_cell_class
from elman_training.trees.tree_cells import BinaryTreeLSTM, ChildSumTreeLSTM, RecursiveCell
from tests.support.bundles import CHARACTERS, make_network
from tests.support.cells import Array, State, Weights, gru_step, sigmoid, weights_of
from tests.support.reference import read_alone


def elman_step(weights: Weights, inputs: Array, state: State) -> State:
    """Elman 1990: h' = tanh(W x + U h + b)."""
    hidden = np.tanh(
        inputs @ weights.inputs.T + state["hidden"] @ weights.hidden.T + weights.input_bias + weights.hidden_bias
    )
    return {"hidden": hidden}


def lstm_step(weights: Weights, inputs: Array, state: State) -> State:
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000: c' = f c + i g, h' = o tanh(c')."""
    gates = inputs @ weights.inputs.T + state["hidden"] @ weights.hidden.T + weights.input_bias + weights.hidden_bias
    entered, kept, candidate, shown = np.split(gates, 4, axis=1)
    cell = sigmoid(kept) * state["cell"] + sigmoid(entered) * np.tanh(candidate)
    return {"hidden": sigmoid(shown) * np.tanh(cell), "cell": cell}


STEPS: Mapping[str, Callable[[Weights, Array, State], State]] = {
    "elman": elman_step,
    "lstm": lstm_step,
    "gru": gru_step,
}


def read_by_hand(cell: str, tokens: list[int]) -> tuple[Array, dict[str, Array]]:
    """Return the logits of a test bundle's network after each token, [T, V], and its states by input name, [T, H]."""
    network = make_network(cell, CHARACTERS.size)
    embedding = network.embedding.weight.detach().numpy().astype(np.float64)
    head = [part.detach().numpy().astype(np.float64) for part in (network.head.weight, network.head.bias)]
    layers = [weights_of(layer) for layer in network.cells]
    names = network.cells[0].state_names
    states: list[State] = [{name: np.zeros((1, network.cells[0].hidden)) for name in names} for _ in layers]
    shown: list[Array] = []
    recorded: dict[str, list[Array]] = {}
    for token in tokens:
        features = embedding[token][None]
        for index, weights in enumerate(layers):
            states[index] = STEPS[cell](weights, features, states[index])
            features = states[index]["hidden"]
            for name, value in states[index].items():
                recorded.setdefault(f"state.layer{index}.{name}", []).append(value[0])
        shown.append((features @ head[0].T + head[1])[0])
    return np.stack(shown), {name: np.stack(values) for name, values in recorded.items()}


@pytest.mark.parametrize("cell", sorted(STEPS))
def test_torch_and_the_exported_graph_match_the_equations(bundles: Mapping[str, Bundle], cell: str) -> None:
    tokens = np.random.default_rng(1).integers(0, CHARACTERS.size, 40).tolist()
    logits, states = read_by_hand(cell, tokens)
    network = make_network(cell, CHARACTERS.size).eval()
    with torch.no_grad():
        result, _ = network(torch.tensor([tokens]), network.initial_state(1))
    np.testing.assert_allclose(result[0].numpy(), logits, atol=1e-5, rtol=1e-4)
    outputs, after = read_alone(bundles[cell], tokens)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-5, rtol=1e-4)
    assert after.keys() == states.keys()
    for name, values in states.items():
        np.testing.assert_allclose(after[name], values, atol=1e-5, rtol=1e-4)


def by_gate(stacked: torch.Tensor, gates: str) -> dict[str, Array]:
    """Split weights [G*H, X] or biases [G*H] by gate, each named by a letter, in double precision."""
    return dict(zip(gates, np.split(stacked.detach().numpy().astype(np.float64), len(gates)), strict=True))


def child_sum_node(cell: ChildSumTreeLSTM, word: Array, hidden: Array, memory: Array) -> State:
    """Tai, Socher and Manning 2015, equations 2 to 8, for a word [X] and the children's states, [C, H] both.

    i = sigmoid(W_i x + U_i s + b_i), and o and u (tanh) likewise, where s is the sum of all h_k;
    f_k = sigmoid(W_f x + U_f h_k + b_f); c = i u + sum of all f_k c_k; h = o tanh(c).
    """
    inputs, bias = by_gate(cell.input.weight, "iouf"), by_gate(cell.input.bias, "iouf")
    recurrent = by_gate(cell.summed.weight, "iou")
    total = sum(hidden, np.zeros(hidden.shape[1]))
    gates = {gate: inputs[gate] @ word + recurrent[gate] @ total + bias[gate] for gate in "iou"}
    of_forget = cell.forget.weight.detach().numpy().astype(np.float64)
    state = sigmoid(gates["i"]) * np.tanh(gates["u"])
    for child_hidden, child_memory in zip(hidden, memory, strict=True):
        state = state + sigmoid(inputs["f"] @ word + of_forget @ child_hidden + bias["f"]) * child_memory
    return {"hidden": sigmoid(gates["o"]) * np.tanh(state), "cell": state}


def binary_node(cell: BinaryTreeLSTM, word: Array, hidden: Array, memory: Array) -> State:
    """Tai, Socher and Manning 2015, equations 9 to 14 for N = 2: every gate has a U for each child.

    The gates l and r are those of the left and of the right child's memory: c = i u + l c_left + r c_right.
    """
    inputs, bias = by_gate(cell.input.weight, "ilrou"), by_gate(cell.input.bias, "ilrou")
    recurrent = by_gate(cell.pair.weight, "ilrou")
    gates = {}
    for gate in "ilrou":
        of_left, of_right = np.split(recurrent[gate], 2, axis=1)
        gates[gate] = inputs[gate] @ word + of_left @ hidden[0] + of_right @ hidden[1] + bias[gate]
    state = (
        sigmoid(gates["i"]) * np.tanh(gates["u"]) + sigmoid(gates["l"]) * memory[0] + sigmoid(gates["r"]) * memory[1]
    )
    return {"hidden": sigmoid(gates["o"]) * np.tanh(state), "cell": state}


def recursive_node(cell: RecursiveCell, word: Array, hidden: Array, memory: Array) -> State:
    """Socher et al. 2013: h = tanh(W [h_left; h_right] + b), where b is the embedding of the node's token."""
    bias = by_gate(cell.input.weight, "h")["h"] @ word + by_gate(cell.input.bias, "h")["h"]
    return {"hidden": np.tanh(by_gate(cell.pair.weight, "h")["h"] @ np.concatenate(hidden) + bias)}


@pytest.mark.parametrize(
    ("kind", "by_hand", "child_counts"),
    [("child-sum", child_sum_node, (0, 1, 2, 5)), ("binary", binary_node, (2,)), ("recursive", recursive_node, (2,))],
)
def test_tree_nodes_in_torch_match_the_equations(
    kind: str, by_hand: Callable[..., State], child_counts: tuple[int, ...]
) -> None:
    torch.manual_seed(5)
    cell = tree_cell_class(kind)(5, 7)
    torch.nn.init.normal_(cell.input.bias)
    for count in child_counts:
        words, hidden, memory = torch.randn(3, 5), torch.rand(3, count, 7) - 0.5, torch.randn(3, count, 7)
        with torch.no_grad():
            result = cell.advance(cell.project(words), {"hidden": hidden, "cell": memory})
        for row in range(3):
            arrays = [tensor[row].numpy().astype(np.float64) for tensor in (words, hidden, memory)]
            for name, value in by_hand(cell, *arrays).items():
                np.testing.assert_allclose(result[name][row].numpy(), value, atol=1e-6, rtol=1e-5)


@dataclass(frozen=True)
class Gradients:
    """Gradients of a loss with respect to W, U, b, the inputs [B, T, X] and the initial state [B, H]."""

    inputs_weight: Array
    hidden_weight: Array
    bias: Array
    inputs: Array
    state: Array


def backpropagate(weights: Weights, inputs: Array, state: Array, by_hidden: Array) -> Gradients:
    """Back-propagation through time (Werbos 1990) for the Elman cell.

    Args:
        weights: the weights of the cell.
        inputs: the input sequence, [B, T, X].
        state: the initial state, [B, H].
        by_hidden: the direct derivative of the loss with respect to each hidden state, [B, T, H].
    """
    count = inputs.shape[1]
    hidden = [state]
    for step in range(count):
        hidden.append(elman_step(weights, inputs[:, step], {"hidden": hidden[-1]})["hidden"])
    by_inputs = np.zeros_like(inputs)
    by_input_weight, by_hidden_weight = np.zeros_like(weights.inputs), np.zeros_like(weights.hidden)
    by_bias = np.zeros_like(weights.input_bias)
    following = np.zeros_like(state)  # the gradient that flows back from later steps
    for step in reversed(range(count)):
        by_gates = (by_hidden[:, step] + following) * (1 - hidden[step + 1] ** 2)
        # All steps share the weights, so their gradients add up.
        by_input_weight += by_gates.T @ inputs[:, step]
        by_hidden_weight += by_gates.T @ hidden[step]
        by_bias += by_gates.sum(axis=0)
        by_inputs[:, step] = by_gates @ weights.inputs
        following = by_gates @ weights.hidden
    return Gradients(by_input_weight, by_hidden_weight, by_bias, by_inputs, following)


def test_manual_gradients_equal_autograd() -> None:
    torch.manual_seed(3)
    cell = Elman(5, 7).double()
    inputs = torch.randn(3, 11, 5, dtype=torch.float64, requires_grad=True)
    state = (torch.rand(3, 7, dtype=torch.float64) - 0.5).requires_grad_()
    by_hidden = torch.randn(3, 11, 7, dtype=torch.float64)
    outputs, _ = cell(inputs, {"hidden": state})
    (outputs * by_hidden).sum().backward()
    arrays: list[Any] = [tensor.detach().numpy() for tensor in (inputs, state, by_hidden)]
    result = backpropagate(weights_of(cell), *arrays)
    expected = {
        "inputs_weight": cell.input_weight.grad,
        "hidden_weight": cell.hidden_weight.grad,
        "bias": cell.input_bias.grad,
        "inputs": inputs.grad,
        "state": state.grad,
    }
    for name, gradient in expected.items():
        assert gradient is not None
        np.testing.assert_allclose(getattr(result, name), gradient.numpy(), atol=1e-12, rtol=1e-9)


def test_gradients_of_a_shared_weight_add_up() -> None:
    """The gradient of a shared weight equals the sum of the gradients of separate weights per step."""
    torch.manual_seed(4)
    cell = Elman(2, 3).double()
    inputs = torch.randn(1, 4, 2, dtype=torch.float64)
    own = [cell.hidden_weight.detach().clone().requires_grad_() for _ in range(4)]
    hidden = torch.zeros(1, 3, dtype=torch.float64)
    for step, weight in enumerate(own):
        hidden = torch.tanh(cell.project(inputs[:, step]).detach() + hidden @ weight.T)
    hidden.sum().backward()  # type: ignore[no-untyped-call]
    by_hidden = np.zeros((1, 4, 3))
    by_hidden[:, -1] = 1
    result = backpropagate(weights_of(cell), inputs.numpy(), np.zeros((1, 3)), by_hidden)
    gradients = [weight.grad for weight in own if weight.grad is not None]
    assert len({gradient.sum().item() for gradient in gradients}) > 1
    np.testing.assert_allclose(result.hidden_weight, sum(gradient.numpy() for gradient in gradients), atol=1e-12)
