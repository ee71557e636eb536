"""A thousand generations of a model of characters under 24 expressions: what has ended matches, what was cut off is the
beginning of a match."""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from elman import FinishReason
from elman_bundle import CharacterVocabulary
from elman_export import Token
from elman_server.decoding.constraints import ConstraintKind
from tests.support.amount import examples
from tests.support.bundles import make_network, write_network
from tests.support.grammars import CHARACTERS, EXPRESSIONS, Vocabulary, matches
from tests.support.serving import serving
from tests.support.shared import shared_bundle

# Without dates: Python knows no year 0, which RFC 3339 does.
CHOSEN = [(kind, text) for kind, text in EXPRESSIONS if '"format"' not in text]
SEEDS = range(examples(6, everything=42))
AT_ONCE = 64
_OPTIONS = {
    ConstraintKind.REGEX: "regex",
    ConstraintKind.JSON_SCHEMA: "json_schema",
    ConstraintKind.LARK: "lark_grammar",
}


async def test_all_of_a_thousand_are_valid() -> None:
    vocabulary = CharacterVocabulary(["\N{REPLACEMENT CHARACTER}", *CHARACTERS], unknown_id=0)
    network = make_network("gru", vocabulary.size, layers=1, hidden=64, tokens=vocabulary.size)
    with torch.no_grad():  # Else strings would hardly ever end.
        network.head.bias[vocabulary.encode('"}]),.0 ').tolist()] += 3
    bundle = shared_bundle("printable", lambda folder: write_network(network, folder, "characters", Token(vocabulary)))
    single = Vocabulary(vocabulary.token_bytes(), None)
    under_way = asyncio.Semaphore(AT_ONCE)
    ended = 0
    async with serving(bundle) as running:

        async def check(kind: ConstraintKind, text: str, seed: int) -> None:
            nonlocal ended
            async with under_way:
                options: dict[str, Any] = {_OPTIONS[kind]: text}
                stream = running.client.generate("x", seed=seed, max_tokens=300, **options)
                output = await stream.text()
            if stream.finish_reason is FinishReason.CONSTRAINT:
                assert matches(kind, text, output), output
                ended += 1
            else:
                assert stream.finish_reason is FinishReason.MAX_TOKENS
                assert single.accept(single.start(kind, text), output).error is None, output

        beside = [asyncio.create_task(running.client.generate("y", seed=seed).text()) for seed in range(8)]
        await asyncio.gather(*(check(kind, text, seed) for kind, text in CHOSEN for seed in SEEDS))
        for task in beside:
            assert len(await task) == 256
        await running.until_idle()
    assert ended > 300 * len(SEEDS) // 42
