"""Beam search against brute force, against transformers, and against a plain loop where scores are tied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutput

from elman_server.decoding.beams import LARGEST_LENGTH_PENALTY, BeamParams, BeamSearch, EarlyStopping, Hypothesis
from tests.support.amount import examples

TRANSFORMERS_NAMES: dict[EarlyStopping, bool | str] = {
    EarlyStopping.FIRST: True,
    EarlyStopping.LIKELY: False,
    EarlyStopping.CERTAIN: "never",
}

Table = Callable[[tuple[int, ...]], NDArray[np.float32]]


@dataclass(frozen=True)
class RandomTable:
    """Log-probabilities that are a function of every token so far.

    Attributes:
        seed: determines the probabilities.
        vocabulary_size: V.
        end_token: made more probable by `end_bias`, if there is one.
        end_bias: nats.
        forbidden_count: number of tokens with probability 0: different ones each time, never the end token.
    """

    seed: int
    vocabulary_size: int
    end_token: int | None = None
    end_bias: float = 0.0
    forbidden_count: int = 0

    def __call__(self, history: tuple[int, ...]) -> NDArray[np.float32]:
        return _random_scores(self, history)


@cache
def _random_scores(table: RandomTable, history: tuple[int, ...]) -> NDArray[np.float32]:
    random = np.random.default_rng([table.seed, *history])
    logits = random.normal(scale=1.5, size=table.vocabulary_size)
    others = [token for token in range(table.vocabulary_size) if token != table.end_token]
    logits[random.permutation(np.array(others, np.int64))[: table.forbidden_count]] = -np.inf
    if table.end_token is not None:
        logits[table.end_token] += table.end_bias
    return (logits - np.logaddexp.reduce(logits)).astype(np.float32)


def run(params: BeamParams, table: Table, vocabulary_size: int, *, most_steps: int | None = None) -> BeamSearch:
    """Run a search to its end, or for `most_steps` steps."""
    search = BeamSearch(params, vocabulary_size)
    steps = 0
    while not search.done and steps != most_steps:
        scores = np.stack([table(search.tokens_of(beam)) for beam in range(search.width_now)])
        before = [search.tokens_of(beam) for beam in range(search.width_now)]
        branches = search.advance(scores)
        after = [search.tokens_of(beam) for beam in range(search.width_now)]
        pairs = zip(branches.sources.tolist(), branches.tokens.tolist(), strict=True)
        assert after == [(*before[source], token) for source, token in pairs]
        assert branches.sources.dtype == branches.tokens.dtype == np.int64
        assert len(set(after)) == len(after)
        steps += 1
    return search


def search_results(params: BeamParams, table: Table, vocabulary_size: int) -> list[Hypothesis]:
    return run(params, table, vocabulary_size).results()


def hypothesis_of(tokens: tuple[int, ...], params: BeamParams, table: Table) -> Hypothesis:
    """Return a sequence, which includes its end token, as a hypothesis."""
    total = math.fsum(float(table(tokens[:place])[token]) for place, token in enumerate(tokens))
    ended = bool(tokens) and tokens[-1] == params.end_token
    score = total / len(tokens) ** params.length_penalty
    return Hypothesis(tokens[:-1] if ended else tokens, score, total, ended)


def every_hypothesis(params: BeamParams, table: Table, vocabulary_size: int) -> list[Hypothesis]:
    """Return every possible sequence, the best first."""
    found = []
    for length in range(1, params.max_tokens + 1):
        for tokens in itertools.product(range(vocabulary_size), repeat=length):
            whole = params.end_token not in tokens[:-1]
            if whole and (tokens[-1] == params.end_token or length == params.max_tokens):
                found.append(hypothesis_of(tokens, params, table))
    possible = [hypothesis for hypothesis in found if hypothesis.log_probability > -math.inf]
    return sorted(possible, key=lambda hypothesis: -hypothesis.score)


def assert_same(found: list[Hypothesis], expected: list[Hypothesis], tolerance: float = 1e-9) -> None:
    assert [(one.tokens, one.ended) for one in found] == [(one.tokens, one.ended) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, rel=tolerance, abs=tolerance)
        assert one.log_probability == pytest.approx(other.log_probability, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("forbidden_count", [0, 1])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("vocabulary_size", [2, 3, 4])
def test_a_search_that_keeps_every_beam_equals_brute_force(
    vocabulary_size: int, ends: bool, forbidden_count: int
) -> None:
    end_token = vocabulary_size - 1 if ends else None
    for length, penalty, stopping, seed in itertools.product(
        range(1, 6), (-1.0, 0.0, 0.7, 2.0), EarlyStopping, range(2)
    ):
        width = vocabulary_size**length
        params = BeamParams(width, width, length, end_token, penalty, stopping)
        table = RandomTable(seed, vocabulary_size, end_token, 0.0, forbidden_count)
        expected = every_hypothesis(params, table, vocabulary_size)
        assert_same(search_results(params, table, vocabulary_size), expected)
        few = replace(params, result_count=min(3, width))
        assert_same(search_results(few, table, vocabulary_size), expected[:3])


class TableConfig(PretrainedConfig):
    model_type = "table"


class TableModel(PreTrainedModel, GenerationMixin):
    """A model of transformers whose logits are the scores of a table; it has no cache."""

    config_class = TableConfig
    main_input_name = "input_ids"

    def __init__(self, config: TableConfig, table: RandomTable) -> None:
        super().__init__(config)
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # transformers asks for its device
        self.table = table

    def forward(self, input_ids: torch.Tensor, **options: Any) -> CausalLMOutput:
        rows = [self.table(tuple(row)) for row in input_ids.tolist()]
        return CausalLMOutput(logits=torch.from_numpy(np.stack(rows))[:, None, :])

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, *rest: Any, **options: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}


def transformers_results(
    params: BeamParams, table: RandomTable, prompt: tuple[int, ...], repetition_penalty: float
) -> list[tuple[tuple[int, ...], bool, float | None]]:
    """Return the tokens without the end token, whether they ended, and the score if there is one."""
    model = TableModel(TableConfig(vocab_size=table.vocabulary_size, use_cache=False), table)
    beams: dict[str, Any] = {}
    if params.width > 1:  # Greedy search warns about options that it does not use.
        beams["length_penalty"] = params.length_penalty
        beams["early_stopping"] = TRANSFORMERS_NAMES[params.early_stopping]
    output = model.generate(
        torch.tensor([prompt]),
        num_beams=params.width,
        do_sample=False,
        num_return_sequences=params.result_count,
        max_new_tokens=params.max_tokens,
        eos_token_id=params.end_token,
        pad_token_id=0,
        repetition_penalty=repetition_penalty,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **beams,
    )
    greedy = isinstance(output, GenerateDecoderOnlyOutput)
    scores = [None] if greedy else output.sequences_scores.tolist()
    found = []
    for row, score in zip(output.sequences[:, len(prompt) :].tolist(), scores, strict=True):
        ended = params.end_token in row
        found.append((tuple(row[: row.index(params.end_token)] if ended else row), ended, score))
    return found


def random_case(seed: int) -> SimpleNamespace:
    """Return settings under which every beam has enough continuations at every step."""
    random = np.random.default_rng(seed)
    width = int(random.integers(1, 7))
    ends = bool(random.random() < 0.8)
    forbidden_count = int(random.integers(0, 4))
    vocabulary_size = max(2, width + ends + forbidden_count + int(random.integers(0, 6)))
    end_token = int(random.integers(vocabulary_size)) if ends else None
    params = BeamParams(
        width=width,
        result_count=int(random.integers(1, width + 1)),
        max_tokens=int(random.integers(1, 16)),
        end_token=end_token,
        length_penalty=float(random.choice([-2.0, -0.5, 0.0, 0.5, 1.0, 2.0])),
        early_stopping=list(EarlyStopping)[random.integers(3)],
    )
    table = RandomTable(seed, vocabulary_size, end_token, float(random.choice([-1.0, 0.0, 1.0, 3.0])), forbidden_count)
    others = [token for token in range(vocabulary_size) if token != end_token]
    prompt = tuple(random.choice(others, random.integers(1, 4)).tolist())
    return SimpleNamespace(
        params=params, table=table, prompt=prompt, repetition_penalty=float(random.choice([1.0, 1.0, 1.5]))
    )


@pytest.mark.parametrize("seeds", [range(start, start + 100) for start in range(0, 400, 100)], ids=str)
def test_results_equal_those_of_transformers(seeds: range) -> None:
    for seed in seeds:
        case = random_case(seed)

        def shaped(history: tuple[int, ...], case: SimpleNamespace = case) -> NDArray[np.float32]:
            scores = case.table((*case.prompt, *history)).copy()
            seen = list({*case.prompt, *history})
            scores[seen] *= np.float32(case.repetition_penalty)  # all of them are negative
            return scores

        found = search_results(case.params, shaped, case.table.vocabulary_size)
        expected = transformers_results(case.params, case.table, case.prompt, case.repetition_penalty)
        assert [(one.tokens, one.ended) for one in found] == [(tokens, ended) for tokens, ended, _ in expected], case
        for one, (_, _, score) in zip(found, expected, strict=True):
            if score is not None:
                assert one.score == pytest.approx(score, rel=1e-5, abs=1e-5), case


@dataclass(frozen=True)
class TiedTable:
    """Log-probabilities with many ties and some impossible tokens, whose sums are exact."""

    seed: int
    vocabulary_size: int

    def __call__(self, history: tuple[int, ...]) -> NDArray[np.float32]:
        return _tied_scores(self, history)


@cache
def _tied_scores(table: TiedTable, history: tuple[int, ...]) -> NDArray[np.float32]:
    random = np.random.default_rng([table.seed, *history])
    return random.choice(np.float32([-np.inf, -0.25, -0.5, -0.5, -1.0]), table.vocabulary_size)


def plain_search(params: BeamParams, table: Table, vocabulary_size: int) -> list[Hypothesis]:
    """Search over lists, where max_tokens ends beams like the end token does."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[Hypothesis] = []
    for length in range(1, params.max_tokens + 1):
        candidates = [
            (-(total + float(score)), beam, token)
            for beam, (tokens, total) in enumerate(live)
            for token, score in enumerate(table(tokens))
            if score > -math.inf
        ]
        best = [((*live[beam][0], token), -loss) for loss, beam, token in sorted(candidates)[: 2 * params.width]]
        divisor = length**params.length_penalty
        done = [
            Hypothesis(tokens[:-1], total / divisor, total, True)
            for tokens, total in best[: params.width]
            if tokens[-1] == params.end_token
        ]
        if length == params.max_tokens:
            done += [
                Hypothesis(tokens, total / divisor, total, False)
                for tokens, total in best[: params.width]
                if tokens[-1] != params.end_token
            ]
        finished = sorted([*finished, *done], key=lambda hypothesis: -hypothesis.score)[: params.width]
        live = [(tokens, total) for tokens, total in best if tokens[-1] != params.end_token][: params.width]
        if not live:
            break
        if len(finished) == params.width:
            favours_long = params.early_stopping is EarlyStopping.CERTAIN and params.length_penalty > 0
            bound = live[0][1] / (params.max_tokens if favours_long else length) ** params.length_penalty
            if params.width == 1 or params.early_stopping is EarlyStopping.FIRST or bound <= finished[-1].score:
                break
    return finished[: params.result_count]


@st.composite
def beam_params(draw: st.DrawFn) -> tuple[BeamParams, int]:
    """Generate any parameters and a vocabulary size."""
    vocabulary_size = draw(st.integers(1, 6))
    width = draw(st.integers(1, 6))
    params = BeamParams(
        width=width,
        result_count=draw(st.integers(1, width)),
        max_tokens=draw(st.integers(1, 7)),
        end_token=draw(st.none() | st.integers(0, vocabulary_size - 1)),
        length_penalty=draw(st.sampled_from([-1.0, 0.0, 1.0]) | st.floats(-10, 10)),
        early_stopping=draw(st.sampled_from(EarlyStopping)),
    )
    return params, vocabulary_size


@settings(max_examples=examples(100, everything=500), derandomize=True)
@given(beam_params(), st.integers(0, 1000))
def test_ties_and_impossible_tokens_match_a_plain_loop(drawn: tuple[BeamParams, int], seed: int) -> None:
    params, vocabulary_size = drawn
    table = TiedTable(seed, vocabulary_size)
    assert search_results(params, table, vocabulary_size) == plain_search(params, table, vocabulary_size)


def test_searches_that_stop_early_match_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    for seed in range(1500):
        params = BeamParams(
            width=int(random.integers(2, 5)),
            result_count=2,
            max_tokens=int(random.integers(5, 25)),
            end_token=0,
            length_penalty=float(random.uniform(-2, 3)),
            early_stopping=list(EarlyStopping)[random.integers(3)],
        )
        table = RandomTable(seed, 4, 0, float(random.uniform(0, 3)))
        assert_same(search_results(params, table, 4), plain_search(params, table, 4))


@settings(max_examples=examples(60, everything=300), derandomize=True)
@given(beam_params(), st.integers(0, 1000))
def test_the_scores_of_results_are_correct(drawn: tuple[BeamParams, int], seed: int) -> None:
    params, vocabulary_size = drawn
    table = RandomTable(seed, vocabulary_size, params.end_token)
    found = search_results(params, table, vocabulary_size)
    assert 1 <= len(found) <= params.result_count
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len({one.tokens for one in found}) == len(found)
    for one in found:
        assert len(one.tokens) + one.ended <= params.max_tokens
        assert one.ended or len(one.tokens) == params.max_tokens
        assert params.end_token not in one.tokens
        whole = (*one.tokens, params.end_token) if one.ended and params.end_token is not None else one.tokens
        assert_same([one], [hypothesis_of(whole, params, table)])


@settings(max_examples=examples(60, everything=300), derandomize=True)
@given(beam_params(), st.integers(0, 1000), st.integers(1, 7))
def test_results_of_a_running_search_equal_those_of_a_shorter_one(
    drawn: tuple[BeamParams, int], seed: int, steps: int
) -> None:
    params, vocabulary_size = drawn
    if params.early_stopping is EarlyStopping.CERTAIN:  # depends on max_tokens
        params = replace(params, early_stopping=EarlyStopping.LIKELY)
    table = TiedTable(seed, vocabulary_size)
    so_far = run(params, table, vocabulary_size, most_steps=steps).results()
    shorter = replace(params, max_tokens=min(steps, params.max_tokens))
    assert so_far == search_results(shorter, table, vocabulary_size)


@pytest.mark.parametrize("make_table", [TiedTable, RandomTable])
@pytest.mark.parametrize("stopping", EarlyStopping)
def test_width_1_is_greedy_search(make_table: Callable[[int, int], Table], stopping: EarlyStopping) -> None:
    for seed in range(100):
        table = make_table(seed, 5)
        tokens: tuple[int, ...] = ()
        while len(tokens) < 20 and tokens[-1:] != (4,) and table(tokens).max() > -math.inf:
            tokens = (*tokens, int(table(tokens).argmax()))
        params = BeamParams(1, 1, 20, 4, 0.5, stopping)
        found = search_results(params, table, 5)
        if len(tokens) == 20 or tokens[-1] == 4:
            assert_same(found, [hypothesis_of(tokens, params, table)])
        else:
            assert found == []


def scores_of(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def test_an_end_that_is_not_among_the_best_does_not_count() -> None:
    search = BeamSearch(BeamParams(2, 2, 9, end_token=2), 4)
    branches = search.advance(scores_of([-1, -2, -3, -4]))
    assert (branches.sources.tolist(), branches.tokens.tolist()) == ([0, 0], [0, 1])
    assert [one.ended for one in search.results()] == [False, False]
    # Sums: -1.1, -1.2 (the end), -2.3 (the end, the third), -2.4, -6, ...
    branches = search.advance(scores_of([-0.1, -5, -0.2, -9], [-0.4, -9, -0.3, -9]))
    assert (branches.sources.tolist(), branches.tokens.tolist()) == ([0, 1], [0, 0])
    assert [one.tokens for one in search.results()] == [(0, 0), (0,)]
    assert search.tokens_of(1) == (1, 0)


def test_early_stopping_decides_which_hypotheses_are_still_found() -> None:
    def found(stopping: EarlyStopping, scores: list[list[float]], penalty: float) -> tuple[int, list[tuple[int, ...]]]:
        search = BeamSearch(BeamParams(2, 2, 10, 0, penalty, stopping), 3)
        steps = 0
        while not search.done:
            row = scores[min(steps, len(scores) - 1)]
            search.advance(np.tile(np.float32(row), (search.width_now, 1)))
            steps += 1
        return steps, [one.tokens for one in search.results()]

    # After two steps () has -1, (1,) has -2.2 / 2; the best live beam -0.4 / 2, or -0.4 / 10 at most.
    scores: list[list[float]] = [[-1, -0.2, -3], [-2, -0.2, -3], [-5, -0.05, -9]]
    assert found(EarlyStopping.FIRST, scores, 1.0) == (2, [(), (1,)])
    assert found(EarlyStopping.LIKELY, scores, 1.0)[0] == 10
    # As before, but the live beam has -2.4 / 2, or -2.4 / 10 at most.
    scores[1:] = [[-2, -2.2, -9], [-9, -0.01, -9]]
    assert found(EarlyStopping.FIRST, scores, 1.0) == (2, [(), (1,)])
    assert found(EarlyStopping.LIKELY, scores, 1.0) == (2, [(), (1,)])
    steps, tokens = found(EarlyStopping.CERTAIN, scores, 1.0)
    assert (steps, tokens[0]) == (10, (1,) * 10)
    # Without normalisation a sum never rises again, and an equal one is not better.
    assert found(EarlyStopping.CERTAIN, scores, 0.0)[0] == 2
    for stopping in EarlyStopping:
        assert found(stopping, [[-1, -1, -9]], 0.0) == (2, [(), (1,)])
    # The length multiplies: a beam scores best at its present length. (1, 1) has -0.7 * 3, better than (1,) with
    # -2.3 * 2.
    scores = [[-1, -0.3, -3], [-2, -0.3, -3], [-0.1, -5, -9]]
    assert found(EarlyStopping.CERTAIN, scores, -1.0) == (3, [(), (1, 1)])


def test_the_number_of_beams_may_fall_below_the_width_and_rise_again() -> None:
    search = BeamSearch(BeamParams(3, 3, 9, end_token=2), 3)
    impossible = -math.inf
    search.advance(scores_of([-1, impossible, impossible]))
    assert search.width_now == 1
    search.advance(scores_of([-1, -1, -2]))
    assert [search.tokens_of(beam) for beam in range(search.width_now)] == [(0, 0), (0, 1)]
    branches = search.advance(scores_of([impossible] * 3, [impossible, impossible, -1]))
    assert search.done
    assert search.width_now == branches.sources.size == branches.tokens.size == 0
    # -3 / 3 is better than -3 / 2.
    assert [(one.tokens, one.log_probability, one.ended) for one in search.results()] == [
        ((0, 1), -3.0, True),
        ((0,), -3.0, True),
    ]
    dead = BeamSearch(BeamParams(3, 3, 9), 3)
    assert dead.results() == []
    dead.advance(scores_of([impossible] * 3))
    assert dead.done
    assert dead.results() == []


def test_wrong_scores_are_refused_and_change_nothing() -> None:
    search = BeamSearch(BeamParams(2, 2, 2), 3)
    search.advance(scores_of([-1, -2, -3]))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="scores: got NaN or \\+inf for beam 1; must be finite or -inf"):
            search.advance(scores_of([-1, -1, -1], [-1, bad, -2]))
    with pytest.raises(ValueError, match=r"scores: got shape \(1, 3\); must be \(2, 3\)"):
        search.advance(scores_of([-1, -1, -1]))
    with pytest.raises(IndexError):
        search.tokens_of(2)
    search.advance(scores_of([-1, -2, -3], [-1, -2, -3]))
    assert [(one.tokens, one.log_probability) for one in search.results()] == [((0, 0), -2.0), ((0, 1), -3.0)]
    with pytest.raises(ValueError, match="the search is done"):
        search.advance(np.empty((0, 3), np.float32))


def test_a_wide_vocabulary_is_searched_like_a_narrow_one() -> None:
    random = np.random.default_rng(0)
    search = BeamSearch(BeamParams(5, 5, 9), 30_000)
    search.advance(random.normal(-20, 1, size=(1, 30_000)).astype(np.float32))
    sums = [one.log_probability for one in search.results()]
    scores = random.normal(-20, 1, size=(5, 30_000)).astype(np.float32)
    scores[:, random.choice(30_000, 20_000, replace=False)] = -np.inf
    branches = search.advance(scores)
    totals = scores + np.array(sums)[:, None]
    expected = np.argsort(-totals, axis=None, kind="stable")[:5]
    assert (branches.sources * 30_000 + branches.tokens).tolist() == expected.tolist()


def test_long_searches_lose_no_precision() -> None:
    length = 20_000
    row = np.log(np.float32([[0.9, 0.1]]))
    search = BeamSearch(BeamParams(2, 2, length), 2)
    while not search.done:
        search.advance(np.tile(row, (search.width_now, 1)))
    best, second = search.results()
    assert best.tokens == (0,) * length
    assert best.log_probability == pytest.approx(length * float(row[0, 0]), rel=1e-10)
    assert sum(second.tokens) == 1
    assert best.score == pytest.approx(float(row[0, 0]), rel=1e-10)


@pytest.mark.parametrize("penalty", [-LARGEST_LENGTH_PENALTY, LARGEST_LENGTH_PENALTY])
def test_the_largest_length_penalty_stays_finite(penalty: float) -> None:
    params = BeamParams(2, 2, 2**31 - 1, 0, penalty, EarlyStopping.CERTAIN)
    search = BeamSearch(params, 3)
    for _ in range(50):
        if not search.done:
            search.advance(np.full((search.width_now, 3), -80, np.float32))
    assert all(math.isfinite(one.score) for one in search.results())
