"""Shaping and choosing on the host: equal to transformers and to a plain loop, and independent of other rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from transformers.generation.utils import GenerationMixin

from elman_server.decoding.host.choosing import Choices, choose_tokens, shape_scores
from elman_server.decoding.host.shaped_rows import ShapedRows
from elman_server.decoding.host.shaping import Shaping
from elman_server.decoding.randomness import UniformStream
from tests.support.amount import examples
from tests.support.graph_choice import choose as choose_in_graph

NO_TOKENS = np.zeros(0, np.int64)
WIDTH = 30
LARGEST_UNIFORM = 1 - 2.0**-23


@dataclass(frozen=True)
class Row:
    """The options of a row."""

    shaping: Shaping = field(default_factory=Shaping)
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    end_token: int | None = None
    prompt: Sequence[int] | NDArray[np.int64] = ()
    generated: Sequence[int] | NDArray[np.int64] = ()


def append(table: ShapedRows, row: Row) -> int:
    return table.append(
        row.shaping,
        temperature=row.temperature,
        top_k=row.top_k,
        top_p=row.top_p,
        min_p=row.min_p,
        end_token=row.end_token,
        prompt=np.array(row.prompt, np.int64),
        generated=np.array(row.generated, np.int64),
    )


def table_of(rows: Sequence[Row], width: int = WIDTH, forbidden: int | None = None) -> ShapedRows:
    table = ShapedRows(width, () if forbidden is None else (forbidden,))
    for index, row in enumerate(rows):
        assert append(table, row) == index
    return table


def shape(rows: Sequence[Row], scores: NDArray[np.float32], allowed: Any = None, **options: Any) -> NDArray[np.float32]:
    table = table_of(rows, scores.shape[1], **options)
    return shape_scores(table, np.arange(len(rows)), scores, allowed)


def choose(
    rows: Sequence[Row], logits: Any, uniforms: Any = 0.5, allowed: Any = None, forbidden: int | None = None
) -> Choices:
    """Return what rows choose from logits [R, V]; the uniform number may be one for all."""
    array = np.array(logits, np.float32)
    table = table_of(rows, array.shape[1], forbidden)
    numbers = np.broadcast_to(np.array(uniforms, np.float32), (len(rows),))
    return choose_tokens(table, np.arange(len(rows)), array, numbers, None if allowed is None else np.array(allowed))


def choose_one(row: Row, logits: Sequence[float], uniform: float = 0.5, **options: Any) -> int | None:
    """Return the token, or None if none can be chosen."""
    choices = choose([row], [logits], uniform, **options)
    assert 0 <= choices.tokens[0] < len(logits)
    return None if choices.impossible[0] else int(choices.tokens[0])


def random_scores(random: np.random.Generator, rows: int, width: int = WIDTH) -> NDArray[np.float32]:
    """Return random scores, some of them -inf."""
    scores = random.normal(size=(rows, width)) * random.choice([0.5, 3, 10], (rows, 1))
    scores[random.random(scores.shape) < 0.02] = -np.inf
    return scores.astype(np.float32)


# Each processor equals that of transformers, to the bit.

ROWS, PROMPT, GENERATED = examples(500, everything=2000), 7, 5


def processed(
    processor: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ids: NDArray[np.int64], scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    result: NDArray[np.float32] = processor(torch.from_numpy(ids), torch.from_numpy(scores)).numpy()
    return result


def random_ids(random: np.random.Generator, rows: int = ROWS) -> NDArray[np.int64]:
    """Return prompts with generated tokens, so short that most tokens have not occurred."""
    return random.integers(0, WIDTH, (rows, PROMPT + GENERATED))


def rows_of(ids: NDArray[np.int64], row: Row) -> list[Row]:
    return [replace(row, prompt=line[:PROMPT], generated=line[PROMPT:]) for line in ids]


@pytest.mark.parametrize("penalty", [0.3, 1.0, 1.2, 7.5])
def test_the_repetition_penalty_equals_that_of_transformers(penalty: float) -> None:
    random = np.random.default_rng(1)
    ids, scores = random_ids(random), random_scores(random, ROWS)
    expected = processed(transformers.RepetitionPenaltyLogitsProcessor(penalty), ids, scores)
    assert np.array_equal(shape(rows_of(ids, Row(Shaping(repetition_penalty=penalty))), scores), expected)
    assert np.array_equal(expected, scores) == (penalty == 1)


def test_the_logit_bias_equals_that_of_transformers() -> None:
    random = np.random.default_rng(2)
    ids, scores = random_ids(random), random_scores(random, ROWS)
    bias = {int(token): float(random.normal() * 5) for token in random.choice(WIDTH, 12, replace=False)}
    processor = transformers.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    assert np.array_equal(shape(rows_of(ids, Row(Shaping(bias))), scores), processed(processor, ids, scores))


@pytest.mark.parametrize("min_tokens", [0, GENERATED, GENERATED + 1, 100])
def test_the_minimum_length_equals_that_of_transformers(min_tokens: int) -> None:
    random = np.random.default_rng(3)
    ids, scores = random_ids(random), random_scores(random, ROWS)
    expected = processed(transformers.MinNewTokensLengthLogitsProcessor(PROMPT, min_tokens, 4), ids, scores)
    rows = rows_of(ids, Row(Shaping(min_tokens=min_tokens), end_token=4))
    assert np.array_equal(shape(rows, scores), expected)
    assert np.isneginf(expected[:, 4]).all() == (min_tokens > GENERATED)
    assert np.array_equal(shape([replace(row, end_token=None) for row in rows], scores), scores)


def test_forbidden_tokens_equal_those_of_transformers() -> None:
    random = np.random.default_rng(4)
    ids, scores = random_ids(random), random_scores(random, ROWS)
    expected = processed(transformers.SuppressTokensLogitsProcessor([3, 4, 29]), ids, scores)
    rows = rows_of(ids, Row(Shaping(forbidden_tokens=(3, 4, 29))))
    assert np.array_equal(shape(rows, scores), expected)
    assert np.array_equal(shape(rows, scores, forbidden=29), expected)
    assert np.array_equal(
        shape([replace(row, shaping=Shaping(forbidden_tokens=(3, 4))) for row in rows], scores, forbidden=29), expected
    )


def test_a_grammar_is_applied_as_in_transformers() -> None:
    random = np.random.default_rng(5)
    ids, scores = random_ids(random), random_scores(random, ROWS)
    allowed = random.random(scores.shape) < random.choice([0.05, 0.5, 1], (ROWS, 1))
    allowed[np.arange(ROWS), random.integers(0, WIDTH, ROWS)] = True
    # In every tenth row all allowed tokens were impossible before.
    scores[::10][allowed[::10]] = -np.inf
    ids[:, 0] = np.arange(ROWS)  # The function identifies the row by this.
    processor = transformers.PrefixConstrainedLogitsProcessor(
        lambda _, sentence: np.flatnonzero(allowed[int(sentence[0])]).tolist(), num_beams=1
    )
    # One row per call: transformers treats the rows of a call as beams of one search.
    expected = np.concatenate([processed(processor, ids[row : row + 1], scores[row : row + 1]) for row in range(ROWS)])
    assert np.array_equal(shape([Row()] * ROWS, scores, allowed), expected)
    assert (expected[::10] == 0).any(axis=1).all()


def test_forced_tokens_equal_those_of_transformers() -> None:
    random = np.random.default_rng(6)
    scores = random_scores(random, ROWS)
    ids = random.integers(0, WIDTH, (ROWS, 1))
    expected = processed(transformers.ForcedBOSTokenLogitsProcessor(8), ids, scores)
    row = Row(Shaping({8: -5.0}, min_tokens=9, forced_tokens=(8, 9)), end_token=8)
    assert np.array_equal(shape([replace(row, prompt=line) for line in ids], scores), expected)


def test_frequency_and_presence_penalties_match_a_plain_loop() -> None:
    random = np.random.default_rng(7)
    ids, scores = random_ids(random), random_scores(random, ROWS)
    ids[:, PROMPT:] %= 6  # Some of them several times.
    penalties = random.choice([-1.5, 0.0, 0.4, 2.0], (ROWS, 2))
    rows = [
        replace(row, shaping=Shaping(frequency_penalty=frequency, presence_penalty=presence))
        for row, (frequency, presence) in zip(rows_of(ids, Row()), penalties.tolist(), strict=True)
    ]
    expected = scores.astype(float)
    for row in range(ROWS):
        generated = ids[row, PROMPT:].tolist()
        for token in range(WIDTH):
            count = generated.count(token)
            if count:
                expected[row, token] -= penalties[row, 0] * count + penalties[row, 1]
    np.testing.assert_allclose(shape(rows, scores), expected, rtol=1e-6, atol=1e-5)


def transformers_order(generation_config: Any, allowed_tokens: Any, prompt_length: int) -> Any:
    """Return the processors that transformers applies, in its order."""
    generation_config._eos_token_tensor = torch.tensor([generation_config.eos_token_id])
    model: Any = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    model._merge_criteria_processor_list = lambda defaults, _: defaults
    return GenerationMixin._get_logits_processor(
        model,
        generation_config,
        input_ids_seq_length=prompt_length,
        prefix_allowed_tokens_fn=allowed_tokens,
        logits_processor=transformers.LogitsProcessorList(),
        device="cpu",
    )


def test_the_order_of_transformers_is_the_documented_one() -> None:
    config = transformers.GenerationConfig(
        num_beams=1,
        sequence_bias=[[[1], 2.0]],
        repetition_penalty=1.1,
        min_new_tokens=1,
        eos_token_id=0,
        forced_bos_token_id=1,
        suppress_tokens=[2],
        do_sample=True,
        temperature=0.5,
        top_k=5,
        top_p=0.5,
        min_p=0.5,
    )
    assert [type(processor).__name__ for processor in transformers_order(config, lambda *_: [1], 1)] == [
        "SequenceBiasLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "PrefixConstrainedLogitsProcessor",
        "ForcedBOSTokenLogitsProcessor",
        "SuppressTokensLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
    ]


def random_shaping(random: np.random.Generator) -> Shaping:
    """Return all options together, several of which concern the end token 0 and some other tokens."""
    return Shaping(
        logit_bias={int(token): float(random.normal() * 4) for token in random.integers(0, 12, 4)},
        repetition_penalty=float(random.choice([0.6, 1.3, 2.5])),
        forbidden_tokens=tuple(random.integers(0, WIDTH, 4).tolist()),
        min_tokens=int(random.integers(0, 2 * GENERATED)),
        forced_tokens=tuple(random.integers(0, 12, random.choice([0, 0, 1])).tolist()),
    )


@pytest.mark.parametrize("generated_count", [0, GENERATED])
def test_the_order_equals_that_of_transformers(generated_count: int) -> None:
    random = np.random.default_rng(8)
    seen_forced = seen_impossible = 0
    for _ in range(examples(500, everything=1500)):
        scores = random_scores(random, 1)
        shaping = random_shaping(random)
        # In transformers one token can be forced, and only after a prompt of one.
        ids = random.integers(0, WIDTH, (1, 1 + generated_count))
        allowed = random.random((1, WIDTH)) < random.choice([0.05, 0.5, 1])
        allowed[0, [0, *shaping.forced_tokens]] = True
        config = transformers.GenerationConfig(
            num_beams=1,
            sequence_bias=[[[token], value] for token, value in shaping.logit_bias.items()],
            repetition_penalty=shaping.repetition_penalty,
            min_new_tokens=shaping.min_tokens,
            eos_token_id=0,
            forced_bos_token_id=shaping.forced_tokens[0] if shaping.forced_tokens else None,
        )
        # Set here because the constructor refuses a forced token among them.
        config.suppress_tokens = list(shaping.forbidden_tokens)
        processors = transformers_order(config, lambda *_, row=allowed[0]: np.flatnonzero(row).tolist(), 1)
        expected = processed(processors, ids, scores)
        row = Row(shaping, end_token=0, prompt=ids[0, :1], generated=ids[0, 1:])
        assert np.array_equal(shape([row], scores, allowed), expected)
        seen_forced += (np.isfinite(expected).sum() == 1) & (expected.max() == 0)
        seen_impossible += expected.max() == -np.inf
    assert seen_impossible > 3
    assert (seen_forced > 30) == (generated_count == 0)


def test_frequency_and_presence_penalties_follow_the_repetition_penalty() -> None:
    row = Row(Shaping({0: 1.0}, 2.0, 0.25, 0.5, forced_tokens=(0, 0)), generated=[0, 0])
    assert shape([row], np.float32([[3, 3]])).tolist() == [[(3 + 1) / 2 - 2 * 0.25 - 0.5, 3]]
    assert shape([row], np.float32([[-3, 3]])).tolist() == [[(-3 + 1) * 2 - 2 * 0.25 - 0.5, 3]]


def test_nothing_overrules_a_grammar() -> None:
    random = np.random.default_rng(9)
    for _ in range(300):
        scores, shaping = random_scores(random, 1), random_shaping(random)
        allowed = random.random((1, WIDTH)) < random.choice([0.05, 0.5])
        shaped = shape([Row(shaping, end_token=0)], scores, allowed)
        assert np.isneginf(shaped[~allowed]).all()


def test_the_scores_passed_in_stay_unchanged() -> None:
    scores = np.arange(WIDTH, dtype=np.float32)[None]
    before = scores.copy()
    row = Row(Shaping({0: 1.0}, 2.0, 0.25, 0.5, (3,), 9, (4,)), end_token=0, prompt=[5, 6], generated=[0, 0])
    table = table_of([row], forbidden=7)
    for read_only in (scores, np.asfortranarray(scores)):
        read_only.flags.writeable = False
        shape_scores(table, np.array([0]), read_only, np.ones((1, WIDTH), bool))
        choose_tokens(table, np.array([0]), read_only, np.float32([0.5]), np.ones((1, WIDTH), bool))
    assert np.array_equal(scores, before)


# The draw. An interval is a token and the range of uniform numbers that draw it.

Interval = tuple[int, float, float]


def intervals(weights: NDArray[np.float64], by_rank: bool) -> list[Interval]:
    """Return the intervals of a distribution [V], in the order of the ids or in descending order of probability."""
    order = np.argsort(-weights, kind="stable") if by_rank else np.arange(len(weights))
    total, found, start = weights.sum(), [], 0.0
    for token in order[weights[order] > 0].tolist():
        found.append((token, start, start + weights[token] / total))
        start = found[-1][2]
    return found


def assert_drawn(token: int, uniform: float, found: list[Interval]) -> None:
    (interval,) = [interval for interval in found if interval[0] == token]
    assert interval[1] - 1e-9 <= uniform <= interval[2] + 1e-9


FILTERS = [
    Row(),
    Row(temperature=0.3),
    Row(temperature=4.0),
    Row(top_k=1),
    Row(top_k=6),
    Row(top_k=WIDTH),
    Row(top_k=1000),
    Row(top_p=1e-6),
    Row(top_p=0.4),
    Row(top_p=0.95),
    Row(min_p=0.01),
    Row(min_p=0.3),
    Row(min_p=1.0),
    Row(top_k=12, top_p=0.9),
    Row(top_p=0.9, min_p=0.1),
    Row(temperature=1.7, top_k=10, top_p=0.8, min_p=0.05),
]


@pytest.mark.parametrize("row", FILTERS)
def test_temperature_and_filters_equal_those_of_transformers(row: Row) -> None:
    random = np.random.default_rng(10)
    logits = random_scores(random, ROWS)
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=row.temperature,
        top_k=row.top_k or 0,
        top_p=row.top_p,
        min_p=row.min_p or None,
        eos_token_id=0,
    )
    warped = transformers_order(config, None, 1)(None, torch.from_numpy(logits).double())
    probabilities = warped.softmax(dim=-1).numpy()
    # The largest number draws the least probable token that is left, or the one with the highest id.
    uniforms = np.concatenate([[0, LARGEST_UNIFORM], random.integers(0, 2**23, 10) * 2.0**-23]).astype(np.float32)
    table, each = table_of([row]), np.zeros(len(uniforms), np.int64)
    by_rank = row.top_p < 1 or row.min_p > 0 or (row.top_k or WIDTH) < WIDTH
    for line, expected in zip(logits, probabilities, strict=True):
        choices = choose_tokens(table, each, np.tile(line, (len(uniforms), 1)), uniforms)
        assert not choices.impossible.any()
        found = intervals(expected, by_rank)
        if found[-1][1] < LARGEST_UNIFORM:
            assert choices.tokens[1] == found[-1][0]
        for token, uniform in zip(choices.tokens.tolist(), uniforms.tolist(), strict=True):
            assert_drawn(token, uniform, found)


@pytest.mark.parametrize("filtered", [False, True])
def test_rows_without_shaping_choose_like_the_graph(filtered: bool) -> None:
    random = np.random.default_rng(17)
    logits = (random.normal(size=(ROWS, WIDTH)) * random.choice([0.1, 1, 10], (ROWS, 1))).round(1)
    temperatures = random.choice([0.2, 1.0, 3.0], ROWS)
    uniforms = random.integers(1, 2**23, ROWS) * 2.0**-23
    options: dict[str, Any] = {}
    if filtered:
        options = {"top_k": random.integers(1, WIDTH + 1, ROWS), "top_p": random.choice([1e-6, 0.31, 0.93, 1.0], ROWS)}
    expected, _ = choose_in_graph(logits, temperatures, uniforms, forbidden=4, **options)
    rows = [
        Row(temperature=float(temperature), **{name: values[row].item() for name, values in options.items()})
        for row, temperature in enumerate(temperatures)
    ]
    choices = choose(rows, logits, uniforms, forbidden=4)
    # Single against double precision: about one in a thousand differs at a boundary.
    assert (choices.tokens != expected).sum() <= 1
    assert not choices.impossible.any()


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    for options in ({}, {"top_k": 2}, {"top_p": 0.1}, {"min_p": 0.5}):
        greedy = Row(temperature=0, **options)
        assert choose_one(greedy, [1, 3, 2]) == 1
        assert choose_one(greedy, [3, 1, 3], LARGEST_UNIFORM) == 0
        assert choose_one(greedy, [-50, 1, 1 + 1e-6], 0) == 2
        assert choose_one(greedy, [0, 1e-45], 0) == 1
        assert choose_one(replace(greedy, shaping=Shaping({0: 2.5})), [1, 3, 2]) == 0


def test_of_equals_the_lowest_ids_are_among_the_top_k() -> None:
    logits = [0.0, 2.0, -0.0, 2.0, 0.0, -1.0, 0.0]
    uniforms = np.linspace(0, 1, 1000, endpoint=False)
    for top_k, kept in ((1, {1}), (2, {1, 3}), (3, {0, 1, 3}), (4, {0, 1, 2, 3}), (5, {0, 1, 2, 3, 4})):
        choices = choose([Row(top_k=top_k)] * 1000, [logits] * 1000, uniforms)
        assert set(choices.tokens.tolist()) == kept
    assert choose_one(Row(top_k=4), logits, LARGEST_UNIFORM) == 2
    assert choose_one(Row(top_p=0.99), [-1.0, 0.0, -0.0, 0.0], LARGEST_UNIFORM) == 0


def test_top_p_ends_with_the_token_that_reaches_it() -> None:
    for top_p, last in ((0.25, 0), (0.2500001, 1), (0.5, 1), (0.75, 2), (0.7500001, 3)):
        assert choose_one(Row(top_p=top_p), [5.0] * 4, LARGEST_UNIFORM) == last
    # Of the tokens that top-k leaves.
    assert choose_one(Row(top_k=2, top_p=0.5), [5.0] * 4, LARGEST_UNIFORM) == 0
    assert choose_one(Row(top_k=2, top_p=0.6), [5.0] * 4, LARGEST_UNIFORM) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-37, 1e40, math.inf])
def test_extreme_temperatures_choose_valid_tokens(temperature: float) -> None:
    logits = [-math.inf, 3e38, -3e38, 3.1e38, 3.1e38]
    for options in ({}, {"top_k": 4}, {"top_p": 0.999999}, {"min_p": 1e-9}):
        row = Row(temperature=temperature, **options)
        drawn = {choose_one(row, logits, uniform) for uniform in np.linspace(0, 0.999, 100)}
        assert drawn == ({3, 4} if temperature < 1 else {1, 2, 3, 4})


@pytest.mark.parametrize("extreme", [1e-300, 1e300, 3.4028235e38, 5e-324])
def test_extreme_penalties_stay_finite(extreme: float) -> None:
    generated = Row(Shaping(repetition_penalty=extreme), generated=[1, 1])
    assert choose_one(replace(generated, temperature=0), [1.0, -2.0, 0.5]) == 0
    for penalties in ({"frequency_penalty": extreme}, {"presence_penalty": extreme}):
        row = Row(Shaping(**penalties), generated=[1, 1], temperature=0)
        assert choose_one(row, [1.0, 2.0, 0.5]) == (0 if extreme > 1 else 1)
    assert choose_one(Row(Shaping({2: extreme})), [1.0, -1.0, 0.5], 0) == (2 if extreme > 1 else 0)
    assert choose_one(Row(Shaping({2: -extreme})), [1.0, -1.0, 5.0], LARGEST_UNIFORM) == (1 if extreme > 1 else 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_a_logit_that_is_not_finite_makes_the_choice_impossible(bad: float, options: dict[str, Any]) -> None:
    shapings = [Shaping(), Shaping(forbidden_tokens=(1,)), Shaping(forced_tokens=(0,)), Shaping({1: -math.inf})]
    rows = [Row(shaping, **options) for shaping in [*shapings, Shaping()]]
    for allowed in (None, [[True, False]] * 5):
        choices = choose(rows, [[0, bad]] * 4 + [[0, 1]], 0.5, allowed)
        assert choices.impossible.tolist() == [True] * 4 + [False]
        assert set(choices.tokens.tolist()) <= {0, 1}


def test_rows_without_any_possible_token_are_reported() -> None:
    for temperature in (0, 1):
        free = Row(temperature=temperature)
        assert choose_one(replace(free, shaping=Shaping({0: 3e38})), [3e38, 0]) is None
        forbids = replace(free, shaping=Shaping(forbidden_tokens=(0, 2)))
        assert choose_one(free, [-math.inf, -math.inf, -math.inf]) is None
        assert choose_one(forbids, [0, -math.inf, 0]) is None
        assert choose_one(forbids, [0, 0, 0], forbidden=1) is None
        assert choose_one(forbids, [0, 0, 0], allowed=[[True, False, True]]) is None
        assert choose_one(free, [0, 0, 0], allowed=[[False, False, False]]) is None
        assert choose_one(free, [0, 0, 0], allowed=[[False, True, False]], forbidden=1) is None
        forces = replace(free, shaping=Shaping(forced_tokens=(1,)))
        assert choose_one(forces, [0, 0, 0], allowed=[[True, False, True]]) is None
        assert choose_one(forces, [0, 0, 0], forbidden=1) is None
        assert choose_one(forces, [0, -math.inf, 0], allowed=[[False, True, True]]) == 1
        # A grammar that can only end does so.
        short = replace(free, shaping=Shaping(min_tokens=5), end_token=2)
        assert choose_one(short, [0, 0, 9], allowed=[[False, False, True]]) == 2
        assert choose_one(short, [-math.inf, -math.inf, 9]) is None


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"min_p": 0.1, "temperature": 0.7}])
def test_frequencies_match_the_distribution(options: dict[str, Any]) -> None:
    random = np.random.default_rng(11)
    logits = random.normal(size=20).astype(np.float32)
    row = Row(Shaping({3: 1.0}, 1.3, 0.2, 0.1, (5,)), prompt=[1, 2], generated=[2, 2, 6], **options)
    table, count = table_of([row], 20), 20_000
    uniforms = UniformStream(12).take(0, count)
    drawn = choose_tokens(table, np.zeros(count, np.int64), np.tile(logits, (count, 1)), uniforms).tokens
    model = ReferenceRow(row, 20)
    expected = np.zeros(20)
    for token, low, high in model.intervals(logits, None, None):
        expected[token] = (high - low) * count
    found = np.bincount(drawn, minlength=20)
    assert found[expected == 0].sum() == 0
    possible = expected > 0
    statistic = ((found - expected)[possible] ** 2 / expected[possible]).sum()
    assert 6 < possible.sum() <= 19
    assert statistic < 42.3  # chi-square, 18 degrees of freedom or fewer, 0.1 %


# A reference in plain Python.


class ReferenceRow:
    """A row that is shaped token by token."""

    def __init__(self, row: Row, width: int) -> None:
        self.row, self.width = row, width
        self.generated = list(row.generated)

    def copy(self) -> ReferenceRow:
        copy = ReferenceRow(self.row, self.width)
        copy.generated = list(self.generated)
        return copy

    def shape(self, scores: NDArray[np.float32], allowed: Any, unknown: int | None) -> list[np.float32]:
        shaping, prompt = self.row.shaping, list(self.row.prompt)
        shaped = []
        for token, score in enumerate(scores):
            count = self.generated.count(token)
            score += np.float32(shaping.logit_bias.get(token, 0.0))
            if count or token in prompt:
                penalty = np.float32(shaping.repetition_penalty)
                score = score * penalty if score < 0 else score / penalty
            score -= np.float32(shaping.frequency_penalty) * np.float32(count)
            score -= np.float32(shaping.presence_penalty) * np.float32(count > 0)
            if token == self.row.end_token and len(self.generated) < shaping.min_tokens:
                score = np.float32(-np.inf)
            shaped.append(score)
        if allowed is not None:
            if all(not allowed[token] or shaped[token] == -np.inf for token in range(self.width)):
                shaped = [np.float32(0)] * self.width
            shaped = [score if allowed[token] else np.float32(-np.inf) for token, score in enumerate(shaped)]
        if len(self.generated) < len(shaping.forced_tokens):
            forced = shaping.forced_tokens[len(self.generated)]
            shaped = [np.float32(-np.inf)] * self.width
            if allowed is None or allowed[forced]:
                shaped[forced] = np.float32(0)
        for token in (*shaping.forbidden_tokens, unknown):
            if token is not None:
                shaped[token] = np.float32(-np.inf)
        return shaped

    def intervals(self, scores: NDArray[np.float32], allowed: Any, unknown: int | None) -> list[Interval]:
        """Return the intervals of the draw; none if no token is left."""
        row, shaped = self.row, [float(score) for score in self.shape(scores, allowed, unknown)]
        largest = max(shaped)
        if largest == -math.inf:
            return []
        if row.temperature == 0:
            return [(shaped.index(largest), 0.0, 1.0)]
        weights = [math.exp((score - largest) / row.temperature) for score in shaped]
        order = list(range(self.width))
        if (row.top_k or self.width) < self.width or row.top_p < 1 or row.min_p:
            order = sorted(order, key=lambda token: -shaped[token])[: row.top_k]
            total, sum_before, kept = sum(weights[token] for token in order), 0.0, []
            for token in order:
                if sum_before < row.top_p * total:
                    kept.append(token)
                sum_before += weights[token]
            order = kept
        order = [token for token in order if weights[token] >= row.min_p]
        total = sum(weights[token] for token in order)
        found, start = [], 0.0
        for token in order:
            if weights[token] > 0:
                found.append((token, start, start + weights[token] / total))
                start = found[-1][2]
        return found


def st_rows(width: int) -> st.SearchStrategy[Row]:
    token = st.integers(0, width - 1)
    tokens = st.lists(token, max_size=6)
    penalty = st.sampled_from([0.0, 0.0, 0.5, -0.7, 1.9])
    shaping = st.builds(
        Shaping,
        logit_bias=st.dictionaries(token, st.floats(-20, 20, width=32), max_size=3),
        repetition_penalty=st.sampled_from([1.0, 0.7, 1.3, 5.0]),
        frequency_penalty=penalty,
        presence_penalty=penalty,
        forbidden_tokens=st.lists(token, max_size=2).map(tuple),
        min_tokens=st.integers(0, 8),
        forced_tokens=st.lists(token, max_size=3).map(tuple),
    )
    return st.builds(
        Row,
        shaping=st.just(Shaping()) | shaping,
        temperature=st.sampled_from([0.0, 0.25, 1.0, 3.0]),
        top_k=st.none() | st.integers(1, width + 2),
        top_p=st.sampled_from([1.0, 1.0, 1e-3, 0.35, 0.9]),
        min_p=st.sampled_from([0.0, 0.0, 0.02, 0.4, 1.0]),
        end_token=st.none() | token,
        prompt=tokens,
        generated=tokens,
    )


def st_scores(rows: int, width: int) -> st.SearchStrategy[NDArray[np.float32]]:
    return st_numpy.arrays(
        np.float32, (rows, width), elements=st.sampled_from([-np.inf, 0.0, -0.0, 1.0]) | st.floats(-30, 30, width=32)
    )


@settings(max_examples=examples(40, everything=200))
@given(st.data())
def test_any_sequence_of_operations_matches_a_plain_reference(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 12))
    unknown = data.draw(st.none() | st.integers(0, width - 1))
    table = ShapedRows(width, () if unknown is None else (unknown,))
    model: list[ReferenceRow] = []
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["append", "append", "remove", "rearrange", "step", "step"]))
        if action == "append" or not model:
            row = data.draw(st_rows(width))
            assert append(table, row) == len(model)
            model.append(ReferenceRow(row, width))
        elif action == "remove":
            row_index = data.draw(st.integers(0, len(model) - 1))
            assert table.remove(row_index) == len(model) - 1
            model[row_index] = model[-1]
            model.pop()
        elif action == "rearrange":
            index = st.integers(0, len(model) - 1)
            rows = data.draw(st.lists(index, unique=True))
            sources = data.draw(st.lists(index, min_size=len(rows), max_size=len(rows)))
            table.rearrange(np.array(rows, np.int64), np.array(sources, np.int64))
            for row_index, copy in zip(rows, [model[source].copy() for source in sources], strict=True):
                model[row_index] = copy
        else:
            step(data, table, model, width, unknown)
        assert len(table) == len(model)


def step(data: st.DataObject, table: ShapedRows, model: list[ReferenceRow], width: int, unknown: int | None) -> None:
    """Let some rows choose, and note the tokens."""
    rows = data.draw(st.lists(st.integers(0, len(model) - 1), unique=True))
    scores = data.draw(st_scores(len(rows), width))
    allowed = data.draw(st.none() | st_numpy.arrays(np.bool_, scores.shape))
    uniforms = data.draw(st_numpy.arrays(np.float32, len(rows), elements=st.floats(0, LARGEST_UNIFORM, width=32)))
    shaped = shape_scores(table, np.array(rows, np.int64), scores, allowed)
    choices = choose_tokens(table, np.array(rows, np.int64), scores, uniforms, allowed)
    for index, row in enumerate(rows):
        known = None if allowed is None else allowed[index].tolist()
        assert shaped[index].tolist() == model[row].shape(scores[index], known, unknown)
        found = model[row].intervals(scores[index], known, unknown)
        assert choices.impossible[index] == (not found)
        if found:
            assert_drawn(int(choices.tokens[index]), float(uniforms[index]), found)
        assert 0 <= choices.tokens[index] < width
        model[row].generated.append(int(choices.tokens[index]))
    table.note(np.array(rows, np.int64), choices.tokens)


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_a_wide_vocabulary_is_drawn_from_like_a_narrow_one(spread: float) -> None:
    random, width = np.random.default_rng(13), 3000
    options = [{}, {"top_k": 2}, {"top_k": 500}, {"top_p": 0.2}, {"top_p": 0.97}, {"top_k": 2000, "top_p": 0.9}]
    options += [{"top_p": 0.9, "min_p": 0.2}, {"min_p": 0.1}]
    rows = [Row(Shaping({5: 1.0}, 1.3, 0.2), generated=[7, 7, 8], **each) for each in options for _ in range(8)]
    logits = (random.normal(size=(len(rows), width)) * spread).astype(np.float32)
    logits[:, ::7] = logits[:, 1::7]  # Some are equal.
    uniforms = random.integers(0, 2**23, len(rows)).astype(np.float32) * np.float32(2.0**-23)
    uniforms[::8] = LARGEST_UNIFORM
    choices = choose(rows, logits, uniforms)
    for row, line, uniform, token in zip(rows, logits, uniforms.tolist(), choices.tokens.tolist(), strict=True):
        assert_drawn(token, uniform, ReferenceRow(row, width).intervals(line, None, None))


# Independence of the other rows.


def every_kind_of_row(random: np.random.Generator, count: int) -> list[Row]:
    rows = []
    for index in range(count):
        shaping = random_shaping(random) if index % 2 else Shaping()
        if index % 4 == 1:
            shaping = replace(shaping, frequency_penalty=0.3, presence_penalty=0.1)
        rows.append(
            Row(
                shaping,
                temperature=float(random.choice([0, 0.3, 1, 2])),
                top_k=random.choice([None, 1, 5, 20]),
                top_p=float(random.choice([1, 0.2, 0.9])),
                min_p=float(random.choice([0, 0, 0.1])),
                end_token=0,
                prompt=random.integers(0, WIDTH, 5),
                generated=random.integers(0, WIDTH, 3),
            )
        )
    return rows


@pytest.mark.parametrize("width", [WIDTH, 101, 5003])
def test_a_row_does_not_depend_on_the_other_rows(width: int) -> None:
    random = np.random.default_rng(width)
    count = 64
    table = table_of(every_kind_of_row(random, count), width, forbidden=2)
    logits = random_scores(random, count, width)
    logits[5, 9], logits[6] = np.nan, -np.inf
    uniforms = random.random(count).astype(np.float32) * np.float32(LARGEST_UNIFORM)
    for allowed in (None, random.random((count, width)) < 0.5):
        everything = np.arange(count)
        shaped = shape_scores(table, everything, logits, allowed)
        together = choose_tokens(table, everything, logits, uniforms, allowed)
        assert 1 <= together.impossible.sum() < 20
        assert len(set(together.tokens.tolist())) > 15
        for size in (1, 2, 3, 8, 17, 64):
            order = random.permutation(count)
            for start in range(0, count, size):
                part = order[start : start + size]
                known = None if allowed is None else allowed[part]
                assert shape_scores(table, part, logits[part], known).tobytes() == shaped[part].tobytes()
                choices = choose_tokens(table, part, logits[part], uniforms[part], known)
                assert choices.tokens.tolist() == together.tokens[part].tolist()
                assert choices.impossible.tolist() == together.impossible[part].tolist()


@pytest.mark.parametrize("by_rank", [False, True])
def test_a_draw_at_a_boundary_does_not_depend_on_the_other_rows(by_rank: bool) -> None:
    # Uniform numbers or a top_p at boundaries of the distribution: the last bit of weights and sums decides.
    random = np.random.default_rng(14)
    count, width = 500, 97
    logits = random.normal(size=(count, width)).astype(np.float32)
    weights = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    if by_rank:
        weights = -np.sort(-weights, axis=1)
    boundaries = weights.cumsum(axis=1) / weights.sum(axis=1, keepdims=True)
    at_boundary = boundaries[np.arange(count), random.integers(0, width - 1, count)]
    uniforms = np.full(count, LARGEST_UNIFORM) if by_rank else at_boundary
    table = table_of([Row(top_p=float(boundary)) if by_rank else Row() for boundary in at_boundary], width)
    together = choose_tokens(table, np.arange(count), logits, uniforms.astype(np.float64))
    for row in range(count):
        part = np.array([row])
        assert choose_tokens(table, part, logits[part], uniforms[part]).tokens[0] == together.tokens[row]


def test_a_row_added_with_generated_tokens_equals_one_that_noted_them() -> None:
    random = np.random.default_rng(15)
    for tokens in (np.array([3]), random.integers(0, 6, 9), np.full(40, 7)):
        rows = [replace(row, generated=NO_TOKENS) for row in every_kind_of_row(random, 40)]
        rows[0] = replace(rows[0], shaping=Shaping(forced_tokens=(1, 2, 3, 4), min_tokens=20))
        noted, everything = table_of(rows), np.arange(len(rows))
        for token in tokens:
            noted.note(everything, np.full(len(rows), token))
        continued = table_of([replace(row, generated=tokens) for row in rows])
        scores = random_scores(random, len(rows))
        assert (
            shape_scores(noted, everything, scores).tobytes() == shape_scores(continued, everything, scores).tobytes()
        )
        # Both stay equal when more tokens are noted.
        noted.note(everything, tokens[:1].repeat(len(rows)))
        continued.note(everything, tokens[:1].repeat(len(rows)))
        assert (
            shape_scores(noted, everything, scores).tobytes() == shape_scores(continued, everything, scores).tobytes()
        )


def test_a_reused_row_keeps_nothing_of_its_former_use() -> None:
    random = np.random.default_rng(16)
    scores = random_scores(random, 1)
    table = table_of([Row(random_shaping(random), generated=[1, 2, 3]) for _ in range(20)])
    for _ in range(20):
        table.remove(0)
    assert len(table) == 0
    assert choose_tokens(table, NO_TOKENS, scores[:0], np.zeros(0, np.float32)).tokens.tolist() == []
    row = Row(Shaping(repetition_penalty=1.5, presence_penalty=0.5, logit_bias={1: 0.5}, forbidden_tokens=(9,)))
    append(table, row)
    assert np.array_equal(shape_scores(table, np.array([0]), scores), shape([row], scores))
    append(table, Row())
    assert np.array_equal(shape_scores(table, np.array([1]), scores), scores)
