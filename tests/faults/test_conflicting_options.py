"""Options of a caller that exclude each other are the caller's error, which names both; nothing asked for vanishes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from elman import FinishReason, InvalidRequestError
from elman_bundle import Bundle, CharacterVocabulary
from elman_server.decoding.constraints import Constraint, ConstraintKind, Grammars
from elman_server.decoding.host.shaping import Shaping
from elman_server.errors import InvalidFieldError, ModelFailedError
from elman_server.inference.shaping_options import ShapingOptions, check_shaping
from elman_server.scheduling import Beams, Event, Failed, Finished, Generation, SamplingParams
from elman_server.scheduling.rows.conflicts import nothing_to_choose
from tests.support.bundles import CHARACTERS
from tests.support.fake_engine import LETTERS, FakeEngine
from tests.support.scheduling import Inbox, inbox, make_scheduler
from tests.support.serving import serving

A, B, C = CHARACTERS.encode("abc").tolist()

CONFLICTS: dict[str, tuple[dict[str, Any], str]] = {
    "a forbidden token has to follow": (
        {"regex": "ab", "forbidden_tokens": [B]},
        rf"^constraint: .*after 1 tokens it allows the tokens {B} only, which shaping\.forbidden_token_ids excludes",
    ),
    "a forbidden token has to come first": (
        {"regex": "b+", "forbidden_tokens": [B]},
        r"^constraint: .*after 0 tokens .* which shaping\.forbidden_token_ids excludes",
    ),
    "tokens are forced beyond the match": (
        {"regex": "ab", "forced_tokens": [A, B, B]},
        r"^shaping\.forced_token_ids: got token \d+; the constraint excludes it: it is satisfied before",
    ),
    "many tokens are forced beyond the match": (
        {"regex": "a{300}", "forced_tokens": [A] * 301, "max_tokens": 400},
        r"^shaping\.forced_token_ids: got token \d+; after 300 tokens the constraint is satisfied",
    ),
    "the constraint excludes a late forced token": (
        {"regex": "a{300}b+", "forced_tokens": [A] * 301, "max_tokens": 400},
        r"^shaping\.forced_token_ids: got token \d+; the constraint does not allow it after 300 tokens",
    ),
    "penalties overflow": (
        {"repetition_penalty": 1e-38, "logit_bias": {A: 1e4}, "forced_tokens": [A]},
        r"^shaping: got options that leave no token to choose",
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
async def test_a_conflict_is_the_error_of_its_caller(bundles: Mapping[str, Bundle], name: str) -> None:
    options, problem = CONFLICTS[name]
    async with serving(bundles["lstm"]) as running:
        with pytest.raises(InvalidRequestError, match=problem):
            await running.client.generate("x", **{"max_tokens": 9, "seed": 1, **options}).text()
        if name == "penalties overflow":
            with pytest.raises(InvalidRequestError, match=r"^shaping: got values that overflow"):
                await running.client.search("a", width=2, max_tokens=9, **options)
        await running.until_idle()


async def test_what_is_no_conflict_is_served(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["lstm"]) as running:
        stream = running.client.generate("x", regex="ab", forced_tokens=[A, B])
        assert await stream.text() == "ab"
        assert stream.finish_reason is FinishReason.CONSTRAINT
        biased = running.client.generate("x", regex="a(b|c)", logit_bias={B: -1e4, A: -1e4}, forbidden_tokens=[C])
        assert await biased.text() == "ab"


def constrained(text: str, **shaping: Any) -> Generation:
    grammars = Grammars([None, *(letter.encode() for letter in LETTERS[1:])], 9)
    params = SamplingParams(
        temperature=0.0,
        seed=0,
        max_tokens=9,
        end_token=9,
        grammar=grammars.compile(Constraint(ConstraintKind.REGEX, text)),
        shaping=Shaping(**shaping),
    )
    return Generation(np.array([1, 2]), Inbox(), params=params)


def end_of(sequence: Generation | Beams) -> tuple[list[int], Event]:
    scheduler = make_scheduler(FakeEngine(capacity=2))
    scheduler.submit(sequence)
    scheduler.start()
    try:
        return inbox(sequence).tokens_and_end()
    finally:
        scheduler.stop()


def test_an_end_token_that_is_forced_after_the_match_ends_it() -> None:
    tokens, end = end_of(constrained("ab", forced_tokens=(1, 2, 9)))
    assert tokens == [1, 2]
    assert isinstance(end, Finished)
    tokens, end = end_of(constrained("ab", forced_tokens=(1, 2, 3)))
    assert isinstance(end, Failed)
    assert "allows nothing more" in str(end.error)


def test_what_the_vocabulary_lacks_is_an_error_of_the_expression() -> None:
    tokens, end = end_of(constrained("az|ab", forbidden_tokens=(2,)))
    assert tokens == [1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, InvalidFieldError)
    assert "shaping.forbidden_token_ids excludes" in str(end.error)
    tokens, end = end_of(constrained("a0|ab", forced_tokens=(1,), forbidden_tokens=()))
    assert isinstance(end, Finished)


def test_a_model_without_a_finite_output_has_failed() -> None:
    assert isinstance(nothing_to_choose(None, (), None, finite=False), ModelFailedError)
    assert isinstance(nothing_to_choose(None, (), None, finite=True), InvalidFieldError)


@dataclass(frozen=True)
class EndingModel:
    """What the check of options asks of a model with ten tokens, of which the last one ends a text."""

    name: str = "ending"
    vocabulary_size: int = 10
    end_token: int = 9
    ungenerated_ids: tuple[int, ...] = ()

    @property
    def vocabulary(self) -> CharacterVocabulary:
        return CharacterVocabulary(["\N{REPLACEMENT CHARACTER}", *"abcdefgh"], unknown_id=0)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"forced": [2, 9, 3]}, r"^shaping\.forced_token_ids: got the end token, 9; .* only be the last one"),
        ({"forbidden": range(9), "least": 1}, r"^shaping\.forbidden_token_ids: got every token"),
    ],
)
def test_the_end_token_takes_part_in_conflicts(options: dict[str, Any], problem: str) -> None:
    model: Any = EndingModel()
    shaping = ShapingOptions(
        min_tokens=options.get("least", 0),
        forced_token_ids=options.get("forced", ()),
        forbidden_token_ids=tuple(options.get("forbidden", ())),
    )
    with pytest.raises(InvalidFieldError, match=problem):
        check_shaping(shaping, model, 20)
