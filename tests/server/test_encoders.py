"""Serving encoder models: a source is encoded once, and results do not depend on concurrent requests to the bit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elman import Client, ElmanError, InvalidRequestError
from elman_bundle import Bundle
from elman_export import NextToken, Source, Token, Values, export_bundle
from elman_export.contract import Tensors
from elman_protos import v1
from elman_server.engine import OnnxEngine, Opener, ProviderChoice
from elman_server.engine.constants import Constants
from elman_server.engine.encoder import Encoder, _groups
from elman_server.engine.memory import HostBuffer
from tests.support.amount import examples
from tests.support.encoder_models import LETTERS, LONGEST, SOUNDS, Judge, Translator, export_judge, export_translator
from tests.support.reference import open_graph
from tests.support.serving import serving
from tests.support.shared import SharedBundles

QUICK = {"chunk_ms": 0.5}  # few steps per run, so that few graphs are opened
WORDS = ["a", "elman", "the quick brown fox jumps over the lazy dog", "x" * LONGEST, "jordan", "serial order"]


@pytest.fixture(scope="module")
def encoding() -> Mapping[str, Bundle]:
    return SharedBundles(
        "encoders",
        {
            "translator": lambda folder: export_translator(Translator(), folder),
            "int8": lambda folder: export_translator(Translator(), folder, name="int8", quantize="int8"),
            "judge": export_judge,
            "frames": export_listener,
        },
    )


class Listener(nn.Module):
    """Encodes a sequence of frames into the decoder's initial state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.sum, self.next = nn.Linear(3, 16), nn.Linear(16, 16)
        self.embedding, self.head = nn.Embedding(SOUNDS.size, 16), nn.Linear(16, SOUNDS.size)

    def initial_state(self, rows: int) -> Tensors:
        return {"hidden": torch.zeros(rows, 16)}

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        mask = (torch.arange(source.shape[1]) < lengths[:, None]).float()[:, None]  # [B, 1, S]
        return {}, {"hidden": torch.tanh((mask @ torch.tanh(self.sum(source)))[:, 0])}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        hidden = torch.tanh(self.next(state["hidden"]) + self.embedding(inputs["token"]))
        return {"logits": self.head(hidden)}, {"hidden": hidden}


def export_listener(folder: Path) -> None:
    export_bundle(
        Listener(),
        folder,
        name="frames",
        inputs={"token": Token(SOUNDS, begin_id=1, end_id=2)},
        outputs={"logits": NextToken()},
        source=Source(Values((3,)), 50),
    )


def alone(bundle: Bundle, source: NDArray[Any], count: int) -> tuple[list[int], list[float]]:
    """Return the greedy tokens of a source and their log-probabilities from a plain onnxruntime loop."""
    encoder = open_graph(bundle.encoder_path)
    step = open_graph(bundle.graph_path)
    names = [output.name for output in encoder.get_outputs()]
    kept = dict(
        zip(names, encoder.run(names, {"source": source[None], "lengths": np.array([len(source)])}), strict=True)
    )
    token, tokens, log_probabilities = 1, [], []
    while len(tokens) < count:
        outputs = step.run(["logits", "next.hidden"], {"token": np.array([token]), **kept})
        kept["state.hidden"] = outputs[1]
        logits = outputs[0][0].astype(np.float64)
        logits[:2] = -np.inf  # the unknown token and the begin token
        token = int(logits.argmax())
        shifted = outputs[0][0].astype(np.float64) - logits.max()
        if token == 2:
            break
        tokens.append(token)
        log_probabilities.append(float(shifted[token] - np.log(np.exp(shifted).sum())))
    return tokens, log_probabilities


async def spelled(client: Client, word: str | NDArray[Any], model: str, **options: Any) -> tuple[Any, ...]:
    """Return tokens and log-probabilities."""
    stream = client.generate(source=word, model=model, max_tokens=40, log_probabilities=0, **options)
    chunks = [chunk async for chunk in stream]
    return (
        tuple(token for chunk in chunks for token in chunk.token_ids),
        tuple(report.log_probability for chunk in chunks for report in chunk.reports),
        "".join(chunk.text for chunk in chunks),
    )


async def test_output_of_a_source_equals_onnxruntime_alone(encoding: Mapping[str, Bundle]) -> None:
    async with serving(encoding["translator"], **QUICK) as running:
        seen = set()
        for word in WORDS:
            tokens, log_probabilities, text = await spelled(running.client, word, "", temperature=0)
            expected, numbers = alone(encoding["translator"], LETTERS.encode(word), 40)
            assert list(tokens) == expected
            assert list(log_probabilities) == pytest.approx(numbers, abs=1e-5)
            assert text == " ".join(SOUNDS.tokens[token] for token in tokens)
            seen.add(tokens)
        assert len(seen) > 3  # the result depends on the source


@pytest.mark.parametrize("name", ["translator", "int8"])
async def test_result_does_not_depend_on_concurrent_requests_bit_exactly(
    encoding: Mapping[str, Bundle], bundles: Mapping[str, Bundle], name: str
) -> None:
    random = np.random.default_rng(4)
    words = [
        "".join(random.choice(list("abcdefgh xyz"), size=length))
        for length in random.integers(1, LONGEST, examples(16, everything=40))
    ]
    async with serving(encoding[name], encoding["judge"], bundles["lstm"], slots=16, **QUICK) as running:
        client = running.client

        async def ask(index: int) -> Any:
            word = words[index]
            if index % 4 == 3:
                result = await client.search(source=word, model=name, width=3, count=3, max_tokens=12)
                return [(one.token_ids, one.score) for one in result]
            return await spelled(client, word, name, temperature=index % 3, seed=index)

        single = [await ask(index) for index in range(len(words))]
        text = await client.generate("once", model="lstm", max_tokens=300, seed=1).text()
        verdicts = [await client.classify(word, model="judge") for word in words]
        others = asyncio.gather(
            *(client.generate("once", model="lstm", max_tokens=300, seed=1).text() for _ in range(8)),
        )
        judged = asyncio.gather(*(client.classify(word, model="judge") for word in words))
        assert await asyncio.gather(*map(ask, range(len(words)))) == single
        assert await judged == verdicts
        assert await others == [text] * 8
        await running.until_idle()


def test_rows_of_different_lengths_join_and_leave(encoding: Mapping[str, Bundle]) -> None:
    """The engine alone: constants grow, shrink, move and are copied, and each row continues as it would alone."""
    bundle = encoding["translator"]
    engine = OnnxEngine(bundle, capacity=5, opener=Opener(ProviderChoice.CPU, 2), run_seconds=0.005)
    sources = [LETTERS.encode(word) for word in WORDS]
    encoded = engine.encode(sources)
    expected = [alone(bundle, source, 12)[0] + [2] for source in sources]
    rows: list[tuple[int, list[int]]] = []  # index of the word and its tokens so far

    def step() -> None:
        chunk = one_step(np.array([tokens[-1] if tokens else 1 for _, tokens in rows]))
        results = engine.run(range(len(rows)), chunk)
        engine.commit(range(len(rows)))
        for (_, tokens), token in zip(rows, results.tokens[:, 0].tolist(), strict=True):
            tokens.append(token)

    def join(word: int) -> None:
        engine.insert(len(rows), encoded=encoded[word])
        rows.append((word, []))

    def leave(row: int) -> None:
        last = len(rows) - 1
        if row != last:
            engine.move(last, row)
            rows[row] = rows[last]
        rows.pop()

    def branch(row: int) -> None:
        engine.rearrange([len(rows)], [row])
        word, tokens = rows[row]
        rows.append((word, list(tokens)))

    for change in (
        lambda: join(0), lambda: join(3), lambda: join(1), lambda: leave(1), lambda: join(2), lambda: leave(0),
        lambda: leave(0), lambda: join(0), lambda: join(4), lambda: branch(0), lambda: leave(1), lambda: join(5),
    ):  # fmt: skip
        change()
        step()
    for word, tokens in rows:
        wanted = expected[word]
        assert tokens[: len(wanted)] == wanted[: len(tokens)]


def test_beam_in_a_reused_row_is_copied_again() -> None:
    """Rows after the last one in use lose their content when the buffers are reallocated."""
    spec = v1.ConstantSpec(name="memory", data_type=v1.DATA_TYPE_FLOAT32, shape=[64, 2], variable_length=True)
    kept = Constants([spec], 6, 64, lambda shape, dtype: HostBuffer((6, *shape), dtype))

    def memory(row: int, length: int) -> list[float]:
        return kept.buffers["memory"].read(row, 1)[0, :length, 0].tolist()

    for row, length in enumerate((5, 5, 6)):
        kept.write(row, {"memory": np.full((length, 2), row + 1, np.float32)})
    kept.move(2, 1)
    kept.move(1, 0)  # Only the search in row 0 is left; rows 1 and 2 still hold the same content.
    kept.write(1, {"memory": np.full((40, 2), 9, np.float32)})
    kept.rearrange([0, 2, 3], [0, 0, 0])
    assert [memory(row, 6) for row in (0, 2, 3)] == [[3.0] * 6] * 3
    assert memory(1, 40) == [9.0] * 40
    assert not kept.buffers["memory"].read(0, 4)[[0, 2, 3], 6:].any()


@pytest.mark.parametrize("lengths", [[1], [1] * 127 + [1024], [30, 1, 17, 64, 3, 1000], [2000] * 9])
def test_sources_of_similar_lengths_are_batched(lengths: list[int]) -> None:
    groups = _groups(lengths)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        result = [lengths[place] for place in group]
        assert len(group) == 1 or max(result) <= 2 * max(min(result), 16)
        assert len(group) == 1 or len(group) * max(result) <= 4096


async def test_beam_searches_with_long_prompts_during_other_requests(encoding: Mapping[str, Bundle]) -> None:
    """Searches whose prompts take several runs, while requests of all lengths start and finish."""
    prompt = " ".join(f"S{index % 20}" for index in range(70))
    async with serving(encoding["translator"], slots=8, **QUICK) as running:
        client = running.client

        async def search(word: str) -> Any:
            result = await client.search(prompt, source=word, width=4, count=4, max_tokens=6, min_tokens=3)
            return [(one.token_ids, one.score) for one in result]

        single = [await search(word) for word in WORDS]
        others = [spelled(client, word * 2 if len(word) < 30 else word, "", seed=1) for word in WORDS * 5]
        together = await asyncio.gather(*map(search, WORDS), *others)
        assert list(together[: len(WORDS)]) == single


def one_step(tokens: NDArray[np.int64]) -> Any:
    from elman_server.engine import Chunk

    count = len(tokens)
    ones = np.ones(count, np.float32)
    return Chunk(
        {"token": tokens[:, None]},
        np.full((count, 1), 1e-7, np.float32),
        np.full(count, 1e-4, np.float32),  # practically greedy
        np.full(count, SOUNDS.size),
        ones,
        np.zeros(count, np.float32),
    )


async def test_source_can_be_numeric(encoding: Mapping[str, Bundle]) -> None:
    async with serving(encoding["frames"], **QUICK) as running:
        frames = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
        tokens, *_ = await spelled(running.client, frames, "frames", temperature=0)
        assert list(tokens) == alone(encoding["frames"], frames, 40)[0]
        assert await spelled(running.client, frames.tolist(), "", temperature=0) == await spelled(
            running.client, frames, "", temperature=0
        )


async def test_source_is_encoded_once_for_all_its_sequences(
    encoding: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    encode = Encoder.encode

    def counted(self: Encoder, sources: Any) -> Any:
        read.append(len(sources))
        return encode(self, sources)

    async with serving(encoding["translator"], **QUICK) as running:
        monkeypatch.setattr(Encoder, "encode", counted)
        client = running.client
        samples = await client.sample(source="jordan", count=5, seed=3, max_tokens=10)
        assert sum(read) == 1
        assert len({sample.token_ids for sample in samples}) > 1
        for index, sample in enumerate(samples):
            ids, *_ = await spelled(client, "jordan", "", seed=3 + index)
            assert sample.token_ids == ids[:10]
        for call in (
            lambda: client.search(source="jordan", width=6, max_tokens=10),
            lambda: client.choose(["S1", "S2 S3", "S4"], source="jordan"),
            lambda: client.sample("S1 S2 S3", source="jordan", count=4, max_tokens=3),
        ):
            read.clear()
            await call()
            assert sum(read) == 1


async def test_beam_search_scores_equal_score_results(encoding: Mapping[str, Bundle]) -> None:
    async with serving(encoding["translator"], **QUICK) as running:
        for word in WORDS:
            result = await running.client.search(source=word, width=4, count=4, max_tokens=8, length_penalty=0)
            assert len(result) == 4
            for one in result:
                ids = [*one.token_ids, *([2] if one.finish_reason is not None and len(one.token_ids) < 8 else [])]
                score = await running.client.score(ids, source=word)
                assert score.log_likelihood == pytest.approx(one.score, abs=1e-4)


async def test_choose_equals_scoring_with_the_end_token(encoding: Mapping[str, Bundle]) -> None:
    choices = ["S1", "S1 S2", "S7 S8 S9"]
    async with serving(encoding["translator"], **QUICK) as running:
        client = running.client
        for prompt in ("", "S3 S4"):
            result = await client.choose(choices, source="serial order", prompt=prompt)
            scored = [
                await client.score([*SOUNDS.encode(choice).tolist(), 2], source="serial order", context=prompt)
                for choice in choices
            ]
            likelihoods = [score.log_likelihood for score in scored]
            assert [score.log_likelihood for score in result.scores] == likelihoods
            assert [score.token_count for score in result.scores] == [2, 3, 4]
            assert result.source_unknown_count == 0
            assert result.index == int(np.argmax(likelihoods))
            weights = np.exp(np.array(likelihoods) - max(likelihoods))
            assert [score.probability for score in result.scores] == pytest.approx((weights / weights.sum()).tolist())
        opened = await client.choose(choices, source="serial order", open_ended=True)
        assert [score.token_count for score in opened.scores] == [1, 2, 3]
        assert opened.scores[0].log_likelihood > opened.scores[1].log_likelihood  # a prefix of another candidate


async def test_choose_reports_unknown_tokens(encoding: Mapping[str, Bundle]) -> None:
    async with serving(encoding["translator"], **QUICK) as running:
        result = await running.client.choose(["S1 nope", "what ever"], source="Ä ö")
        assert result.source_unknown_count == 2
        assert [score.unknown_token_count for score in result.scores] == [1, 2]
        stream = running.client.score_candidates(["S1"], source="Äa")
        _ = [score async for score in stream]
        assert stream.source_unknown_count == 1


async def test_model_without_encoder_can_choose(bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["lstm"], **QUICK) as running:
        result = await running.client.choose(["pon", "re"], prompt="once u")
        for choice, score in zip(["pon", "re"], result.scores, strict=True):
            scored = await running.client.score(choice, context="once u")
            assert score.log_likelihood == scored.log_likelihood


async def test_bidirectional_model_classifies_whole_inputs(encoding: Mapping[str, Bundle]) -> None:
    module = Judge().eval()
    async with serving(encoding["judge"], **QUICK) as running:
        for word in WORDS:
            result = await running.client.classify(word)
            ids = torch.from_numpy(LETTERS.encode(word))[None]
            with torch.no_grad():
                constants, _ = module.encode(ids, torch.tensor([ids.shape[1]]))
                expected = torch.softmax(module.step({}, constants, {})[0]["logits"][0].double(), dim=0)
            assert {label.name: label.probability for label in result.labels} == pytest.approx(
                dict(zip(["bad", "fair", "good"], expected.tolist(), strict=True)), abs=1e-6
            )
            assert result.step_count == len(word)


WRONG: list[tuple[Callable[[Client], Awaitable[Any]], str]] = [
    (
        lambda client: client.generate().text(),
        "source: got none; 'translator' starts from a source. Give text or tokens",
    ),
    (
        lambda client: client.generate(source="").text(),
        "source.text: got an empty source; a source has one position or more",
    ),
    (
        lambda client: client.generate(source="word " * 100_000).text(),
        "source.text: got 500000 tokens or more; at most 65536 are allowed",
    ),
    (
        lambda client: client.generate(source="w" * (LONGEST + 1)).text(),
        "source.text: got 65 positions; 'translator' reads sources of at most 64",
    ),
    (lambda client: client.generate(source=[1, 99]).text(), "source.tokens.ids[1]: got 99; the ids of"),
    (
        lambda client: client.generate(source=[[1.0, 2.0]]).text(),
        "source.tensor: got tensor; the encoder of 'translator' reads text or tokens",
    ),
    (lambda client: client.choose(["S1"], source="a"), "choices: got 1; must be 2 to 1024"),
    (
        lambda client: client.choose(["S1", ""], source="a"),
        "choices[1].text: got an empty choice; a choice has one token",
    ),
    (lambda client: client.choose(["S1", "S2"]), "source: got none; 'translator' starts from a source"),
    (lambda client: client.score("S1 S2"), "source: got none; 'translator' starts from a source"),
    (
        lambda client: client.create_session("a", model="translator"),
        "it starts from a source, and a session keeps tokens only",
    ),
    (
        lambda client: client.embed(["S1"], model="translator"),
        "it starts from a source, which this call does not have",
    ),
    (lambda client: client.classify("abc"), "model: got none; no model of this server can label"),
    (
        lambda client: client.generate(source="a", regex="S1( S2)*").text(),
        "constraint: got a constraint; the tokens of 'translator' are symbols, separated by spaces that no token holds",
    ),
]


async def test_invalid_sources_are_reported(encoding: Mapping[str, Bundle]) -> None:
    async with serving(encoding["translator"], **QUICK) as running:
        fine = await spelled(running.client, "fine", "", temperature=0)
        for ask, error_message in WRONG:
            with pytest.raises(ElmanError) as caught:
                await ask(running.client)
            assert error_message in str(caught.value)
            assert await spelled(running.client, "fine", "", temperature=0) == fine


async def test_unexpected_source_is_reported(encoding: Mapping[str, Bundle], bundles: Mapping[str, Bundle]) -> None:
    async with serving(bundles["lstm"], encoding["judge"], encoding["frames"], **QUICK) as running:
        client = running.client
        with pytest.raises(InvalidRequestError, match=r"source: got a source; 'lstm' has no encoder\. Leave it out"):
            await client.generate("once", source="a", model="lstm").text()
        session = await client.create_session("once", model="lstm")
        with pytest.raises(
            InvalidRequestError, match=r"source: got a source; a session continues from its own state\. Leave it out"
        ):
            await client.generate("a", source="a", session=session.session_id).text()
        with pytest.raises(InvalidRequestError, match=r"it needs its complete input\. Use Classify"):
            _ = [result async for result in client.stream_classify(["a"], model="judge")]
        with pytest.raises(InvalidRequestError, match="text: got 65 positions; "):
            await client.classify("w" * 65, model="judge")
        for wrong, error_message in (
            ([[1.0, 2.0]], r"source.tensor.shape: got \[1, 2\]; must be float32 \[positions, 3\]"),
            ([[1.0, math.nan, 3.0]], r"source.tensor.content: got nan at \[0, 1\]; every number must be finite"),
            ("abc", r"source.text: got text; the encoder of 'frames' reads a tensor, float32 \[positions, 3\]"),
        ):
            with pytest.raises(InvalidRequestError, match=error_message):
                await client.generate(source=wrong, model="frames").text()
