"""Text is read with universal newlines at every entrance, as training reads it, and every answer counts unknown
tokens."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elman import Client
from elman_bundle import (
    Bundle,
    BundleError,
    ByteVocabulary,
    CharacterVocabulary,
    InputVocabulary,
    SubwordVocabulary,
    SymbolVocabulary,
    WordVocabulary,
    load_bundle,
    normalize_newlines,
)
from elman_bundle.vocabulary_files import read_vocabulary, vocabulary_spec, write_vocabulary
from elman_server.inference.classify_stream import without_divided_newline
from elman_server.inference.input_forms import TextInput
from elman_server.inference.inputs import _position_in
from elman_training.encoder_decoder.pair_corpus import read_pairs
from elman_training.labels.tagged_text import read_labelled_text
from tests.support.amount import examples
from tests.support.bundles import byte_bundle
from tests.support.encoder_models import judge_bundle, translator_bundle
from tests.support.manifests import change
from tests.support.paths import FIXTURES
from tests.support.serving import serving
from tests.support.trees import WORDS

UNIVERSAL: Mapping[str, Callable[[], InputVocabulary]] = {
    "characters": lambda: CharacterVocabulary.from_text("ab\n"),
    "words": lambda: WordVocabulary.from_texts(["a b\n\n"], 9),
    "symbols": lambda: SymbolVocabulary.from_texts(["a b"], 9),
    "bytes": lambda: ByteVocabulary(universal_newlines=True),
    "subwords": lambda: SubwordVocabulary(
        SubwordVocabulary.from_texts(["a b\n\n"], 260)._content, universal_newlines=True
    ),
}


@pytest.mark.parametrize("kind", UNIVERSAL)
def test_line_ends_are_newlines(kind: str, tmp_path: Path) -> None:
    vocabulary = UNIVERSAL[kind]()
    assert vocabulary.encode("a\r\nb\ra\r\n\r\n").tolist() == vocabulary.encode("a\nb\na\n\n").tolist()
    again = read_vocabulary(tmp_path, write_vocabulary(tmp_path, vocabulary))
    assert isinstance(again, InputVocabulary)
    assert again.universal_newlines
    if kind in ("bytes", "subwords"):
        assert vocabulary_spec(kind).universal_newlines  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "vocabulary",
    [
        CharacterVocabulary("ab\r\n"),
        WordVocabulary(["a", "b", "\r\n"]),
        ByteVocabulary(),
        SubwordVocabulary.from_texts([], 256),
    ],
)
def test_a_vocabulary_with_carriage_returns_reads_them(vocabulary: InputVocabulary) -> None:
    assert vocabulary.decoder().decode(vocabulary.encode("a\r\nb").tolist(), final=True) == "a\r\nb"


def test_bundles_of_bytes_that_were_trained_here_have_universal_newlines(tmp_path: Path) -> None:
    """Also those made before manifests said so; those of other modules read every byte."""
    assert not byte_bundle().text_vocabulary("text").universal_newlines
    shutil.copytree(byte_bundle().path, tmp_path / "old")
    change(tmp_path / "old", lambda manifest: manifest.update(provenance={"producer": "elman 0.1.0"}))
    assert load_bundle(tmp_path / "old").text_vocabulary("text").universal_newlines
    change(tmp_path / "old", lambda manifest: manifest.pop("provenance"))
    change(tmp_path / "old", lambda manifest: manifest["vocabularies"][0].update(universal_newlines=True))
    assert load_bundle(tmp_path / "old").text_vocabulary("text").universal_newlines
    shutil.copytree(FIXTURES / "b8167f8" / "bundles" / "text", tmp_path / "listed")
    assert load_bundle(tmp_path / "listed").text_vocabulary("text").universal_newlines
    change(tmp_path / "listed", lambda manifest: manifest["vocabularies"][0].update(universal_newlines=True))
    with pytest.raises(BundleError, match="universal_newlines is for BYTES and SUBWORDS only"):
        load_bundle(tmp_path / "listed")


def test_every_reader_of_a_corpus_has_universal_newlines(tmp_path: Path) -> None:
    tags = tmp_path / "tags.tsv"
    tags.write_bytes(b"a\\r\tx\r\n\\nb\ty\r\n\r\n\\rc\tx\r\n")
    found = read_labelled_text(str(tags))
    assert (found.text, found.labels, found.starts) == ("a\nb\nc", ["x", "y", "y", "x", "x"], [0, 3])
    for part in ("train", "val", "test_2016_flickr"):
        for language in ("de", "en"):
            (tmp_path / f"{part}.{language}.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfone\r\ntwo\rthree\n"))
    assert [pair.source for pair in read_pairs(str(tmp_path), 0.1).training] == ["one", "two", "three"]


async def answers(client: Client, end: str, session: str) -> list[object]:
    """The answers to calls with a text in every place that takes one."""
    text = f"ab{end}cd{end}"
    sampled = await client.sample(text, count=1, model="gru", max_tokens=12, seed=3, stop=[f"e{end}"])
    search = await client.search(text, width=2, model="gru", max_tokens=4)
    choice = await client.choose([f"x{end}", f"y{end}z"], prompt=text, model="gru")
    score = await client.score(f"x{end}", context=text, model="gru")
    (embedding,) = await client.embed([text], model="gru")
    steps = [step.token_id async for step in client.inspect(text, model="gru", units={"state.layer0.hidden": [0]})]
    await client.create_session(text, session_id=session, model="gru", seed=1)
    stream = client.generate(text, session=session, max_tokens=9)
    held = (await stream.text(), (await client.session_tokens(session)).token_ids)
    return [
        [one.token_ids for one in (*sampled, *search)],
        choice,
        (score.log_likelihood, score.tokens),
        embedding,
        steps,
        held,
        await client.classify(text, model="tags"),
        await client.classify(text, model="classes"),
    ]


async def test_every_call_reads_line_ends_alike(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["gru"], bundles["tags"], bundles["classes"], message_limit=2**20) as running:
        expected = await answers(running.client, "\n", "s0")
        for number, end in enumerate(("\r\n", "\r"), 1):
            assert await answers(running.client, end, f"s{number}") == expected


@settings(max_examples=examples(20, everything=300), deadline=None)
@given(st.text("ab\r\n", max_size=8), st.lists(st.integers(0, 8), max_size=4))
def test_a_stream_may_be_cut_within_a_line_end(text: str, cuts: list[int]) -> None:
    """The pieces of a stream together are the text with universal newlines."""

    vocabulary, ends = CharacterVocabulary("ab\n"), [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    ids, after_return = list[int](), False
    for start, end in pairwise(ends):
        given_input, after_return = without_divided_newline(
            TextInput("text", text[start:end]), vocabulary, after_return
        )
        assert isinstance(given_input, TextInput)
        ids += vocabulary.encode(given_input.text).tolist()
    assert ids == vocabulary.encode(text).tolist()


async def test_pieces_of_a_stream_are_one_text(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["classes"]) as running:
        client = running.client
        found = [one async for one in client.stream_classify(["ab\r", "\ncd", "\r", "", "\ne?"], model="classes")]
        whole = await client.classify("ab\ncd\ne?", model="classes")
    assert found[-1].labels == whole.labels
    assert [one.step_count for one in found] == [3, 5, 6, 6, 8]
    assert [one.unknown_token_count for one in found] == [0, 0, 0, 0, 1]


@given(st.text("ab\r\n", max_size=12), st.data())
def test_the_place_of_an_error_is_that_of_the_text_that_was_sent(text: str, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(text)))
    sent = text[:position] + "?" + text[position:]
    read = normalize_newlines(sent, CharacterVocabulary("ab\n?"))
    assert _position_in(sent, read, read.index("?")) == position


async def test_every_answer_counts_unknown_tokens(
    bundles: Mapping[str, Bundle], tree_bundles: Mapping[str, Bundle]
) -> None:
    text = "a?b?"
    models = (bundles["gru"], bundles["classes"], bundles["tags"], tree_bundles["binary"])
    async with serving(*models, judge_bundle(), translator_bundle()) as running:
        client = running.client
        stream = client.generate(text, model="gru", max_tokens=1)
        await stream.text()
        scores = client.score_candidates(["a?"], context=text, model="gru")
        candidates = [score async for score in scores]
        inspected = client.inspect(text, model="gru")
        _ = [step async for step in inspected]
        choice = await client.choose(["a", "?"], prompt=text, model="gru")
        session = await client.create_session(text, model="classes")
        in_session = await client.classify("?", session=session.session_id)
        word = WORDS.tokens[2]
        async with client.many() as many:
            together = await many.classify(text, model="classes")
            tree_of_many = await many.classify(tree=f"(0 (0 never) (0 {word}))", model="binary")
        counts = {
            "generate": stream.unknown_token_count,
            "score": candidates[0].unknown_token_count,
            "context": scores.unknown_token_count,
            "inspect": inspected.unknown_token_count,
            "embed": (await client.embed([text], model="gru"))[0].unknown_token_count,
            "choice": choice.scores[1].unknown_token_count,
            "prompt": choice.unknown_token_count,
            "session": session.unknown_token_count,
            "in session": in_session.unknown_token_count,
            "classes": (await client.classify(text, model="classes")).unknown_token_count,
            "tags": (await client.classify(text, model="tags")).unknown_token_count,
            "judge": (await client.classify(text, model="judge")).unknown_token_count,
            "many": together.unknown_token_count,
            "tree": (await client.classify(tree=f"(0 (0 never) (0 {word}))", model="binary")).unknown_token_count,
            "tree of many": tree_of_many.unknown_token_count,
            "source": (await client.choose(["S1", "S2"], source=text, model="translator")).source_unknown_count,
        }
    assert counts == {
        "generate": 2, "score": 1, "context": 2, "inspect": 2, "embed": 2, "choice": 1, "prompt": 2, "session": 2,
        "in session": 1, "classes": 2, "tags": 2, "judge": 2, "many": 2, "tree": 1, "tree of many": 1, "source": 2,
    }  # fmt: skip
