"""The prefix cache: it finds exactly the same tokens, is bounded, and does not affect any output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elman import Client
from elman_bundle import Bundle
from elman_server.inference.prefix_cache import MIN_TOKENS, PrefixCache
from elman_server.scheduling import Snapshot
from tests.support.amount import examples
from tests.support.reference import generate_alone
from tests.support.serving import Running, serving

Bundles = Mapping[str, Bundle]

TEXT = "".join(np.random.default_rng(0).choice(list("abcdefgh ijk,.\n"), 3000).tolist())


def read(
    cache: PrefixCache, tokens: list[int], *, caller: str = "me", digest: str = "sha256:0", every: int = 50
) -> int:
    """Read a prompt and keep its states, which are sums of tokens; return the number of tokens that were not read."""
    given = np.array(tokens, np.int64)
    prefix = cache.look_up(digest, caller, given, output_needed=True)
    if prefix.position:
        assert prefix.state is not None
        assert prefix.state["total"][0] == sum(tokens[: prefix.position])
    for position in [*range(prefix.position + every, len(tokens), every), len(tokens)]:
        output = np.array([position]) if position == len(tokens) else None
        prefix.keep(Snapshot(position, {"total": np.array([sum(tokens[:position])])}), output)
    return prefix.position


def test_the_longest_cached_prefix_is_found() -> None:
    cache = PrefixCache(10**6, shared=False)
    assert read(cache, list(range(500))) == 0
    assert read(cache, list(range(500))) == 500
    assert read(cache, list(range(400))) == 350  # The output after 400 tokens was not kept.
    assert read(cache, [*range(430), 9, 9, 9]) == 400
    assert read(cache, [9, *range(500)]) == 0
    assert read(cache, list(range(600))) == 500
    worth = cache.statistics("sha256:0")
    assert (worth.lookups, worth.hits, worth.saved_steps) == (6, 4, 1750)


def test_short_prompts_are_not_cached() -> None:
    cache = PrefixCache(10**6, shared=False)
    assert read(cache, [1] * (MIN_TOKENS - 1)) == 0
    assert len(cache) == cache.statistics("sha256:0").lookups == 0


def test_a_prefix_is_found_for_its_own_bundle_and_caller_unless_callers_share() -> None:
    for shared in (False, True):
        cache = PrefixCache(10**6, shared=shared)
        read(cache, list(range(100)))
        assert read(cache, list(range(100)), caller="you") == (100 if shared else 0)
        assert read(cache, list(range(100)), digest="sha256:1") == 0


def test_the_least_recently_used_prefixes_are_dropped_and_the_limit_holds() -> None:
    cache = PrefixCache(10_000, shared=False)
    for start in range(100):
        read(cache, list(range(start, start + 100)), every=1000)
        assert read(cache, list(range(100)), every=1000) == 100
        assert cache.size <= 10_000
        assert cache.size == sum(entry.size for entry in cache._entries.values())
    assert 10 < len(cache) < 30
    assert read(cache, list(range(1, 101)), every=1000) == 0
    assert read(cache, list(range(99, 199)), every=1000) == 100
    nothing = PrefixCache(0, shared=False)
    read(nothing, list(range(100)))
    assert read(nothing, list(range(100))) == len(nothing) == 0


@settings(max_examples=examples(20, everything=60))
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200), st.integers(0, 200)), max_size=30), st.data())
def test_a_found_state_is_always_that_of_the_same_tokens(
    asked: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Prompts with common prefixes of all lengths; `read` compares the states with the tokens."""
    cache = PrefixCache(data.draw(st.integers(1000, 50_000)), shared=False)
    for kind, common, rest in asked:
        read(cache, [*([kind % 2] * common), *([kind + 5] * rest)], every=data.draw(st.integers(1, 100)))
        assert cache.size == sum(entry.size for entry in cache._entries.values())
        kept = {entry.chain for entry in cache._entries.values()}
        assert set(cache._tails) == kept


def steps_of(running: Running) -> list[int]:
    """Record the number of steps of each run."""
    (model,) = running.server.models
    engine: Any = model.scheduler._batch._engine
    counts: list[int] = []
    run = engine.run

    def counted(rows: range, chunk: Any, **how: bool) -> Any:
        counts.append(len(chunk))
        return run(rows, chunk, **how)

    engine.run = counted
    return counts


@pytest.mark.parametrize("name", ["lstm", "lstm-int8"])
async def test_a_repeated_prompt_gives_the_same_output_and_is_not_read_again(bundles: Bundles, name: str) -> None:
    async with serving(bundles[name]) as running:
        client = running.client
        expected = generate_alone(bundles[name], TEXT, max_tokens=20, temperature=1.0, seed=3)
        for attempt, cached in enumerate((0, len(TEXT) - 1, len(TEXT) - 1)):
            counts = steps_of(running)
            stream = client.generate(TEXT, max_tokens=20, seed=3)
            assert await stream.text() == expected
            assert stream.cached_token_count == cached
            if attempt:
                assert sum(counts) < 40
        stream = client.generate(TEXT, max_tokens=20, seed=3, bypass_prefix_cache=True)
        assert await stream.text() == expected
        assert stream.cached_token_count == 0
        # A prompt with a cached prefix starts after it.
        for prompt in (TEXT[:2000] + "and now something else", TEXT[:1500], TEXT + "xyz"):
            stream = client.generate(prompt, max_tokens=20, temperature=0.7, seed=4)
            found = await stream.text()
            assert found == generate_alone(bundles[name], prompt, max_tokens=20, temperature=0.7, seed=4)
            assert stream.cached_token_count > min(len(prompt), 2000) - 400
        (model,) = await client.list_models()
        assert (model.prefix_lookup_count, model.prefix_hit_count) == (6, 5)
        assert model.saved_step_count > 4 * 1100


async def test_callers_do_not_share_prompts(bundles: Bundles) -> None:
    for shared in (False, True):
        async with (
            serving(bundles["gru"], share_prefixes=shared) as running,
            Client(running.address, caller="me") as me,
            Client(running.address, caller="you") as you,
        ):
            cached = []
            for client in (me, you, me):
                stream = client.generate(TEXT, max_tokens=1, seed=1)
                await stream.text()
                cached.append(stream.cached_token_count)
        assert [bool(count) for count in cached] == [False, shared, True]


async def test_a_repeated_classification_runs_no_step(bundles: Bundles) -> None:
    async with serving(bundles["classes"]) as running:
        first = await running.client.classify(TEXT)
        counts = steps_of(running)
        assert await running.client.classify(TEXT) == first
        assert counts == []
        assert await running.client.classify(TEXT, bypass_prefix_cache=True) == first
        assert sum(counts) == len(TEXT)
        counts.clear()
        longer = await running.client.classify(TEXT + "abc")
        assert sum(counts) == 3
        assert longer == await running.client.classify(TEXT + "abc", bypass_prefix_cache=True)


async def test_a_repeated_tagging_returns_the_tags_of_every_step(bundles: Bundles) -> None:
    async with serving(bundles["tags"]) as running:
        first = await running.client.classify(TEXT)
        assert len(first.steps) == len(TEXT)
        assert await running.client.classify(TEXT) == first
