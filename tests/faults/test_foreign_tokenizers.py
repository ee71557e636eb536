"""Tokenizers that others made: text survives, padded logits are no tokens, and what is refused comes with a remedy."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel

from elman_bundle import Bundle, BundleError, SubwordVocabulary, load_bundle, write_bundle
from elman_protos import v1
from tests.support.serving import Running, serving

PADDING = 27
NEVER_TEXT = {0xC0, 0xC1, *range(0xF5, 0x100)}
COMPOSED, DECOMPOSED = "café Å ᾂ 한", unicodedata.normalize("NFD", "café Å ᾂ 한")


@cache
def neox() -> str:
    """The file of a tokenizer like that of GPT-NeoX: NFC, special tokens first, only bytes that occur in text, and runs
    of spaces as added tokens."""
    all_bytes = SubwordVocabulary.from_texts([""], 256)
    spellings = zip(all_bytes.tokens, all_bytes.token_bytes(), strict=True)
    occurring = [token for token, spelled in spellings if spelled and spelled[0] not in NEVER_TEXT]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ã", "©"), ("i", "n")]
    tokens = ["<|endoftext|>", "<|padding|>", *occurring, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.normalizer = NFC()
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|padding|>"])
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in (4, 3, 2)])
    assert len(occurring) == 256 - len(NEVER_TEXT) == 243
    return str(tokenizer.to_str())


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    settings = json.loads(neox())
    change(settings)
    return json.dumps(settings)


def write_language_model(folder: Path, padding: int = PADDING, data_type: int = TensorProto.FLOAT) -> Bundle:
    """Write a model with a row of logits for each token, of which those of the padding are the largest."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(neox(), encoding="utf-8")
    vocabulary = SubwordVocabulary(neox())
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    nodes = [helper.make_node("Gather", ["table", "token"], ["logits"]), helper.make_node("Neg", ["h"], ["next"])]
    sizes = ["B", vocabulary.size + padding]
    graph = helper.make_graph(
        nodes,
        "bigrams",
        [
            helper.make_tensor_value_info("token", TensorProto.INT64, ["B"]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["B", 1]),
        ],
        [
            helper.make_tensor_value_info("logits", data_type, sizes),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["B", 1]),
        ],
        [numpy_helper.from_array(logits(padding).astype(dtype), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "step.onnx")
    spec = v1.ModelSpec(manifest_version=1, name="neox", step=v1.StepSpec(file="step.onnx"))
    subwords = v1.VOCABULARY_KIND_SUBWORDS
    spec.vocabularies.add(name="text", kind=subwords, file="tokenizer.json", size=vocabulary.size, end_token_id=0)
    spec.step.inputs.add(name="token", data_type=v1.DATA_TYPE_INT64).token.vocabulary = "text"
    spec.step.states.add(input_name="h", output_name="next", data_type=v1.DATA_TYPE_FLOAT32, shape=[1])
    of_logits = v1.DATA_TYPE_FLOAT32 if data_type == TensorProto.FLOAT else v1.DATA_TYPE_FLOAT16
    output = spec.step.outputs.add(name="logits", data_type=of_logits, shape=[vocabulary.size + padding])
    output.next_token_logits.vocabulary = "text"
    write_bundle(folder, spec)
    return load_bundle(folder)


def logits(padding: int = 0) -> NDArray[np.float32]:
    size = SubwordVocabulary(neox()).size
    found = np.random.default_rng(0).standard_normal((size, size + PADDING)).astype(np.float32)
    found[:, 0] = -30  # It seldom ends.
    found[:, size:] = 30
    return found[:, : size + padding]


@pytest.mark.parametrize("text", [COMPOSED, "the  thing    in\n\n a\tb", "<|endoftext|> is text here", "🌲語", ""])
def test_text_survives_with_the_tokens_of_the_package(text: str) -> None:
    vocabulary, package = SubwordVocabulary(neox()), Tokenizer.from_str(neox())
    package.encode_special_tokens = True
    ids = vocabulary.encode(text).tolist()
    assert vocabulary.decoder().decode(ids, final=True) == text
    assert ids == package.encode(text, add_special_tokens=False).ids


def test_text_in_another_normal_form_is_read_as_the_package_reads_it() -> None:
    vocabulary = SubwordVocabulary(neox())
    ids = vocabulary.encode(DECOMPOSED).tolist()
    assert ids == vocabulary.encode(COMPOSED).tolist()
    assert vocabulary.decoder().decode(ids, final=True) == COMPOSED
    # Otherwise a text that is short enough would be refused as too long.
    repeated = DECOMPOSED * 100
    assert len(repeated) <= vocabulary.characters_per_token * len(vocabulary.encode(repeated))


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_language_model(tmp_path_factory.mktemp("padded") / "bundle")


async def generations(running: Running) -> list[list[int]]:
    """The tokens of every way to choose one."""
    client, greedy = running.client, {"temperature": 0.0}
    options: list[dict[str, Any]] = [
        {},
        greedy,
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"repetition_penalty": 1.3},
        {"logit_bias": {5: 1.0}, **greedy},
        {"min_tokens": 9, **greedy},
        {"regex": "[a-z]{4,8}"},
    ]
    found = []
    for option in options:
        (continuation,) = await client.sample("the", count=1, seed=3, max_tokens=9, **option)
        found.append(list(continuation.token_ids))
    searched = await client.search("the", width=4, count=4, max_tokens=5)
    return found + [list(continuation.token_ids) for continuation in searched]


@pytest.mark.parametrize("data_type", [TensorProto.FLOAT, TensorProto.FLOAT16])
async def test_padded_logits_are_never_chosen(tmp_path: Path, padded: Bundle, data_type: int) -> None:
    half = data_type == TensorProto.FLOAT16
    bundle = write_language_model(tmp_path / "half", data_type=data_type) if half else padded
    plain = write_language_model(tmp_path / "plain", padding=0, data_type=data_type)
    async with serving(bundle) as running:
        found = await generations(running)
    async with serving(plain) as running:
        assert found == await generations(running)
    assert max(max(tokens) for tokens in found) < plain.vocabulary_spec("text").size


async def test_padded_logits_have_no_probability(padded: Bundle) -> None:
    ids = SubwordVocabulary(neox()).encode("the thing").tolist()
    scores = logits().astype(np.float64)
    likelihoods = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    expected = [likelihoods[before, token] for before, token in pairwise(ids)]
    async with serving(padded) as running:
        score = await running.client.score("the thing")
        assert score.log_likelihood == pytest.approx(sum(expected), rel=1e-5)
        chosen = await running.client.choose(["in", "the"], prompt="the")
        assert sum(one.probability for one in chosen.scores) == pytest.approx(1)
        assert chosen.scores[0].log_likelihood > -60  # Next to the padding it would be below.


def test_every_token_needs_a_logit(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"step\.outputs\[logits\]\.shape is \[\d+\], but 'text' has \d+ entries"):
        write_language_model(tmp_path / "bundle", padding=-1)


REMEDY = (
    "Change this in the file .* vocabulary of the kind SYMBOLS, encode texts where you call the model, and send token"
)
_SPLIT = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel", "add_prefix_space": False}],
}
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "lower case": (lambda s: s.update(normalizer={"type": "Lowercase"}), "it has the normalizer Lowercase, which"),
    "compatibility": (lambda s: s.update(normalizer={"type": "NFKC"}), "it has the normalizer NFKC, which changes"),
    "one of several": (
        lambda s: s.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}),
        "it has the normalizer Strip, which changes",
    ),
    "space": (lambda s: s["pre_tokenizer"].update(add_prefix_space=True), "which puts a space before text"),
    "words": (lambda s: s.update(pre_tokenizer=_SPLIT), "its pre_tokenizer has the part Whitespace"),
    "model": (lambda s: s["model"].update(type="Unigram"), "its model is Unigram"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_text_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    change, problem = REFUSED[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(changed(change), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"tokenizer\.json: .*{problem}.*{REMEDY}"):
        SubwordVocabulary.read(path)


def test_a_byte_without_a_token_is_named_with_a_remedy() -> None:
    def lose(settings: dict[str, Any]) -> None:
        settings["model"]["vocab"]["zzz"] = settings["model"]["vocab"].pop("!")

    with pytest.raises(ValueError, match=r"no token for the byte 33, .* or add a token for each byte"):
        SubwordVocabulary(changed(lose))
