"""Encoder-decoders: steps equal the forward, padding has no effect, metrics are correct, and they learn."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner

from elman.cli.application import app
from elman_bundle import load_bundle
from elman_export import export_run
from elman_export.contract import EncoderModule, StepModule
from elman_training import TrainingError, TranslationConfig, parse_config, resume, train
from elman_training.checkpoint import BEST, LAST, RESULT, load_best, load_config, load_vocabularies
from elman_training.encoder_decoder.beam_search import beam_search
from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.encoder_decoder.output_metrics import output_metrics
from elman_training.encoder_decoder.pair_batches import PairBatch
from elman_training.encoder_decoder.pair_corpus import Pair, read_pairs
from elman_training.encoder_decoder.scheduled_sampling import sample_inputs
from elman_training.encoder_decoder.stories import make_stories
from elman_training.encoder_decoder.translation_task import BEAMS, TranslationTask
from elman_training.families import make_task
from elman_training.task import IGNORED
from tests.support.serving import serving

QUIET = Console(quiet=True)
EVERY_SHAPE = [
    {"cell": cell, "attention": attention, "bidirectional": bidirectional, "one_hot": one_hot}
    for cell, attention, bidirectional, one_hot in itertools.product(
        ("elman", "gru", "lstm"), ("additive", "multiplicative", None), (True, False), (True, False)
    )
]


def network(**changes: object) -> EncoderDecoder:
    torch.manual_seed(0)
    shape = {
        "cell": "gru", "source_tokens": 11, "tokens": 7, "layers": 2, "embedding": 6, "hidden": 8,
        "attention": "additive", "bidirectional": True, "one_hot": False, "dropout": 0.3,
    }  # fmt: skip
    return EncoderDecoder(**{**shape, **changes}).eval()  # type: ignore[arg-type]


def some_sources() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([5, 1, 9, 3])
    source = torch.randint(1, 11, (4, 9))
    return source * (torch.arange(9) < lengths[:, None]), lengths


@pytest.mark.parametrize("shape", EVERY_SHAPE)
@torch.no_grad()
def test_scan_of_steps_equals_forward_over_the_target(shape: dict[str, object]) -> None:
    model = network(**shape)
    assert isinstance(model, EncoderModule)
    assert isinstance(model, StepModule)
    source, lengths = some_sources()
    target = torch.randint(7, (4, 6))
    whole = model(source, lengths, target)
    constants, initial = model.encode(source, lengths)
    state = {**model.initial_state(4), **initial}
    for place in range(6):
        outputs, after = model.step({"token": target[:, place]}, constants, state)
        assert after.keys() == state.keys() == model.initial_state(4).keys()
        state = after
        torch.testing.assert_close(outputs["logits"], whole[:, place], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", EVERY_SHAPE)
@torch.no_grad()
def test_padding_does_not_change_the_result(shape: dict[str, object]) -> None:
    model = network(**shape)
    source, lengths = some_sources()
    wider = torch.cat([source, torch.randint(11, (4, 7))], dim=1)  # arbitrary tokens after the end
    narrow, wide = model.encode(source, lengths), model.encode(wider, lengths)
    for name, value in narrow[1].items():
        torch.testing.assert_close(wide[1][name], value, atol=1e-6, rtol=1e-6)
    for name, value in narrow[0].items():
        torch.testing.assert_close(wide[0][name][:, :9], value, atol=1e-6, rtol=1e-6)
        assert not wide[0][name][:, 9:].any()
        for row, length in enumerate(lengths.tolist()):
            assert not value[row, length:].any()
    target = torch.randint(7, (4, 6))
    whole = model(wider, lengths, target)
    for row, length in enumerate(lengths.tolist()):
        alone = model(source[row : row + 1, :length], lengths[row : row + 1], target[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_zero_padding_of_the_memory_does_not_change_a_step() -> None:
    model = network()
    source, lengths = some_sources()
    constants, initial = model.encode(source, lengths)
    longer = {
        name: torch.cat([value, value.new_zeros(4, 5, *value.shape[2:])], dim=1) for name, value in constants.items()
    }
    token = {"token": torch.tensor([1, 2, 3, 4])}
    narrow, _ = model.step(token, constants, {**model.initial_state(4), **initial})
    wide, _ = model.step(token, longer, {**model.initial_state(4), **initial})
    assert torch.equal(narrow["logits"], wide["logits"])


def test_gradients_of_a_padded_batch_equal_those_of_its_rows() -> None:
    model = network()
    source, lengths = some_sources()
    target = torch.randint(7, (4, 6))
    model(source, lengths, target).square().sum().backward()
    together = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    for row, length in enumerate(lengths.tolist()):
        model(source[row : row + 1, :length], lengths[row : row + 1], target[row : row + 1]).square().sum().backward()
    assert together
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, together[name], atol=1e-5, rtol=1e-4)


def brute_force(model: EncoderDecoder, source: torch.Tensor, begin: int, end: int, longest: int) -> tuple[int, ...]:
    """Return the best of all targets by log-probability divided by length, including the end token."""
    actual: list[tuple[float, tuple[int, ...]]] = []

    def go(state: object, constants: object, token: int, before: tuple[int, ...], total: float) -> None:
        outputs, after = model.step({"token": torch.tensor([token])}, constants, state)  # type: ignore[arg-type]
        scores = torch.log_softmax(outputs["logits"][0].double(), dim=0).tolist()
        for chosen, score in enumerate(scores):
            length = len(before) + 1
            if chosen == end:
                actual.append(((total + score) / length, before))
            elif length == longest:
                actual.append(((total + score) / length, (*before, chosen)))
            else:
                go(after, constants, chosen, (*before, chosen), total + score)

    constants, state = model.start(source[None], torch.tensor([len(source)]))
    go(state, constants, begin, (), 0.0)
    return max(actual)[1]


@torch.no_grad()
def test_wide_beam_search_equals_exhaustive_search() -> None:
    model = network(tokens=4)
    for parameter in model.parameters():
        parameter.mul_(3)  # makes the distributions less uniform
    source, lengths = some_sources()
    wide = beam_search(model, source, lengths, begin=1, end=2, width=40, longest=4)
    for row, length in enumerate(lengths.tolist()):
        assert tuple(wide[row]) == brute_force(model, source[row, :length], 1, 2, 4)


@torch.no_grad()
def test_batched_beam_searches_equal_single_ones_and_width_1_is_greedy() -> None:
    model = network()
    source, lengths = some_sources()
    together = beam_search(model, source, lengths, begin=1, end=2, width=3, longest=12)
    for row, length in enumerate(lengths.tolist()):
        one = source[row : row + 1, :length], lengths[row : row + 1]
        assert beam_search(model, *one, begin=1, end=2, width=3, longest=12) == [together[row]]
        constants, state = model.start(*one)
        greedy: list[int] = []
        token = 1
        while len(greedy) < 12:
            outputs, state = model.step({"token": torch.tensor([token])}, constants, state)
            token = int(outputs["logits"].argmax())
            if token == 2:
                break
            greedy.append(token)
        assert beam_search(model, *one, begin=1, end=2, width=1, longest=12) == [greedy]


@torch.no_grad()
def test_beam_search_equals_the_servers() -> None:
    from elman_server.decoding.beams import BeamParams, BeamSearch

    model = network(tokens=9)
    for parameter in model.parameters():
        parameter.mul_(2)
    torch.manual_seed(1)  # a seed for which some searches would find another result if they ended earlier or later
    source = torch.randint(11, (60, 6))
    lengths = torch.randint(1, 7, (60,))
    actual = beam_search(model, source, lengths, begin=1, end=2, width=3, longest=15)
    for row, length in enumerate(lengths.tolist()):
        search = BeamSearch(BeamParams(width=3, result_count=1, max_tokens=15, end_token=2), 9)
        constants, state = model.start(source[row : row + 1, :length], lengths[row : row + 1])
        tokens = torch.tensor([1])
        while True:
            constants = {name: value[:1].expand(len(tokens), *value.shape[1:]) for name, value in constants.items()}
            outputs, state = model.step({"token": tokens}, constants, state)
            branches = search.advance(torch.log_softmax(outputs["logits"], dim=-1).numpy())
            if search.done:
                break
            tokens = torch.from_numpy(branches.tokens)
            state = {name: value[torch.from_numpy(branches.sources)] for name, value in state.items()}
        assert list(search.results()[0].tokens) == actual[row]


def small(corpus: Path | str, **changes: object) -> TranslationConfig:
    values = {
        "task": "translate", "corpus": str(corpus), "source_vocabulary": "symbols", "vocabulary": "symbols",
        "minimum_count": 1, "embedding": 16, "hidden": 32, "dropout": 0.0, "lanes": 16, "steps": 60,
        "learning_rate": 1e-2, "warmup_steps": 5, "validate_every": 15, "longest_source": 20, "longest_target": 8,
    }  # fmt: skip
    config = parse_config({**values, **changes})
    assert isinstance(config, TranslationConfig)
    return config


@pytest.fixture
def reversals(tmp_path: Path) -> Path:
    """A corpus whose targets are the reversed sources in other symbols."""
    path = tmp_path / "pairs.tsv"
    words = itertools.product("abcdefgh", repeat=3)
    texts = sorted({"".join(word)[: 1 + place % 3] for place, word in enumerate(words)})
    path.write_text("".join(f"{' '.join(text)}\t{' '.join(reversed(text.upper()))}\n" for text in texts))
    return path


@pytest.mark.parametrize("changes", [{"attention": False, "cell": "lstm"}, {"one_hot": True, "cell": "elman"}])
def test_encoder_decoder_learns(reversals: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    result = train(small(reversals, **changes), tmp_path / "run", console=QUIET)
    assert result.validation.nats < 1.6  # a uniform distribution has 2.4


def test_resumed_run_is_bit_exact_and_tested_at_the_end(reversals: Path, tmp_path: Path) -> None:
    config = small(reversals, label_smoothing=0.05, scheduled_sampling=0.2, dropout=0.1, steps=30)
    result = train(config, tmp_path / "unbroken", console=QUIET)
    train(config, tmp_path / "broken", console=QUIET, stop_after=15)
    resume(tmp_path / "broken", console=QUIET)
    for name in (LAST, BEST, RESULT):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    kept, task = load_best(tmp_path / "unbroken"), make_task(config)
    assert isinstance(kept, EncoderDecoder)
    assert isinstance(task, TranslationTask)
    written = task.write(kept, [pair.source for pair in task._corpus.test])
    right = sum(text in pair.targets for text, pair in zip(written, task._corpus.test, strict=True))
    assert result.measured["test_exact"] == right / len(written)
    assert json.loads((tmp_path / "unbroken" / RESULT).read_text())["test_exact"] == result.measured["test_exact"]


@pytest.mark.parametrize("kind", ["characters", "bytes", "words", "subwords", "symbols"])
def test_every_kind_of_vocabulary_has_begin_and_end_tokens(reversals: Path, tmp_path: Path, kind: str) -> None:
    config = small(
        reversals, vocabulary=kind, source_vocabulary=kind, vocabulary_size=300, source_vocabulary_size=300, steps=1
    )
    train(config, tmp_path / "run", console=QUIET)
    vocabularies = load_vocabularies(tmp_path / "run", load_config(tmp_path / "run"))
    task = make_task(config)
    assert isinstance(task, TranslationTask)
    assert task.begin != task.end
    assert [int(vocabularies[""].encode(token)[0]) for token in "\x02\x03"] == [task.begin, task.end]
    assert vocabularies["source-"].encode("a b").tolist() == task.source_vocabulary.encode("a b").tolist()


def test_epoch_contains_every_pair_once_and_little_padding(reversals: Path) -> None:
    task = make_task(small(reversals))
    assert isinstance(task, TranslationTask)
    epoch = task._make_epoch(3, len(task._training))
    assert sorted(itertools.chain.from_iterable(epoch)) == list(range(len(task._training)))
    assert all((task._batch_indices(3 * len(epoch) + place) == batch).all() for place, batch in enumerate(epoch))
    batches = [task.batch([task._training[index] for index in chosen]) for chosen in epoch]
    assert sum(batch.tokens for batch in batches) > 0.85 * sum(
        batch.source.numel() + batch.targets.numel() for batch in batches
    )
    batch = task.batch([task._training[index] for index in epoch[0]])
    kept = batch.targets != IGNORED
    assert torch.equal(kept.sum(1), (batch.targets == task.end).nonzero()[:, 1] + 1)
    assert torch.equal(batch.inputs[:, 1:][kept[:, 1:]], batch.targets[:, :-1][kept[:, 1:]])


def test_curriculum_starts_with_the_shortest_pairs_and_ends_with_all(reversals: Path) -> None:
    task = make_task(small(reversals, curriculum=0.5, steps=200))
    assert isinstance(task, TranslationTask)
    indices = [task._batch_indices(step).tolist() for step in range(200)]
    longest = [max(len(task._training[index][0]) for index in chosen) for chosen in indices]
    assert set(longest[:3]) <= {1, 2}
    assert max(longest) == 3
    first = set(itertools.chain.from_iterable(indices[:3]))
    assert len(first) == int(0.2 * len(task._training)) == max(first) + 1
    assert set(itertools.chain.from_iterable(indices[120:])) == set(range(len(task._training)))


def test_scheduled_sampling_draws_the_given_share_from_the_network(reversals: Path) -> None:
    config = small(reversals)
    task = make_task(config)
    assert isinstance(task, TranslationTask)
    torch.manual_seed(0)
    model = EncoderDecoder(
        cell="gru", source_tokens=task.sizes["source-"], tokens=task.sizes[""], layers=1, embedding=8, hidden=8,
        attention="additive", bidirectional=True, one_hot=False, dropout=0.0,
    )  # fmt: skip
    batch = task.batch(task._training * 4)
    assert torch.equal(sample_inputs(model, batch, 0.0), batch.inputs)
    with torch.no_grad():
        model.head.bias[task.end] = 1e4  # so that it always draws this token
    drawn = sample_inputs(model, batch, 0.25) == task.end
    assert not drawn[:, 0].any()
    assert 0.2 < float(drawn[:, 1:].float().mean()) < 0.3
    assert sample_inputs(model, batch, 1.0)[:, 1:].eq(task.end).all()


def test_share_of_sampled_tokens_grows(reversals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def record(model: EncoderDecoder, batch: PairBatch, share: float) -> torch.Tensor:
        shares.append(share)
        return batch.inputs

    monkeypatch.setattr("elman_training.encoder_decoder.translation_task.sample_inputs", record)
    task = make_task(small(reversals, scheduled_sampling=0.25, steps=60))
    model = network(source_tokens=task.sizes["source-"], tokens=task.sizes[""])
    for step in (0, 30, 60):
        task.loss(model, step, {})
    assert shares == [0.0, 0.125, 0.25]


@torch.no_grad()
def test_label_smoothing_affects_only_the_training_loss(reversals: Path) -> None:
    plain, smooth = (make_task(small(reversals, label_smoothing=share)) for share in (0.0, 0.2))
    model = network(source_tokens=plain.sizes["source-"], tokens=plain.sizes[""])
    assert plain.validate(model, rows=1) == smooth.validate(model, rows=1)
    hard, soft = (float(task.loss(model, 0, {})[0]) for task in (plain, smooth))
    batch = plain.batch([plain._training[index] for index in plain._batch_indices(0)])  # type: ignore[attr-defined]
    scores = torch.log_softmax(model(batch.source, batch.lengths, batch.inputs), dim=-1)[batch.targets != IGNORED]
    assert soft == pytest.approx(0.8 * hard - 0.2 * float(scores.mean()), rel=1e-4)


def test_dictionary_keeps_all_pronunciations_of_a_word(tmp_path: Path) -> None:
    folder = tmp_path / "cmudict"
    folder.mkdir()
    lines = [f"w{number} W AH{number % 3}" for number in range(40)]
    (folder / "cmudict.dict").write_text(
        "read R EH1 D\nread(2) R IY1 D # present\nread(3) R EH0 D\n" + "\n".join(lines)
    )
    corpus = read_pairs(str(folder), held_out=0.1)
    assert corpus.form == "pronunciations"
    assert [len(part) for part in (corpus.training, corpus.validation, corpus.test)] == [33, 4, 4]
    assert Pair("read", ("R EH D", "R IY D")) in [*corpus.training, *corpus.validation, *corpus.test]
    assert read_pairs(str(folder / "cmudict.dict"), held_out=0.1) == corpus


def packed(path: Path, *lines: str) -> None:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def test_sentence_corpus_keeps_its_own_splits(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("test_2016_flickr", 1)):
        packed(tmp_path / f"{part}.de.gz", *(f"Zug {number} " for number in range(count)))
        packed(tmp_path / f"{part}.en.gz", *(f"train {number}" for number in range(count)))
    corpus = read_pairs(str(tmp_path), held_out=0.1)
    assert corpus.form == "sentences"
    assert corpus.training == [Pair(f"Zug {number}", (f"train {number}",)) for number in range(3)]
    assert (len(corpus.validation), len(corpus.test)) == (2, 1)
    packed(tmp_path / "val.en.gz", "one", "two", "three")
    with pytest.raises(TrainingError, match=r"val\.de\.gz has 2 lines and val\.en\.gz 3"):
        read_pairs(str(tmp_path), held_out=0.1)
    (tmp_path / "val.en.gz").write_bytes(b"no gzip")
    with pytest.raises(TrainingError, match=r"val\.en\.gz: cannot be decompressed"):
        read_pairs(str(tmp_path), held_out=0.1)


@pytest.mark.parametrize(
    ("content", "error_message"),
    [
        ("a\tb\nonly one\n", r"pairs\.tsv:2: expected source TAB target, found 'only one'"),
        ("a\tb\tc\n", r"pairs\.tsv:1: expected source TAB target"),
        ("a\tb\n", "got 1 sources; training, validation and test need one each"),
        ("just text\n", "or a word and its phonemes as in cmudict"),
    ],
)
def test_invalid_corpus_of_pairs_is_reported(tmp_path: Path, content: str, error_message: str) -> None:
    (tmp_path / "pairs.tsv").write_text(content)
    with pytest.raises(TrainingError, match=error_message):
        read_pairs(str(tmp_path / "pairs.tsv"), held_out=0.1)
    with pytest.raises(TrainingError, match=r"holds neither cmudict\.dict nor train\.de\.gz"):
        read_pairs(str(tmp_path), held_out=0.1)


def test_corpus_with_only_too_long_pairs_is_reported(reversals: Path) -> None:
    with pytest.raises(TrainingError, match="no pair is as short as --longest-source 20 and --longest-target 1 ask"):
        make_task(small(reversals, longest_target=1))


def test_invalid_configurations_are_rejected() -> None:
    with pytest.raises(ValidationError, match="every byte is a subword, so at least 256 are needed"):
        small("x", source_vocabulary="subwords", source_vocabulary_size=255)
    with pytest.raises(ValidationError, match="each direction of a bidirectional encoder has half"):
        small("x", hidden=33)
    with pytest.raises(ValidationError, match="window"):
        small("x", window=5)


@pytest.mark.parametrize(
    ("target", "written", "errors"),
    [
        ("kitten", "sitting", 3), ("abc", "", 3), ("abcdef", "badcfe", 4), ("intention", "execution", 5),
        ("abcdef", "af", 4), ("af", "abcdef", 4),
    ],
)  # fmt: skip
def test_error_rates_count_edits(target: str, written: str, errors: int) -> None:
    """Insertions, deletions and substitutions each count as one error."""
    actual = output_metrics("pronunciations", [Pair("word", (" ".join(target),))], [" ".join(written)])
    assert actual["test_phoneme_error_rate"] == pytest.approx(errors / len(target))


def test_metrics_of_each_output_form() -> None:
    pairs = [Pair("read", ("R EH D", "R IY D")), Pair("cat", ("K AE T",))]
    assert output_metrics("pronunciations", pairs, ["R IY D", "K AE"]) == {
        "test_word_error_rate": 0.5, "test_phoneme_error_rate": pytest.approx(1 / 6)
    }  # fmt: skip
    stories = [Pair("a", ("x",), ("x", "y"), 1), Pair("b", ("y",), ("x", "y"), 2), Pair("c", ("x",), ("x", "y"), 2)]
    actual = output_metrics("stories", stories, ["x", "x", "x"])
    assert actual == {"test_answered_1_fact": 1.0, "test_answered_2_facts": 0.5}
    sentences = [Pair("ein Hund", ("a dog runs over the green field .",)), Pair("x", ("two men stand there .",))]
    actual = output_metrics("sentences", sentences, [pair.targets[0] for pair in sentences])
    assert actual["test_bleu"] == pytest.approx(100)
    actual = output_metrics("sentences", sentences, ["a dog runs over the field .", "two men stand there ."])
    # Manual computation: the clipped matches of 1- to 4-grams and the brevity penalty.
    precisions = [12 / 12, 9 / 10, 6 / 8, 4 / 6]
    assert actual["test_bleu"] == pytest.approx(100 * math.exp(1 - 13 / 12) * math.prod(precisions) ** 0.25, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "lstm"},
        pytest.param(
            {"attention": False, "bidirectional": False, "layers": 2},
            marks=pytest.mark.slow("trains and exports a second translator; the one with attention is in `make test`"),
        ),
    ],
)
async def test_exported_run_is_served_as_it_was_tested(
    reversals: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    config = small(reversals, steps=30, longest_source=9, **changes)
    train(config, tmp_path / "run", console=QUIET)
    export_run(tmp_path / "run", tmp_path / "bundle", name="reversals")
    bundle = load_bundle(tmp_path / "bundle")
    task, kept = make_task(config), load_best(tmp_path / "run")
    assert isinstance(task, TranslationTask)
    assert isinstance(kept, EncoderDecoder)
    target = next(vocabulary for vocabulary in bundle.spec.vocabularies if vocabulary.name != "source")
    assert (target.begin_token_id, target.end_token_id) == (task.begin, task.end)
    assert bundle.spec.encoder.longest_source == 9
    assert len(bundle.spec.step.constants) == (3 if config.attention else 0)
    sources = [pair.source for pair in task._corpus.test[:10]]
    choices = ["A", "A B", "C B A"]
    async with serving(bundle) as running:
        actual = [
            await running.client.search(source=source, width=BEAMS, max_tokens=config.longest_target)
            for source in sources
        ]
        chosen = [await running.client.choose(choices, source=source) for source in sources]
    assert [results[0].text for results in actual] == task.write(kept, sources)
    assert [choices[one.index] for one in chosen] == [
        task.choose(kept, Pair(source, ("A",), tuple(choices))) for source in sources
    ]


@pytest.mark.slow("trains a translator until int8 changes few of its outputs")
@pytest.mark.parametrize("attention", [True, False])
async def test_int8_reports_its_loss_and_gives_nearly_the_same_output(
    reversals: Path, tmp_path: Path, attention: bool
) -> None:
    config = small(reversals, steps=60, hidden=64, embedding=48, attention=attention, bidirectional=attention)
    train(config, tmp_path / "run", console=QUIET)
    shown = io.StringIO()
    export_run(tmp_path / "run", tmp_path / "int8", name="int8", quantize="int8", console=Console(file=shown))
    export_run(tmp_path / "run", tmp_path / "fp32", name="fp32")
    metrics = load_bundle(tmp_path / "int8").spec.metrics
    assert metrics["fp32_validation_nats"] == pytest.approx(metrics["validation_nats"], abs=1e-4)
    assert metrics["int8_validation_nats"] != metrics["fp32_validation_nats"]
    assert metrics["int8_validation_nats"] == pytest.approx(metrics["fp32_validation_nats"], abs=0.02)
    assert f"int8: {metrics['int8_validation_nats']:.4f} nats on held-out text, fp32 " in shown.getvalue()
    async with serving(load_bundle(tmp_path / "int8"), load_bundle(tmp_path / "fp32")) as running:
        scores = [await running.client.score("C B A", model=name, source="A B C") for name in ("int8", "fp32")]
    assert scores[0].nats_per_token == pytest.approx(scores[1].nats_per_token, abs=0.05)


@pytest.mark.parametrize(
    ("options", "error_message"),
    [
        (
            ("--preset", "phonemes"),
            "--corpus: got none; the preset phonemes needs a corpus of your own. Give a file or a folder",
        ),
        (
            ("--preset", "stories", "--corpus", "stdlib"),
            "--corpus: got stdlib; the preset stories is for the corpus stories. Give it, or",
        ),
        (("--preset", "stories", "--window", "9"), "--window: got 9; it has no effect with --task translate"),
        (("--preset", "stories", "--hidden", "33"), "--hidden: got 33; each direction of a bidirectional"),
        (
            ("--preset", "stories", "--scheduled-sampling", "1"),
            "--scheduled-sampling: got 1; input should be less than 1",
        ),
        (
            ("--preset", "stories", "--source-vocabulary", "bytes", "--source-vocabulary-size", "9"),
            "--source-vocabulary-size: got 9; it has no effect with --source-vocabulary bytes, only with words or "
            "subwords or symbols",
        ),
        (("--attention", "--corpus", "stdlib"), "--attention: got true; it has no effect with --task lm"),
    ],
)
def test_command_line_errors_are_reported(tmp_path: Path, options: tuple[str, ...], error_message: str) -> None:
    actual = CliRunner().invoke(app, ["train", *options, "--output", str(tmp_path / "run")], env={"COLUMNS": "300"})
    assert actual.exit_code == 2
    assert error_message in actual.output
    assert not (tmp_path / "run").exists()


def test_train_command_trains_on_a_file_of_pairs(reversals: Path, tmp_path: Path) -> None:
    options = "--task translate --one-hot --no-attention --label-smoothing 0.1 --hidden 8 --embedding 4 --steps 2"
    kinds = "--vocabulary symbols --source-vocabulary characters --minimum-count 1"
    actual = CliRunner().invoke(
        app, ["train", *options.split(), *kinds.split(), "--corpus", str(reversals), "--output", str(tmp_path / "run")]
    )
    assert actual.exit_code == 0, actual.output
    assert "test exact: " in actual.output
    config = load_config(tmp_path / "run")
    assert isinstance(config, TranslationConfig)
    assert (config.one_hot, config.attention, config.label_smoothing, config.hidden) == (True, False, 0.1, 8)


def test_splits_of_generated_stories_are_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "elman_training.encoder_decoder.pair_corpus._STORIES", {"training": 40, "validation": 5, "test": 20}
    )
    corpus = read_pairs("stories", held_out=0.1)
    assert corpus.form == "stories"
    assert [pair.facts for pair in corpus.training] == [1] * 40 + [2] * 40 + [3] * 40
    sources = [{pair.source for pair in part} for part in (corpus.training, corpus.validation, corpus.test)]
    assert sources[0].isdisjoint(sources[1] | sources[2])
    assert sources[1].isdisjoint(sources[2])
    assert all(pair.targets[0] in pair.choices and pair.source.endswith(" ?") for pair in corpus.test)
    assert read_pairs("stories", held_out=0.1, seed=1).test != corpus.test
    monkeypatch.setattr(
        "elman_training.encoder_decoder.pair_corpus.make_stories",
        lambda count, seed, facts: make_stories(count, 0, facts),
    )
    assert not read_pairs("stories", held_out=0.1).test
