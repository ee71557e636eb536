"""Control tokens (begin, end, inner node, padding) are never reached from text, have no text, and are never generated,
except the end token to end a sequence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from elman import Client, InvalidRequestError
from elman_bundle import (
    BEGIN,
    END,
    INNER,
    Bundle,
    ByteVocabulary,
    CharacterVocabulary,
    EncodingError,
    InputVocabulary,
    SubwordVocabulary,
    SymbolVocabulary,
    WordVocabulary,
    write_vocabulary,
)
from elman_bundle.bundle_folder import load_bundle
from elman_bundle.vocabulary_files import read_vocabulary
from elman_protos import v1
from elman_training.encoder_decoder.translation_task import _with_begin_and_end
from tests.support.encoder_models import translator_bundle
from tests.support.paths import FIXTURES
from tests.support.serving import serving
from tests.support.trees import INNER as TREE_INNER
from tests.support.trees import WORDS

LISTED: Mapping[str, Callable[[list[str]], InputVocabulary]] = {
    "characters": lambda tokens: CharacterVocabulary(tokens, 0),
    "words": lambda tokens: WordVocabulary(tokens, 0),
    "symbols": lambda tokens: SymbolVocabulary(tokens, 0),
}
TOKENS = ["�", BEGIN, END, INNER, "a", "b"]


def with_control(folder: Path, vocabulary: InputVocabulary, begin: int, end: int, inner: int | None) -> InputVocabulary:
    """The vocabulary as it is read from a bundle that declares its control tokens."""
    spec = write_vocabulary(folder, vocabulary)
    spec.begin_token_id, spec.end_token_id = begin, end
    found = read_vocabulary(folder, spec, inner)
    assert isinstance(found, InputVocabulary)
    return found


@pytest.mark.parametrize("kind", LISTED)
def test_text_that_spells_control_tokens_is_unknown(kind: str, tmp_path: Path) -> None:
    vocabulary = with_control(tmp_path, LISTED[kind](TOKENS), 1, 2, 3)
    assert vocabulary.control_ids == {1, 2, 3}
    separator = " " if kind == "symbols" else ""
    written = separator.join(["a", BEGIN, "b", END, "a", INNER])
    assert vocabulary.encode(written).tolist() == [4, 0, 5, 0, 4, 0]
    assert vocabulary.decoder().decode([1, 4, 3, 5, 2], final=True) == f"a{separator}b"
    assert [token for token, text in enumerate(vocabulary.token_bytes()) if text is None] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["bytes", "subwords"])
def test_text_that_spells_control_tokens_is_refused_where_nothing_is_unknown(kind: str, tmp_path: Path) -> None:
    plain = ByteVocabulary() if kind == "bytes" else SubwordVocabulary.from_texts(["ab語ab"], 260)
    begin, end = (int(plain.encode(token)[0]) for token in (BEGIN, END))
    vocabulary = with_control(tmp_path, plain, begin, end, None)
    with pytest.raises(EncodingError, match=r"'\\x02' is a control token") as caught:
        vocabulary.encode("ab語\x02")
    assert caught.value.position == 3
    assert vocabulary.encode("ab語").tolist() == plain.encode("ab語").tolist()
    assert vocabulary.decoder().decode([begin, *plain.encode("語").tolist(), end], final=True) == "語"
    assert vocabulary.token_bytes()[begin] is None


def test_white_space_that_begins_or_ends_sequences_stays_text(tmp_path: Path) -> None:
    """A newline ends every line of a corpus, and prompts hold several."""
    vocabulary = with_control(tmp_path, CharacterVocabulary("ab\n"), 2, 2, None)
    assert vocabulary.encode("a\nb").tolist() == [0, 2, 1]
    assert vocabulary.decoder().decode([0, 2, 1]) == "a\nb"


@pytest.mark.parametrize("end", [None, 310])
def test_a_special_token_is_never_generated_but_to_end_a_sequence(end: int | None) -> None:
    settings = json.loads(SubwordVocabulary.from_texts(["the quick brown fox " * 40], 310)._content)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = len(settings["model"]["vocab"])
    settings["added_tokens"] += [{"id": first + index, "content": f"<{index}>", **plain} for index in range(2)]
    vocabulary = SubwordVocabulary(json.dumps(settings))
    spec = v1.ModelSpec(vocabularies=[v1.VocabularySpec(name="text", end_token_id=end and first)])
    bundle = Bundle(Path("none"), spec, "", {"text": vocabulary})
    assert bundle.ungenerated_ids("text") == ((first, first + 1) if end is None else (first + 1,))
    assert first not in vocabulary.encode("<0>")


def test_bundles_made_before_read_as_before() -> None:
    bundle = load_bundle(FIXTURES / "b8167f8" / "bundles" / "text")
    unknown = bundle.vocabulary_spec("text").unknown_token_id
    assert bundle.ungenerated_ids("text") == (unknown,)


async def generated(client: Client, **options: object) -> list[int]:
    """The tokens of several samples, of which every token is probable."""
    found = await client.sample("ab", count=8, temperature=50.0, seed=1, max_tokens=20, **options)  # type: ignore[arg-type]
    return [token for one in found for token in one.token_ids]


async def test_a_begin_token_is_never_generated(ends: Bundle) -> None:
    """In the graph, filtered, on the host, with a grammar, and in beams."""
    async with serving(ends, slots=8) as running:
        client = running.client
        for options in ({}, {"top_k": 4}, {"logit_bias": {0: 100.0}}, {"regex": "[abc^]*"}):
            ids = await generated(client, **options)
            assert len(ids) > 8
            assert not {0, 1} & set(ids)
        for beam in await client.search("ab", width=4, count=4, logit_bias={0: 100.0}, max_tokens=5):
            assert 0 not in beam.token_ids
        with pytest.raises(InvalidRequestError, match="token 0; this token must never be generated"):
            await client.sample("ab", count=1, forced_tokens=[0])


async def test_control_characters_in_requests_are_refused_or_unknown(ends: Bundle) -> None:
    translator = translator_bundle()
    async with serving(ends, translator) as running:
        client = running.client
        for written in ("a^b", "a$"):
            with pytest.raises(InvalidRequestError, match="is not in the model's vocabulary"):
                await client.generate(written, model="ends").text()
            with pytest.raises(InvalidRequestError, match="is not in the model's vocabulary"):
                await client.choose(["ab", written], prompt="a", model="ends")
        found = await client.choose(["S1", f"S1 {END}", f"{BEGIN} S1"], source="ab", model="translator")
        assert [score.unknown_token_count for score in found.scores] == [0, 1, 1]
        session = await client.create_session("ab", model="ends")
        content = await client.session_tokens(session.session_id)
        assert (content.token_ids, content.text) == ((0, 2, 3), "ab")


async def test_a_leaf_never_reads_the_inner_token(tree_bundles: Mapping[str, Bundle]) -> None:
    word = WORDS.tokens[2]
    async with serving(tree_bundles["binary"]) as running:
        written, unknown, given = [
            await running.client.classify(tree=f"(0 (0 {leaf}) (0 {word}))")
            for leaf in (WORDS.tokens[TREE_INNER], "never-seen", word)
        ]
    assert written.labels == unknown.labels != given.labels


def test_a_corpus_never_holds_control_tokens() -> None:
    made = CharacterVocabulary.from_text(f"ab{BEGIN}{END}")
    vocabulary, begin, end = _with_begin_and_end(made)
    assert (vocabulary.token_text(begin), vocabulary.token_text(end)) == (BEGIN, END)
    assert vocabulary.encode(f"a{BEGIN}b{END}").tolist() == [1, 0, 2, 0]
    symbols = SymbolVocabulary.from_texts([f"a {INNER}"], 10, reserved=(INNER,))
    assert symbols.encode(f"a {INNER}").tolist() == [2, 0]
