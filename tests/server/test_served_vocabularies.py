"""Words and subwords with a real server: trained, exported and served models equal a plain loop."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from elman import InvalidRequestError, Label
from elman.cli.classifying import _runs
from elman_bundle import (
    MANIFEST,
    Bundle,
    BundleError,
    CharacterVocabulary,
    SubwordVocabulary,
    WordVocabulary,
    load_bundle,
)
from elman_bundle.bundle_folder import write_bundle
from elman_export import Labels, Token
from elman_export.training_run import export_run
from elman_protos import v1
from elman_training import TextConfig, train
from tests.support.bundles import make_small_network, write_network
from tests.support.reference import generate_alone
from tests.support.serving import serving
from tests.support.shared import made_once, shared_bundle

TEXT = "the 語 in the 🌲, said ß: été!\n" * 150
PROMPTS = ["the 語", "said", " ", "🌲🌲 of x9\n", "né"]


@pytest.fixture(scope="module")
def trained() -> Mapping[str, Bundle]:
    """Language models of words, subwords, and subwords in int8, made by `elman train` and `elman export`."""
    folder = made_once("vocabularies", train_and_export)
    return {name: load_bundle(folder / "bundles" / name) for name in ("words", "subwords", "int8")}


def train_and_export(folder: Path) -> None:
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    for kind in ("words", "subwords"):
        config = TextConfig(
            task="lm", corpus=str(folder / "text.txt"), vocabulary=kind, vocabulary_size=272, cell="gru", layers=1,
            embedding=16, hidden=72, dropout=0.0, lanes=4, window=20, steps=20, learning_rate=5e-3, warmup_steps=2,
            validate_every=20,
        )  # fmt: skip
        train(config, folder / kind, console=Console(quiet=True))
        export_run(folder / kind, folder / "bundles" / kind, name=kind)
    export_run(folder / "subwords", folder / "bundles" / "int8", name="int8", quantize="int8")


def random_requests(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chosen = random.Random(seed)
    return [
        {
            "prompt": chosen.choice(PROMPTS),
            "max_tokens": chosen.randint(1, 80),
            "temperature": chosen.choice([0.0, 0.7, 1.0, 2.0]),
            **chosen.choice([{}, {"top_k": 5}, {"top_p": 0.7}]),
            "seed": chosen.getrandbits(60),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", ["words", "subwords", "int8"])
async def test_served_model_equals_a_plain_loop(trained: Mapping[str, Bundle], name: str) -> None:
    requests = random_requests(12)
    async with serving(trained[name], slots=8) as running:
        streams = [running.client.generate(**request) for request in requests]
        together = await asyncio.gather(*[stream.text() for stream in streams])
        single = [chunk async for chunk in running.client.generate(single_tokens=True, **requests[0])]
    assert together == [generate_alone(trained[name], **request) for request in requests]
    assert "".join(chunk.text for chunk in single) == together[0]
    assert any(len(text.encode()) > len(text) for text in together)  # some characters have several bytes


def test_int8_of_a_trained_model_has_nearly_the_same_loss(trained: Mapping[str, Bundle]) -> None:
    metrics = trained["int8"].spec.metrics
    assert metrics["int8_validation_nats"] == pytest.approx(metrics["fp32_validation_nats"], abs=0.02)


async def test_unknown_words_are_counted_and_never_generated(trained: Mapping[str, Bundle]) -> None:
    async with serving(trained["words"], trained["subwords"]) as running:
        words = running.client.generate("the unheard-of 語", model="words", max_tokens=1000, temperature=50.0)
        assert "�" not in await words.text()
        subwords = running.client.generate("the unheard-of 語", model="subwords", max_tokens=1)
        await subwords.text()
    assert (words.prompt_token_count, words.unknown_token_count) == (5, 3)  # the, unheard, -, of, 語
    assert subwords.unknown_token_count == 0


@pytest.mark.parametrize("kind", ["words", "subwords"])
async def test_session_continues_at_token_boundaries(trained: Mapping[str, Bundle], kind: str) -> None:
    async with serving(trained[kind]) as running:
        client = running.client
        session = await client.create_session("the 語", seed=4)
        texts = [await client.generate(" in", session=session.session_id, max_tokens=9).text() for _ in range(3)]
        content = await client.session_tokens(session.session_id)
    vocabulary = trained[kind].text_vocabulary("text")
    assert vocabulary.decoder().decode(content.token_ids, final=True) == content.text
    if kind == "words":  # Calls end at character boundaries only if tokens are whole words.
        assert content.text == "the 語" + "".join(" in" + text for text in texts)


async def test_large_vocabulary_in_int8() -> None:
    letters = "abcdefghijklmnopq"
    words = [f" {first}{second}{third}" for first in letters for second in letters for third in letters]
    vocabulary = WordVocabulary(["�", *words], unknown_id=0)
    network = make_small_network(vocabulary.size)
    bundle = shared_bundle(
        "wide", lambda folder: write_network(network, folder, "wide", Token(vocabulary), quantize="int8")
    )
    assert bundle.spec.vocabularies[0].size == 4914
    async with serving(bundle) as running:
        greedy = await running.client.generate(" abc aaa", max_tokens=20, temperature=0.0).text()
        assert greedy == generate_alone(bundle, " abc aaa", max_tokens=20, temperature=0.0, seed=0)
        drawn = running.client.generate(" abc unknown", max_tokens=500, top_p=0.9)
        assert len(await drawn.text()) == 500 * len(" abc")


@pytest.mark.parametrize("scope", ["sequence", "step"])
async def test_subwords_are_labelled(trained: Mapping[str, Bundle], scope: Any) -> None:
    vocabulary = trained["subwords"].text_vocabulary("text")
    assert isinstance(vocabulary, SubwordVocabulary)
    network = make_small_network(vocabulary.size, outputs=2)
    bundle = shared_bundle(
        f"subwords-{scope}",
        lambda folder: write_network(network, folder, "labels", Token(vocabulary), Labels(("red", "green"), scope)),
    )
    ids = vocabulary.encode(TEXT[:100]).tolist()
    async with serving(bundle) as running:
        by_text = await running.client.classify(TEXT[:100])
        by_ids = await running.client.classify(ids)
        pieces = [part async for part in running.client.stream_classify([TEXT[:100], "the"])]
    assert by_text == by_ids == pieces[0]
    assert by_text.step_count == len(ids) < 100
    if scope == "step":
        with pytest.raises(typer.BadParameter, match=f"got {len(ids)} labels of words or subwords for 100 characters"):
            [*_runs(TEXT[:100], by_text.steps)]


def test_labels_of_characters_and_bytes_are_mapped_to_the_text() -> None:
    def labelled(names: str) -> tuple[Label, ...]:
        return tuple(Label(name, 1.0) for name in names)

    assert [*_runs("aé語", labelled("xyy"))] == [("x", "a"), ("y", "é語")]
    assert [*_runs("aé語", labelled("xyyyyy"))] == [("x", "a"), ("y", "é語")]


@pytest.mark.parametrize("kind", ["words", "subwords"])
async def test_limits_count_tokens(trained: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    vocabulary = trained[kind].text_vocabulary("text")
    limit = len(vocabulary.encode(TEXT))
    assert limit < len(TEXT)
    async with serving(trained[kind], input_limit=limit) as running:
        stream = running.client.generate(TEXT, max_tokens=1)
        await stream.text()
        assert stream.prompt_token_count == limit
        with pytest.raises(
            InvalidRequestError, match=f"text: got {limit + 1} tokens or more; at most {limit} are allowed"
        ):
            await running.client.generate(TEXT + "x", max_tokens=1).text()
        longest = limit * vocabulary.characters_per_token
        monkeypatch.setattr(
            type(vocabulary), "encode", None
        )  # Texts that cannot fit are refused without being encoded.
        with pytest.raises(
            InvalidRequestError, match=f"text: got {limit + 1} tokens or more; at most {limit} are allowed"
        ):
            await running.client.generate(" " * (longest + 1), max_tokens=1).text()


async def test_other_requests_are_served_while_a_long_text_is_encoded(
    trained: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, others_served, waited = SubwordVocabulary.encode, threading.Event(), []

    def slow(vocabulary: SubwordVocabulary, text: str) -> Any:
        if len(text) > 3000:
            waited.append(others_served.wait(20))
        return encode(vocabulary, text)

    monkeypatch.setattr(SubwordVocabulary, "encode", slow)
    async with serving(trained["subwords"]) as running:
        long = asyncio.create_task(running.client.generate(TEXT, max_tokens=1).text())
        while not waited and not long.done():
            await running.client.generate("the", max_tokens=5).text()
            others_served.set()
        await long
    assert waited == [True]


def test_long_words_and_special_token_strings_are_text(trained: Mapping[str, Bundle]) -> None:
    for kind in ("words", "subwords"):
        vocabulary = trained[kind].text_vocabulary("text")
        assert len(vocabulary.encode("x" * 10_000)) * vocabulary.characters_per_token >= 10_000


@pytest.fixture
def copy(trained: Mapping[str, Bundle], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained["subwords"].path, tmp_path / "copy"))


def test_missing_or_changed_tokenizer_is_reported(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: wrong digest"):
        load_bundle(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read, but the manifest lists it"):
        load_bundle(copy)


@pytest.mark.parametrize("content", ["{}", "no json", '{"model": {"type": "WordLevel"}}'])
def test_invalid_tokenizer_is_reported(copy: Path, trained: Mapping[str, Bundle], content: str) -> None:
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=r"copy/tokenizer\.json: "):
        write_bundle(copy, trained["subwords"].spec)


_INCONSISTENT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown": (lambda text: text.update(unknown_token_id=0), "unknown_token_id is set, but with SUBWORDS nothing is"),
    "lower case": (lambda text: text.update(lower_case=True), "lower_case is for WORDS and SYMBOLS only"),
    "no file": (lambda text: text.pop("file"), "file is needed for every kind but BYTES"),
    "size": (
        lambda text: text.update(size=271),
        r"vocabularies\[text\]\.size is 271, but tokenizer\.json has 272 tokens",
    ),
}


@pytest.mark.parametrize("name", _INCONSISTENT)
def test_an_inconsistent_manifest_is_refused(copy: Path, name: str) -> None:
    edit, error_message = _INCONSISTENT[name]
    manifest = json.loads((copy / MANIFEST).read_text())
    edit(manifest["vocabularies"][0])
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=error_message):
        load_bundle(copy)


def test_bundle_format_of_character_models_is_stable(bundles: Mapping[str, Bundle]) -> None:
    (text,) = json.loads((bundles["gru"].path / MANIFEST).read_text())["vocabularies"]
    size = CharacterVocabulary(json.loads((bundles["gru"].path / "vocabulary.json").read_text())["tokens"]).size
    assert text == {
        "name": "text",
        "kind": v1.VocabularyKind.Name(v1.VOCABULARY_KIND_CHARACTERS),
        "file": "vocabulary.json",
        "size": size,
        "unknown_token_id": 0,
    }
