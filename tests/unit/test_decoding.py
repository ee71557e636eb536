"""Choosing tokens inside a graph: equal to a plain loop in double precision, and independent of other rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from elman_server.decoding.in_graph import GREEDY_TEMPERATURE, LEAST_UNIFORM
from elman_server.decoding.randomness import UniformStream
from tests.support.graph_choice import choose
from tests.support.reference import choose_token

finite = st.floats(-50, 50, width=32)
GREEDY = (float(GREEDY_TEMPERATURE), float(LEAST_UNIFORM))


def choose_one(logits: list[float], temperature: float, uniform: float, **options: Any) -> int:
    return int(choose([logits], temperature, uniform, **options)[0][0])


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    assert choose_one([1, 3, 2], *GREEDY) == 1
    assert choose_one([3, 1, 3], *GREEDY) == 0
    assert choose_one([-50, 1, 1 + 1e-6], *GREEDY) == 2


def test_sampling_inverts_the_cumulative_distribution() -> None:
    logits = np.log([0.1, 0.2, 0.3, 0.4]).tolist()
    for uniform, token in (
        (LEAST_UNIFORM, 0),
        (0.099, 0),
        (0.101, 1),
        (0.299, 1),
        (0.301, 2),
        (0.599, 2),
        (0.601, 3),
        (0.999, 3),
    ):
        assert choose_one(logits, 1.0, uniform) == token


def test_temperature_divides_the_logits() -> None:
    flat = np.log([0.25, 0.75]).tolist()
    # At temperature 0.5 the odds are squared: 1 to 9.
    assert choose_one(flat, 0.5, 0.0999) == 0
    assert choose_one(flat, 0.5, 0.1001) == 1


@pytest.mark.parametrize("width", [3, 96, 1024, 1025, 5000])
def test_the_largest_and_the_smallest_uniform_number_choose_tokens_with_weight(width: int) -> None:
    logits = np.full((1, width), -np.inf)
    logits[0, 1:-1] = np.random.default_rng(width).normal(size=width - 2)
    assert choose(logits, 1.0, 1 - 2.0**-23)[0][0] == width - 2
    assert choose(logits, 1.0, LEAST_UNIFORM)[0][0] == 1


def test_a_forbidden_token_is_never_drawn() -> None:
    uniforms = np.linspace(0.001, 1, 200, endpoint=False)
    logits = np.tile(np.float32([0.0, -np.inf, 9.0, 0.0, -np.inf]), (200, 1))
    assert set(choose(logits, 1.0, uniforms, forbidden=2)[0].tolist()) == {0, 3}
    assert set(choose(logits, 1e30, uniforms, forbidden=2)[0].tolist()) == {0, 3}
    assert choose_one([0, 9, 1], *GREEDY, forbidden=1) == 2


@pytest.mark.parametrize("bad", [[np.nan, 1], [1, np.nan], [np.inf, 1], [-np.inf, -np.inf], [np.nan, np.nan]])
@pytest.mark.parametrize("temperature", [float(GREEDY_TEMPERATURE), 1])
@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_rows_without_a_distribution_are_reported(
    bad: list[float], temperature: float, options: dict[str, Any]
) -> None:
    tokens, checks = choose([bad, [1, 2]], temperature, 0.5, **options)
    assert np.isnan(checks).tolist() == [True, False]
    assert 0 <= tokens[0] <= 1  # It is fed back until the chunk ends, so it has to be a token.


@pytest.mark.parametrize("width", [20, 3000])
def test_frequencies_match_the_distribution(width: int) -> None:
    random = np.random.default_rng(0)
    logits = np.full((1, width), -np.inf, np.float32)
    logits[0, random.choice(width, 20, replace=False)] = random.normal(size=20)
    count = 20_000
    uniforms = np.maximum(UniformStream(7).take(0, count), LEAST_UNIFORM)
    drawn = choose(np.tile(logits, (count, 1)), 1.0, uniforms)[0]
    expected = np.exp(logits[0].astype(float)) / np.exp(logits[0].astype(float)).sum() * count
    found = np.bincount(drawn, minlength=width)
    assert found[expected == 0].sum() == 0
    possible = expected > 0
    statistic = ((found - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < 43.8  # chi-square, 19 degrees of freedom, 0.1 %


@pytest.mark.parametrize("width", [1, 2, 17, 96, 1500])
@pytest.mark.parametrize("filtered", [False, True])
def test_choices_match_a_plain_loop(width: int, filtered: bool) -> None:
    random = np.random.default_rng(width)
    rows = 500
    logits = (random.normal(size=(rows, width)) * random.choice([0.1, 1, 10], (rows, 1))).astype(np.float32)
    temperatures = random.choice([0.2, 1.0, 3.0], rows)
    uniforms = random.integers(1, 2**23, rows) * 2.0**-23
    top_k = random.choice([1, 2, 5, 40, width], rows) if filtered else np.full(rows, width)
    top_p = random.choice([1e-6, 0.3, 0.9, 1.0], rows) if filtered else np.ones(rows)
    min_p = random.choice([0.0, 0.0, 0.05, 1.0], rows) if filtered else np.zeros(rows)
    options: dict[str, Any] = {"top_k": np.minimum(top_k, width), "top_p": top_p, "min_p": min_p} if filtered else {}
    tokens, checks = choose(logits, temperatures, uniforms, **options)
    assert np.isfinite(checks).all()
    expected = [
        choose_token(
            logits[row],
            float(np.float32(temperatures[row])),
            uniforms[row],
            int(top_k[row]) if top_k[row] < width else None,
            float(np.float32(top_p[row])),
            float(np.float32(min_p[row])),
        )
        for row in range(rows)
    ]
    # Single against double precision: about one in a thousand differs at a boundary.
    assert (tokens != expected).sum() <= 1


@pytest.mark.parametrize(("name", "share"), [("top_p", 0.8), ("min_p", 0.2)])
def test_too_few_candidates_are_reported_and_their_number_does_not_change_a_choice(name: str, share: float) -> None:
    random = np.random.default_rng(5)
    logits = random.normal(size=(400, 2000)).astype(np.float32) * random.choice([1, 20], (400, 1))
    uniforms = random.integers(1, 2**23, 400) * 2.0**-23
    options = {name: share}
    tokens, checks = choose(logits, 1.0, uniforms, **options)
    assert np.isfinite(checks).all()
    for candidates in (16, 256):
        few, unsure = choose(logits, 1.0, uniforms, candidates=candidates, **options)
        assert 0 < np.isposinf(unsure).sum() < 400
        assert few[np.isfinite(unsure)].tolist() == tokens[np.isfinite(unsure)].tolist()


@given(
    st.integers(1, 40).flatmap(
        lambda width: st_numpy.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(width)), elements=finite)
    ),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_a_row_does_not_depend_on_the_other_rows(logits: NDArray[Any], seed: int, filtered: bool) -> None:
    random = np.random.default_rng(seed)
    rows, width = logits.shape
    options: dict[str, Any] = {
        "temperature": random.choice([float(GREEDY_TEMPERATURE), 0.3, 1.0, 2.0], rows),
        "uniform": np.maximum(random.random(rows).astype(np.float32) * np.float32(0.99), LEAST_UNIFORM),
    }
    if filtered:
        options["top_k"] = random.integers(1, width + 1, rows)
        options["top_p"] = random.choice([0.1, 0.7, 1.0], rows)
        options["min_p"] = random.choice([0.0, 0.2], rows)
    together, checks = choose(logits, **options)
    for row in range(rows):
        part = {name: values[row : row + 1] for name, values in options.items()}
        token, check = choose(logits[row : row + 1], **part)
        assert (token[0], np.isfinite(check[0])) == (together[row], np.isfinite(checks[row]))


@pytest.mark.parametrize("filtered", [False, True])
def test_a_row_of_a_wide_vocabulary_does_not_depend_on_the_other_rows(filtered: bool) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(64, 5003)).astype(np.float32)
    uniforms = np.maximum(random.random(64).astype(np.float32) * np.float32(0.99), LEAST_UNIFORM)
    options: dict[str, Any] = {"top_p": 0.9} if filtered else {}
    together, _ = choose(logits, 1.0, uniforms, **options)
    assert len(set(together.tolist())) > 50
    for rows in (1, 2, 3, 8, 17):
        for first in range(0, 64 - rows, rows):
            part = slice(first, first + rows)
            assert choose(logits[part], 1.0, uniforms[part], **options)[0].tolist() == together[part].tolist()


@given(st.integers(-(2**63), 2**63 - 1), st.lists(st.integers(0, 100_000), min_size=1, max_size=20))
def test_random_numbers_depend_on_the_seed_and_the_position_only(seed: int, positions: list[int]) -> None:
    stream = UniformStream(seed)
    for position in positions:
        (value,) = stream.take(position, 1)
        assert value == UniformStream(seed).take(max(0, position - 3), 10)[min(position, 3)]
        assert 0 <= value < 1


def test_random_numbers_are_those_of_philox() -> None:
    raw = np.random.Philox(key=np.array([5, 0], dtype=np.uint64), counter=0).random_raw(1000)
    assert UniformStream(5).take(0, 1000).tolist() == ((raw >> np.uint64(41)) * 2.0**-23).tolist()
