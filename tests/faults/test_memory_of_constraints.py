"""What constraints take of the server's memory is bounded in total: idle ones make room, more than that is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from elman import OverloadedError
from elman_bundle import Bundle
from elman_server.decoding.constraints import Constraint, Grammars
from elman_server.decoding.constraints import memory as memory_module
from elman_server.decoding.constraints.memory import GrammarMemory
from elman_server.decoding.constraints.sandbox import MAX_STATES, STATE_BYTES, CompilationSandbox
from elman_server.errors import ConstraintError, ConstraintMemoryError
from tests.support.grammars import REGEX
from tests.support.serving import serving

LETTERS = [b"a", b"b"]
LARGE = "a?" * 1000  # some mebibytes


def large(number: int) -> Constraint:
    return Constraint(REGEX, LARGE + "b" * number)


def test_idle_grammars_of_all_models_make_room() -> None:
    probe = Grammars(LETTERS, None)
    size = probe.compile(large(0)).size
    assert size > 2**19
    memory = GrammarMemory(limit=int(3.5 * size))
    models = [Grammars(LETTERS, None, memory=memory) for _ in range(2)]
    for number in range(8):
        models[number % 2].compile(large(number))
        assert memory.used <= 3.5 * size
    held = [models[0].compile(large(number)) for number in range(10, 13)]
    with pytest.raises(ConstraintMemoryError, match=r"^constraint: got one more; those in use take .* try again later"):
        models[1].compile(large(20))
    assert models[0].compile(large(12)) is held[2]
    del held
    models[1].compile(large(20))


def test_a_grammar_counts_what_it_needs_while_it_is_used() -> None:
    own = Grammars(LETTERS, None)
    grammar = own.compile(Constraint(REGEX, "(a|b)*"))
    before, matcher = grammar.size, grammar.start()
    for _ in range(100):
        matcher.accept(0)
    assert before < grammar.size <= before + MAX_STATES * STATE_BYTES


def test_idle_grammars_are_dropped_beyond_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = GrammarMemory()
    own = Grammars(LETTERS, None, memory=memory)
    sizes = [own.compile(large(number)).size for number in range(3)]
    monkeypatch.setattr(memory_module, "IDLE_BYTES", int(1.5 * sizes[0]))
    assert memory.trim()
    assert own.kept(large(0)) is own.kept(large(1)) is None
    assert own.kept(large(2)) is not None
    assert memory.used == own.size == sizes[2]


def test_a_grammar_that_takes_too_much_is_refused() -> None:
    sandbox = CompilationSandbox()
    assert sandbox.try_out(Constraint(REGEX, "a").grammar()).size < 2**21
    with pytest.raises(ConstraintError, match="too complex: it takes more than 64 MiB of memory"):
        Grammars(LETTERS, None).compile(Constraint(REGEX, "a?" * 6000))


async def test_a_request_beyond_the_limit_is_told_so(
    bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(bundles["lstm"]) as running:
        client = running.client
        monkeypatch.setattr(running.server._resources.grammars, "_memory", GrammarMemory(limit=2**20))
        with pytest.raises(OverloadedError, match="those in use take 1 MiB") as refused:
            await client.generate("a", regex=LARGE, max_tokens=3).text()
        assert refused.value.reason == "QUEUE_FULL"
        assert await asyncio.wait_for(client.generate("a", regex="ab", max_tokens=3).text(), 10) == "ab"
