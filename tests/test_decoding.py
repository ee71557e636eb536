"""Choosing tokens: correct, and each row by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from server.decoding import NO_TOKEN, UniformStream, choose_tokens

finite = st.floats(-50, 50, width=32)


def choose(logits: list[float], temperature: float, uniform: float) -> int:
    array = np.array([logits], dtype=np.float32)
    return int(choose_tokens(array, np.array([temperature]), np.array([uniform]))[0])


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    assert choose([1, 3, 2], 0, 0.99) == 1
    assert choose([3, 1, 3], 0, 0.99) == 0


def test_sampling_inverts_the_cumulative_distribution() -> None:
    logits = np.log([0.1, 0.2, 0.3, 0.4]).tolist()
    for uniform, token in (
        (0.0, 0),
        (0.099, 0),
        (0.101, 1),
        (0.299, 1),
        (0.301, 2),
        (0.599, 2),
        (0.601, 3),
        (0.999, 3),
    ):
        assert choose(logits, 1.0, uniform) == token


def test_temperature_divides_the_logits() -> None:
    flat = np.log([0.25, 0.75]).tolist()
    # At temperature 0.5 the odds are squared: 1 to 9.
    assert choose(flat, 0.5, 0.0999) == 0
    assert choose(flat, 0.5, 0.1001) == 1


def test_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    assert choose([1, 3, 2], 5e-324, 0.999999) == 1


def test_forbidden_token_is_never_drawn() -> None:
    for uniform in np.linspace(0, 1, 200, endpoint=False):
        assert choose([0.0, -np.inf, 0.0, -np.inf], 1.0, uniform) in (0, 2)


@pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_no_token_where_there_is_no_distribution(bad: list[float], temperature: float) -> None:
    assert choose(bad, temperature, 0.5) == NO_TOKEN


def test_frequencies_match_the_distribution() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=20).astype(np.float32)
    stream = UniformStream(7)
    count = 20_000
    uniforms = np.array([stream.at(position) for position in range(count)])
    drawn = choose_tokens(np.tile(logits, (count, 1)), np.ones(count), uniforms)
    expected = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum() * count
    statistic = ((np.bincount(drawn, minlength=20) - expected) ** 2 / expected).sum()
    assert statistic < 43.8  # chi-square, 19 degrees of freedom, 0.1 %


@settings(deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda width: st_numpy.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(width)), elements=finite)
    ),
    st.integers(0, 2**32),
)
def test_a_row_does_not_depend_on_the_rows_beside_it(logits: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    temperatures = random.choice([0.0, 0.3, 1.0, 2.0], len(logits))
    uniforms = random.random(len(logits))
    together = choose_tokens(logits, temperatures, uniforms)
    for row in range(len(logits)):
        part = slice(row, row + 1)
        assert choose_tokens(logits[part], temperatures[part], uniforms[part])[0] == together[row]


@given(st.integers(-(2**63), 2**63 - 1), st.lists(st.integers(0, 100_000), min_size=1, max_size=20))
def test_random_numbers_depend_on_seed_and_position_alone(seed: int, positions: list[int]) -> None:
    stream = UniformStream(seed)
    for position in positions:
        value = stream.at(position)
        assert value == UniformStream(seed).at(position)
        assert 0 <= value < 1


def test_random_numbers_are_those_of_philox() -> None:
    raw = np.random.Philox(key=np.array([5, 0], dtype=np.uint64), counter=0).random_raw(1000)
    stream = UniformStream(5)
    assert [stream.at(position) for position in range(1000)] == ((raw >> np.uint64(11)) * 2.0**-53).tolist()
