"""Training: models learn, runs resume bit-exactly, and an interruption keeps the model."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from elman_training import PRESETS, TextConfig, TrainingError, resume, train
from elman_training.checkpoint import (
    BEST,
    CURVE,
    LAST,
    METRICS,
    RESULT,
    load_best,
    load_config,
    load_tensors,
    load_vocabularies,
    save_tensors,
)
from tests.support.command_line import elman
from tests.support.paths import SHARED_DATA

QUIET = Console(quiet=True)
SENTENCE = "the quick brown fox jumps over the lazy dog. "


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCE * 200)
    return str(path)


@pytest.fixture
def names(tmp_path: Path) -> str:
    folder = tmp_path / "classes"
    folder.mkdir()
    # The last letter determines the class, and lengths differ.
    for label in "xyz":
        (folder / f"{label}.txt").write_text("".join(f"{'ab' * (1 + index % 9)}{label}\n" for index in range(60)))
    return str(folder)


@pytest.fixture
def tags(tmp_path: Path) -> str:
    path = tmp_path / "tags.tsv"
    path.write_text("aab\tword\n \tspace\nba\tword\n \tspace\n\n" * 100)
    return str(path)


def config(task: str, corpus: str, **changes: object) -> TextConfig:
    values = {
        "cell": "gru", "layers": 1, "embedding": 8, "hidden": 16, "dropout": 0.1, "lanes": 8, "window": 10,
        "steps": 60, "learning_rate": 2e-2, "warmup_steps": 5, "validate_every": 20, "average_decay": 0.9,
    }  # fmt: skip
    return TextConfig(task=task, corpus=corpus, **{**values, **changes})


def bytes_of(run: Path, name: str) -> bytes:
    return (run / name).read_bytes()


def untimed(run: Path) -> list[dict[str, object]]:
    """Return the log without values that depend on the clock."""
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key not in ("tokens_per_second", "seconds")}
        for record in records
    ]


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_a_language_model_learns(text: str, tmp_path: Path, cell: str) -> None:
    result = train(config("lm", text, cell=cell), tmp_path / "run", console=QUIET)
    assert result.finished
    assert result.validation.nats < 2.0  # a uniform distribution has 3.3
    assert result.validation.bits == pytest.approx(result.validation.nats / 0.693147, rel=1e-5)


@pytest.mark.parametrize(("vocabulary", "most"), [("words", 0.1), ("subwords", 2.0)])
def test_models_of_words_and_subwords_learn_and_resume_bit_exactly(
    text: str, tmp_path: Path, vocabulary: str, most: float
) -> None:
    chosen = config("lm", text, vocabulary=vocabulary, vocabulary_size=290, validation_limit=500)
    result = train(chosen, tmp_path / "unbroken", console=QUIET)
    assert result.validation.nats < most  # uniform distributions over all tokens have 2.4 and 5.7
    train(chosen, tmp_path / "broken", console=QUIET, stop_after=20)
    resume(tmp_path / "broken", console=QUIET)
    for name in (LAST, BEST, RESULT):
        assert bytes_of(tmp_path / "broken", name) == bytes_of(tmp_path / "unbroken", name)


@pytest.mark.parametrize("vocabulary", ["characters", "words", "subwords"])
def test_held_out_text_does_not_affect_the_vocabulary(tmp_path: Path, vocabulary: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCE * 200 + "ÄÖÜ " * 100)
    train(config("lm", str(path), vocabulary=vocabulary, steps=1), tmp_path / "run", console=QUIET)
    read = load_vocabularies(tmp_path / "run", load_config(tmp_path / "run"))[""]
    assert not any("Ä" in read.token_text(token) for token in range(read.size))


def test_invalid_vocabulary_options_are_rejected() -> None:
    with pytest.raises(ValidationError, match="a tagger labels every character, so it reads characters or bytes"):
        config("tag", "stdlib", vocabulary="words")
    with pytest.raises(ValidationError, match="every byte is a subword, so at least 256 are needed"):
        config("lm", "stdlib", vocabulary="subwords", vocabulary_size=255)
    with pytest.raises(ValidationError, match="only the vocabularies words and symbols can be in lower case"):
        config("lm", "stdlib", vocabulary="subwords", lower_case=True)


def test_lower_case_vocabulary_is_restored(text: str, tmp_path: Path) -> None:
    train(config("lm", text, vocabulary="words", lower_case=True, steps=1), tmp_path / "run", console=QUIET)
    read = load_vocabularies(tmp_path / "run", load_config(tmp_path / "run"))[""]
    assert (read.encode("The QUICK") == read.encode("the quick")).all()


def test_damaged_tokenizer_of_a_run_is_reported(text: str, tmp_path: Path) -> None:
    train(config("lm", text, vocabulary="subwords", steps=1), tmp_path / "run", console=QUIET)
    (tmp_path / "run" / "tokenizer.json").write_text("{")
    with pytest.raises(TrainingError, match=r"run/tokenizer\.json: "):
        load_best(tmp_path / "run")


@pytest.mark.parametrize("vocabulary", ["characters", "words"])
def test_damaged_vocabulary_of_a_run_is_reported(text: str, tmp_path: Path, vocabulary: str) -> None:
    train(config("lm", text, vocabulary=vocabulary, steps=1), tmp_path / "run", console=QUIET)
    for damage in ('{"tokens": ["a", "a"]}', '{"tokens": 3}'):
        (tmp_path / "run" / "vocabulary.json").write_text(damage)
        with pytest.raises(TrainingError, match=r"run/vocabulary\.json: "):
            load_best(tmp_path / "run")


@pytest.mark.parametrize("vocabulary", ["words", "subwords"])
def test_classifier_of_words_and_subwords_learns(names: str, tmp_path: Path, vocabulary: str) -> None:
    result = train(config("classify", names, vocabulary=vocabulary), tmp_path / "run", console=QUIET)
    assert result.validation.accuracy > 0.9


def test_a_classifier_learns(names: str, tmp_path: Path) -> None:
    result = train(config("classify", names), tmp_path / "run", console=QUIET)
    assert result.validation.accuracy == 1.0
    assert result.validation.majority == pytest.approx(1 / 3)


@pytest.mark.parametrize("vocabulary", ["characters", "bytes"])
def test_a_tagger_learns(tags: str, tmp_path: Path, vocabulary: str) -> None:
    result = train(config("tag", tags, vocabulary=vocabulary), tmp_path / "run", console=QUIET)
    assert result.validation.accuracy > 0.99
    assert result.validation.majority == pytest.approx(5 / 7)


@pytest.mark.parametrize("task", ["lm", "classify", "tag"])
def test_resumed_run_equals_uninterrupted_run_bit_exactly(
    task: str, text: str, names: str, tags: str, tmp_path: Path
) -> None:
    corpus = {"lm": text, "classify": names, "tag": tags}[task]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(config(task, corpus, layers=2), unbroken, console=QUIET)
    train(config(task, corpus, layers=2), broken, console=QUIET, stop_after=40)
    assert not json.loads((broken / RESULT).read_text())["finished"]
    assert bytes_of(broken, LAST) != bytes_of(unbroken, LAST)
    resume(broken, console=QUIET)
    for name in (LAST, BEST, RESULT):
        assert bytes_of(broken, name) == bytes_of(unbroken, name)
    assert untimed(broken) == untimed(unbroken)


def test_stop_between_validations_does_not_affect_the_resumed_run(tmp_path: Path) -> None:
    # The held-out text differs, so that the best model comes early and an early stop could keep another one.
    path = tmp_path / "text.txt"
    path.write_text("ab" * 2000 + "aabb" * 110)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(config("lm", str(path)), unbroken, console=QUIET)
    train(config("lm", str(path)), broken, console=QUIET, stop_after=3)
    assert load_tensors(broken / BEST)[1]["step"] == 3
    assert (
        json.loads(bytes_of(broken, RESULT))["validation_nats"]
        < json.loads(bytes_of(unbroken, RESULT))["validation_nats"]
    )
    resume(broken, console=QUIET, stop_after=51)
    resume(broken, console=QUIET)
    for name in (LAST, BEST, RESULT):
        assert bytes_of(broken, name) == bytes_of(unbroken, name)
    assert untimed(broken) == untimed(unbroken)


def test_changed_corpus_is_rejected_on_resume(text: str, tmp_path: Path) -> None:
    train(config("lm", text), tmp_path / "run", console=QUIET, stop_after=20)
    Path(text).write_text(SENTENCE.replace("fox", "cat") * 200)
    with pytest.raises(TrainingError, match=r"text\.txt: is not what .*run was trained on"):
        resume(tmp_path / "run", console=QUIET)


def test_run_of_an_older_format_is_reported(text: str, tmp_path: Path) -> None:
    train(config("lm", text), tmp_path / "run", console=QUIET, stop_after=20)
    tensors, metadata = load_tensors(tmp_path / "run" / LAST)
    del metadata["fingerprint"]
    save_tensors(tmp_path / "run" / LAST, tensors, metadata)
    with pytest.raises(TrainingError, match="run: an older elman has written it; start a new run"):
        resume(tmp_path / "run", console=QUIET)


def test_non_finite_loss_stops_training_immediately(text: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is not finite at step [0-9]+: lower --learning-rate"):
        train(config("lm", text, cell="lstm", learning_rate=1e30), tmp_path / "run", console=QUIET)


def test_truncated_log_line_is_ignored(text: str, tmp_path: Path) -> None:
    train(config("lm", text), tmp_path / "run", console=QUIET, stop_after=20)
    with (tmp_path / "run" / METRICS).open("a") as log:
        log.write('{"step": 4')
    assert resume(tmp_path / "run", console=QUIET).finished


def test_log_records_after_the_checkpoint_are_discarded_on_resume(text: str, tmp_path: Path) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    train(config("lm", text), unbroken, console=QUIET)
    train(config("lm", text), killed, console=QUIET, stop_after=40)
    with (killed / METRICS).open("a") as log:
        log.write(json.dumps({"step": 41, "nats": 0.0}) + "\n")
    resume(killed, console=QUIET)
    assert untimed(killed) == untimed(unbroken)


def test_control_c_saves_the_model(text: str, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "run" / LAST).exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    result = train(config("lm", text, steps=100_000), tmp_path / "run", console=QUIET)
    thread.join()
    assert not result.finished
    assert result.step >= 20
    assert load_tensors(tmp_path / "run" / LAST)[1]["step"] == result.step
    assert (tmp_path / "run" / CURVE).read_bytes().startswith(b"\x89PNG")
    load_best(tmp_path / "run")


def test_best_model_is_kept_even_if_it_is_not_the_last(tmp_path: Path) -> None:
    # The better the model fits the training text, the worse it does on the held-out text.
    path = tmp_path / "text.txt"
    path.write_text("ab" * 2000 + "aabb" * 110)
    result = train(config("lm", str(path)), tmp_path / "run", console=QUIET)
    held_out = [
        float(str(record["validation_nats"])) for record in untimed(tmp_path / "run") if "validation_nats" in record
    ]
    assert min(held_out) < held_out[-1]
    assert result.validation.nats < held_out[-1]
    assert json.loads((tmp_path / "run" / RESULT).read_text())["kept_step"] < 60


def test_resuming_a_finished_run_does_nothing(text: str, tmp_path: Path) -> None:
    train(config("lm", text), tmp_path / "run", console=QUIET)
    before = bytes_of(tmp_path / "run", LAST)
    assert resume(tmp_path / "run", console=QUIET).finished
    assert bytes_of(tmp_path / "run", LAST) == before


def test_folder_with_a_run_is_not_overwritten(text: str, tmp_path: Path) -> None:
    train(config("lm", text, steps=1), tmp_path / "run", console=QUIET)
    with pytest.raises(TrainingError, match="holds a run already; continue it with --resume"):
        train(config("lm", text), tmp_path / "run", console=QUIET)


def test_missing_or_damaged_checkpoint_cannot_be_resumed(text: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no run"):
        resume(tmp_path, console=QUIET)
    train(config("lm", text, steps=1), tmp_path / "run", console=QUIET)
    (tmp_path / "run" / LAST).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"last\.safetensors: cannot be read as a checkpoint"):
        resume(tmp_path / "run", console=QUIET)


@pytest.mark.parametrize(("task", "steps"), [("lm", 13), ("tag", 10)])
def test_corpus_that_is_too_short_is_reported(task: str, steps: int, tmp_path: Path) -> None:
    path = tmp_path / "short.tsv"
    path.write_text("ab\tx\ncd\ty\n\nab\tx\n")
    complaint = rf"short\.tsv: got {steps} steps; 8 rows \(--lanes\) of one window of 10 steps need at least 80"
    with pytest.raises(TrainingError, match=complaint):
        train(config(task, str(path)), tmp_path / "run", console=QUIET)


def test_unknown_characters_in_held_out_text_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCE * 100 + "語🌲" * 100)
    result = train(config("lm", str(path), steps=5), tmp_path / "run", console=QUIET)
    assert result.validation.nats > 0


def test_cpu_without_bfloat16_trains_in_float32(text: str, tmp_path: Path) -> None:
    options = "--task lm --cell lstm --steps 2 --hidden 8 --embedding 4 --window 10 --precision bfloat16"
    actual = elman("train", *options.split(), "--corpus", text, "--output", tmp_path / "run", ONEDNN_MAX_CPU_ISA="AVX2")
    assert actual.returncode == 0, actual.stderr
    assert "this processor does not support bfloat16: training in float32" in actual.stdout + actual.stderr
    assert load_config(tmp_path / "run").precision == "bfloat16"


@pytest.mark.shared_data
@pytest.mark.parametrize(("preset", "corpus"), [("shakespeare", "tinyshakespeare/input.txt"), ("names", "names")])
def test_presets_match_their_corpora(preset: str, corpus: str, tmp_path: Path) -> None:
    path = SHARED_DATA / corpus
    if not path.exists():
        pytest.skip(f"{path} is not there")
    small = {**PRESETS[preset], "hidden": 8, "embedding": 8, "validation_limit": 500}
    result = train(TextConfig(**small, corpus=str(path)), tmp_path / "run", console=QUIET, stop_after=2)
    assert result.step == 2


@pytest.mark.parametrize("preset", ["python", "python-words", "python-subwords", "python-tags", "python-packages"])
def test_presets_match_the_embedded_corpus(preset: str, tmp_path: Path) -> None:
    limit = {"corpus_limit": 300_000} if preset != "python-packages" else {}
    small = {**PRESETS[preset], "hidden": 8, "embedding": 8, "validation_limit": 500, **limit}
    assert train(TextConfig(**small), tmp_path / "run", console=QUIET, stop_after=2).step == 2
