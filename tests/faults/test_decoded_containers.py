"""Ids may come in any sequence, an array among them: a decoder never takes the bytes of its memory for ids."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from elman_bundle import ByteVocabulary, CharacterVocabulary, SubwordVocabulary, SymbolVocabulary, WordVocabulary
from tests.support.bundles import byte_bundle
from tests.support.serving import serving

TEXT = "sä 語 the fox"
CONTAINERS: dict[str, Callable[[list[int]], Any]] = {
    "tuple": tuple,
    "array of int": lambda ids: array("i", ids),
    "array of long": lambda ids: array("q", ids),
    "view of an array": lambda ids: memoryview(array("i", ids)),
    "int64": lambda ids: np.array(ids, np.int64),
    "int32": lambda ids: np.array(ids, np.int32),
}
VOCABULARIES = {
    "bytes": ByteVocabulary(),
    "characters": CharacterVocabulary.from_text(TEXT),
    "words": WordVocabulary.from_texts([TEXT], 100),
    "symbols": SymbolVocabulary.from_texts([TEXT], 100),
    "subwords": SubwordVocabulary.from_texts([TEXT * 50], 300),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_every_container_of_ids_is_decoded(kind: str, container: str) -> None:
    vocabulary = VOCABULARIES[kind]
    ids = vocabulary.encode(TEXT).tolist()
    decoder = vocabulary.decoder()
    shown = decoder.decode(CONTAINERS[container](ids[:3])) + decoder.decode(CONTAINERS[container](ids[3:]), final=True)
    assert shown == vocabulary.decoder().decode(ids, final=True) == TEXT


async def test_a_session_of_a_byte_model_shows_its_text() -> None:
    async with serving(byte_bundle()) as running:
        session = (await running.client.create_session("sä", seed=1)).session_id
        text = await running.client.generate(session=session, max_tokens=9).text()
        found = await running.client.session_tokens(session)
        assert found.text.startswith("sä")
        assert found.text == bytes(found.token_ids).decode(errors="replace")
        assert found.text.startswith("sä" + text.rstrip("\N{REPLACEMENT CHARACTER}"))
