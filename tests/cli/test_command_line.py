"""The commands as users run them: from text to a stream, with every error reported in one line."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import os
import pty
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from elman import Continuation, FinishReason
from elman_bundle import Bundle, CharacterVocabulary
from elman_export import NextToken, Token, export_bundle
from tests.support.command_line import ELMAN, Served, check_failure, elman
from tests.support.serving import serving

SMALL = [
    "--cell", "gru", "--layers", "1", "--hidden", "16", "--embedding", "8", "--lanes", "8", "--steps", "60",
    "--validate-every", "30", "--learning-rate", "0.02", "--minimum-count", "1",
]  # fmt: skip
WINDOW = ["--window", "10"]


BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}
JSON_KEYS = {"text", "token_ids", "finish_reason", "stop_sequence", "score", "log_probabilities", "usage"}


class Excluding(nn.Module):
    """Assigns zero probability to two of four characters."""

    def initial_state(self, rows: int) -> dict[str, torch.Tensor]:
        return {"sum": torch.zeros(rows, 4)}

    def step(
        self, inputs: dict[str, torch.Tensor], constants: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        total = state["sum"] + functional.one_hot(inputs["token"], 4).float()
        return {"logits": total + torch.tensor([2e38, 2e38, -2e38, -2e38])}, {"sum": total}


@pytest.fixture(scope="module")
def served(bundles: Mapping[str, Bundle]) -> Iterator[Served]:
    server = Served(bundles["gru"].path, bundles["tags"].path, bundles["classes"].path, "--provider", "cpu")
    yield server
    assert server.end() == 0
    assert '"stopped"' in server.log[-1]


def test_train_resume_export_serve_and_generate(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    run, bundle = tmp_path / "run", tmp_path / "fox"
    trained = elman("train", "--task", "lm", "--corpus", text, "--output", run, *SMALL, *WINDOW, "--stop-after", 30)
    assert trained.returncode == 0, trained.stderr
    assert "continue with: elman train --resume" in trained.stderr
    resumed = elman("train", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert "step 60: held out" in resumed.stderr
    exported = elman("export", run, "--output", bundle, "--name", "fox")
    assert exported.returncode == 0, exported.stderr
    server = Served(bundle)
    try:
        # Standard output contains only the continuation.
        once = elman("generate", "the quick ", "--max-tokens", 30, "--temperature", 0, "--server", server.address)
        assert (once.returncode, once.stderr) == (0, "")
        assert len(once.stdout) == 30
        options = ["--max-tokens", 30, "--seed", 5, "--model", "fox", "--server", server.address]
        assert elman("generate", "the ", *options).stdout == elman("generate", "the ", *options).stdout
    finally:
        assert server.end(signal.SIGINT) == 0


def test_models_and_health_commands(served: Served) -> None:
    listed = elman("models", "--server", served.address)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["model", "classes", "gru", "tags"]
    assert elman("models", ELMAN_SERVER=served.address).stdout == listed.stdout
    assert elman("health", "--server", served.address).returncode == 0
    check_failure(elman("health", "--server", "127.0.0.1:1"), "127.0.0.1:1 is not serving")


def test_classify_labels_each_line(served: Served) -> None:
    lines = ["abc", "the 語", "z"]
    result = elman("classify", "--model", "classes", "--server", served.address, stdin="\n".join(lines))
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[2] for row in rows] == lines
    assert all(row[0] in ("red", "green", "blue") and 0 <= float(row[1]) <= 1 for row in rows)


def test_output_of_tagging_can_be_read_by_training(served: Served, tmp_path: Path) -> None:
    from elman_training.labels.tagged_text import read_labelled_text

    result = elman("classify", "--model", "tags", "--server", served.address, stdin="a\tb\\c 語 de\nab\n")
    path = tmp_path / "tags.tsv"
    path.write_text(result.stdout + "x\tanother label\n", encoding="utf-8")
    read = read_labelled_text(str(path))
    assert read.text == "a\tb\\c 語 deabx"
    assert read.starts == [0, 10, 12]


def test_classify_follows_a_growing_stream(served: Served) -> None:
    arguments = [*ELMAN, "classify", "--follow", "--model", "classes", "--server", served.address]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdin is not None
    assert process.stdout is not None
    answers = []
    for piece in ("ab", "cd"):
        process.stdin.write(piece)
        process.stdin.flush()
        answers.append(process.stdout.readline().split("\t"))  # arrives before the stream has ended
    process.stdin.close()
    assert process.stdout.read() == ""
    process.stdout.close()
    assert process.wait(timeout=10) == 0
    whole = elman("classify", "--model", "classes", "--server", served.address, stdin="abcd")
    assert answers[1] == [*whole.stdout.split("\t")[:1], whole.stdout.split("\t")[1] + "\n"]


def test_terminal_output_ends_with_a_newline_and_shows_tags_in_colour(served: Served) -> None:
    def on_terminal(*arguments: str, stdin: bytes = b"") -> str:
        terminal, end = pty.openpty()
        process = subprocess.Popen([*ELMAN, *arguments], stdin=subprocess.PIPE, stdout=end)
        os.close(end)
        process.communicate(stdin, timeout=30)
        shown = b""
        while True:
            try:
                part = os.read(terminal, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        os.close(terminal)
        return shown.decode()

    generated = on_terminal("generate", "abc", "--max-tokens", "5", "--server", served.address)
    assert generated.endswith("\r\n")
    tagged = on_terminal("classify", "--model", "tags", "--server", served.address, stdin=b"abc\n")
    assert "\x1b[" in tagged


def test_unknown_characters_are_reported_on_standard_error(served: Served) -> None:
    result = elman("generate", "a?b?", "--max-tokens", 3, "--server", served.address)
    assert len(result.stdout) == 3
    note = "2 tokens of the prompt are unknown to the model"
    assert note in result.stderr
    for several in ("--samples", "--beams"):
        assert note in elman("generate", "a?b?", several, 2, "--max-tokens", 3, "--server", served.address).stderr


def test_several_continuations_as_text_and_as_json(served: Served, tmp_path: Path) -> None:
    server = ["--server", served.address]
    options = ["abc", "--max-tokens", 12, "--seed", 4, *server]
    drawn = elman("generate", *options, "--samples", 2).stdout
    assert drawn.startswith("--- 1 of 2\n" + elman("generate", *options).stdout)
    best, *_ = elman("generate", *options, "--beams", 3, "--results", 2, "--json").stdout.splitlines()
    assert json.loads(best).keys() == JSON_KEYS
    assert json.loads(best)["log_probabilities"] == []
    shown = elman("generate", *options, "--beams", 3, "--results", 2).stdout
    assert f"--- 1 of 2, score {json.loads(best)['score']:.4f}\n{json.loads(best)['text']}\n" in shown
    whole = elman("generate", *options).stdout
    parsed = json.loads(elman("generate", *options, "--stop", whole[6:8], "--json", "--log-probabilities", 2).stdout)
    assert parsed["text"] == whole[: whole.index(whole[6:8])]
    assert (parsed["finish_reason"], parsed["stop_sequence"]) == ("stop_sequence", whole[6:8])
    assert [len(report["most_likely"]) for report in parsed["log_probabilities"]] == [2] * len(parsed["token_ids"])
    biased = elman("generate", *options, "--bias", "3=100", "--repetition-penalty", 1.1, "--forbid", 4, "--min-p", 0.1)
    assert biased.stdout == "c" * 12
    assert json.loads(elman("generate", *options, "--json").stdout)["stop_sequence"] is None


def test_json_contains_missing_values_as_null() -> None:
    from elman.cli.generating import _as_json

    parsed = json.loads(_as_json(Continuation("", (), FinishReason.END_TOKEN, "", None, (), None, 0)))
    assert parsed.keys() == JSON_KEYS
    assert parsed["token_ids"] == parsed["log_probabilities"] == []
    assert parsed["stop_sequence"] is parsed["score"] is parsed["usage"] is None


def test_json_has_no_infinite_numbers(tmp_path: Path) -> None:
    module = Excluding()
    inputs, outputs = {"token": Token(CharacterVocabulary("abcd"))}, {"logits": NextToken()}
    export_bundle(module, tmp_path / "some", name="some", inputs=inputs, outputs=outputs)
    server = Served(tmp_path / "some", "--provider", "cpu")
    result = elman("generate", "a", "--max-tokens", 1, "--json", "--log-probabilities", 4, "--server", server.address)
    server.end()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    parsed = json.loads(result.stdout, parse_constant=refuse)
    (report,) = parsed["log_probabilities"]
    likely = [token["log_probability"] for token in report["most_likely"]]
    assert likely[2:] == [None, None]
    assert sum(map(math.exp, likely[:2])) == pytest.approx(1)


def test_errors_of_commands_that_call_a_server(served: Served) -> None:
    server = ["--server", served.address]
    check_failure(elman("generate", "", *server), "error: text: got an empty prompt")
    check_failure(
        elman("generate", "a", "--model", "nope", *server),
        "error: model: got 'nope'; there is no such model; this server holds",
    )
    check_failure(elman("generate", "a", "--max-tokens", 0, *server), "error: max_tokens: got 0; must be 1 to")
    check_failure(
        elman("generate", "a", "--temperature", "nan", *server),
        "sampling.temperature: got nan; must be finite and not negative",
    )
    check_failure(
        elman("generate", "a", "--model", "tags", *server),
        "model: got 'tags'; it has labels and does not generate text. Use Classify",
    )
    check_failure(elman("classify", *server, stdin="a"), "model: got none; 2 models of this server can label")
    check_failure(
        elman("classify", "--model", "gru", *server, stdin="a"),
        "error: model: got 'gru'; it generates text and has no labels. Use Generate",
    )
    check_failure(
        elman("classify", "--follow", "--model", "gru", *server, stdin="a"),
        "config.model: got 'gru'; it generates text and has no labels. Use Generate",
    )
    check_failure(elman("generate", "a", "--server", "127.0.0.1:1"), "is a server running there?")
    check_failure(elman("generate", "a", "--time-limit", "inf", *server), "time_limit: got inf; it must be a number of")
    check_failure(
        elman("generate", "a", "--stop", "", *server), "stop_sequences[0]: got 0 characters; must have 1 to 256"
    )
    for wrong in (
        ("--samples", 2, "--beams", 2),
        ("--samples", 2, "--session", "s"),
        ("--bias", "three=1"),
        ("--log-probabilities", 1),
        ("--beams", 2, "--json", "--log-probabilities", 2),
        ("--results", 3),
        ("--length-penalty", 9),
        ("--timeout", "nan"),
    ):
        refused = elman("generate", "a", *wrong, *server)
        assert refused.returncode == 2
        assert wrong[0] in refused.stderr


def test_errors_of_serve(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    good = bundles["gru"].path
    check_failure(elman("serve", tmp_path), "is not a bundle: cannot read manifest.json")
    (tmp_path / "config.json").write_text("{}")
    refused = f"bundles: got {tmp_path}; it is a training run. Make a bundle of it: elman export {tmp_path}"
    check_failure(elman("serve", tmp_path), refused)
    check_failure(elman("serve", good, "--listen", "nonsense"), "--listen: got nonsense; expected HOST:PORT")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = elman("serve", good, "--listen", address, "--provider", "cpu")
    assert result.returncode == 1
    assert f"cannot listen on {address}" in result.stderr
    assert "Traceback" not in result.stderr


def test_errors_in_settings_are_one_line(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    good = bundles["gru"].path
    for result in (
        elman("serve", good, "--slots", 0, "--provider", "cpu"),
        elman("serve", good, ELMAN_SLOTS="0"),
        elman("serve", good, "--config", tmp_path / "nope.toml"),
        elman("serve", good, "--store", "redis://:secret@localhost:port"),
        elman("serve"),
    ):
        check_failure(result, ": got ")
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 1
        assert "secret" not in result.stderr
    assert "bundles: got none; at least one is needed" in result.stderr


def test_serve_reads_environment_variables(bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_BUNDLES", f"{bundles['gru'].path},{bundles['tags'].path}")
    monkeypatch.setenv("ELMAN_SLOTS", "7")
    monkeypatch.setenv("ELMAN_SLOT", "8")
    server = Served("--provider", "cpu")
    assert server.end() == 0
    log = [json.loads(line) for line in server.log]
    assert {line["model"] for line in log if line["event"] == "model ready"} == {"gru", "tags"}
    assert [line["slots"] for line in log if line["event"] == "listening"] == [7]
    assert [line["did_you_mean"] for line in log if line["event"] == "unknown variable"] == ["ELMAN_SLOTS"]


def test_errors_of_train(tmp_path: Path) -> None:
    run = ["--output", tmp_path / "run"]
    check_failure(elman("train", "--corpus", tmp_path / "nope", *run), "there is no such file or folder")
    check_failure(elman("train", "--hidden", 0, *run), "--hidden: got 0; input should be greater than or equal to 1")
    check_failure(
        elman("train", "--task", "tag", "--preset", "shakespeare", *run),
        "--task: got tag; the preset shakespeare is for the task lm",
    )
    check_failure(elman("train", "--resume", tmp_path), "holds no run")
    check_failure(elman("export", tmp_path), "holds no run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error_message"),
    [
        (
            ("--vocabulary-size", 9),
            "--vocabulary-size: got 9; it has no effect with --vocabulary characters, only with words or subwords",
        ),
        (("--vocabulary", "bytes", "--vocabulary-size", 9), "with --vocabulary bytes"),
        (("--vocabulary", "bytes", "--minimum-count", 9), "with --vocabulary bytes, only with characters or words"),
        (
            ("--vocabulary", "subwords", "--minimum-count", 9),
            "--minimum-count: got 9; it has no effect with --vocabulary subwords",
        ),
        (
            ("--task", "classify", "--corpus-limit", 9),
            "--corpus-limit: got 9; it has no effect with --task classify, only with lm or tag",
        ),
        (
            ("--task", "classify", "--window", 9),
            "--window: got 9; it has no effect with --task classify, only with lm or tag",
        ),
        (("--task", "tag", "--restart", 0.1), "--restart: got 0.1; it has no effect with --task tag, only with lm"),
    ],
)
def test_training_options_without_effect_are_rejected(
    tmp_path: Path, options: tuple[object, ...], error_message: str
) -> None:
    result = elman("train", *options, "--output", tmp_path / "run", "--stop-after", 1)
    check_failure(result, error_message)
    assert result.returncode == 2
    assert not (tmp_path / "run").exists()


def test_every_option_has_help_and_shows_its_default() -> None:
    from typer.main import get_command

    from elman.cli.application import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    calls = {"models", "generate", "translate", "ask", "classify", "score", "inspect", "session", "health"}
    assert set(commands) == {"train", "export", "embeddings", "serve", *calls}
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.name == "help":
                continue
            assert parameter.help, (name, parameter.name)
            needed = (
                parameter.required or getattr(parameter, "is_flag", False) or parameter.name in ("resume", "prompt")
            )
            assert needed or parameter.show_default, (name, parameter.name)


def test_failure_of_many_lines_is_one_error_message(served: Served) -> None:
    result = elman("classify", "--model", "nope", "--server", served.address, stdin="line\n" * 200)
    check_failure(result, "model: got 'nope'; there is no such model")
    assert len(result.stderr.splitlines()) == 1


def test_classify_keeps_the_order_of_many_lines(served: Served) -> None:
    lines = [f"line {'abcdefghij'[index % 10]}" for index in range(300)]
    result = elman("classify", "--model", "classes", "--server", served.address, stdin="\r\n".join(lines))
    assert [line.split("\t")[2] for line in result.stdout.splitlines()] == lines


@pytest.mark.parametrize(
    "task", ["tag", pytest.param("classify", marks=pytest.mark.slow("trains, exports and serves a second model"))]
)
def test_training_on_a_labelled_file_needs_no_preset(task: str, tmp_path: Path) -> None:
    corpus = tmp_path / "own.tsv"
    corpus.write_text("abc\tfirst\n123\tsecond\n\n" * 200)
    options = SMALL if task == "classify" else [*SMALL, *WINDOW]
    trained = elman("train", "--task", task, "--corpus", corpus, "--output", tmp_path / "run", *options)
    assert trained.returncode == 0, trained.stderr
    assert "accuracy: 100.00%" in trained.stderr
    assert elman("export", tmp_path / "run", "--output", tmp_path / "own").returncode == 0


def test_options_combined_with_resume_are_rejected(tmp_path: Path) -> None:
    check_failure(elman("train", "--resume", tmp_path, "--hidden", 8), "--hidden: cannot be combined with --resume")
    check_failure(elman("train", "--resume", tmp_path, "--task", "lm"), "--task: cannot be combined with --resume")


def test_arguments_are_not_interpreted_as_markup(served: Served) -> None:
    name = r"n[/]ope:smile:\[bold]"
    check_failure(elman("generate", "x", "--model", name, "--server", served.address), repr(name))


def test_second_signal_forces_the_server_to_exit(bundles: Mapping[str, Bundle]) -> None:
    server = Served(bundles["gru"].path, "--provider", "cpu", "--max-tokens-limit", "2000000000")
    generating = subprocess.Popen(
        [*ELMAN, "generate", "abc", "--max-tokens", "2000000000", "--server", server.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert generating.stdout is not None
    generating.stdout.read(1)
    server.process.send_signal(signal.SIGINT)
    server.process.send_signal(signal.SIGTERM)  # counts as the same signal
    time.sleep(1.5)
    assert server.process.poll() is None
    assert server.end(signal.SIGINT) == 130
    generating.communicate(timeout=20)
    assert generating.returncode == 1
    assert "Traceback" not in "".join(server.log)


def test_interrupted_training_exits_with_an_error_status(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    arguments = ["train", "--corpus", text, "--output", tmp_path / "run", *SMALL, *WINDOW, "--steps", 100_000]
    process = subprocess.Popen([*ELMAN, *map(str, arguments)], stderr=subprocess.PIPE, encoding="utf-8")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with: elman train --resume" in shown
    assert "Traceback" not in shown


def test_sigterm_lets_running_streams_finish(bundles: Mapping[str, Bundle]) -> None:
    server = Served(bundles["gru"].path, "--provider", "cpu", "--threads", "1", "--drain-timeout", "60")
    generating = subprocess.Popen(
        [*ELMAN, "generate", "abc", "--max-tokens", "2000", "--seed", "1", "--server", server.address],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert generating.stdout is not None
    started = generating.stdout.read(1)
    assert server.end() == 0
    # Not communicate(), which reads past what read(1) has buffered.
    rest = generating.stdout.read()
    generating.stdout.close()
    assert len(started + rest) == 2000
    assert generating.wait(timeout=10) == 0


def test_control_c_while_generating_is_quiet(served: Served) -> None:
    process = subprocess.Popen(
        [*ELMAN, "generate", "abc", "--max-tokens", "60000", "--repetition-penalty", "1.1", "--server", served.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    process.stdout.read(1)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error_message = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error_message == ""


@pytest.mark.parametrize(
    "command",
    [
        ("classify", "--model", "classes"),
        ("classify", "--follow", "--model", "classes"),
        ("score", "--model", "gru"),
        ("inspect", "--model", "gru", "--unit", "state.layer0.hidden:0"),
    ],
)
def test_unreadable_standard_input_is_one_error_message(
    served: Served, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for redirection in ("<&-", f"0>{tmp_path / 'written'}"):
        arguments = [*ELMAN, *command, "--server", served.address]
        result = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=30,
        )
        check_failure(result, "error: standard input: cannot be read: Bad file descriptor")
        assert len(result.stderr.splitlines()) == 1


async def test_description_is_not_interpreted_as_markup(bundles: Mapping[str, Bundle]) -> None:
    spec = copy.deepcopy(bundles["gru"].spec)
    spec.description = "reads [/a], [bold]writes"
    async with serving(replace(bundles["gru"], spec=spec)) as running:
        result = await asyncio.to_thread(elman, "models", "--server", running.address)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].rstrip().endswith(spec.description)


@pytest.mark.parametrize("option", ["--json-schema", "--lark"])
def test_expression_files_are_read_as_utf_8(served: Served, tmp_path: Path, option: str) -> None:
    path = tmp_path / "expression"
    path.write_bytes(b"caf\xe9")
    check_failure(
        elman("generate", "a", option, path, "--server", served.address), f"error: {path}: is not text in UTF-8"
    )


def test_grammar_is_read_as_utf_8_in_any_locale(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "grammar"
    path.write_text('start: "\u00e9"', encoding="utf-8")
    environment = {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONIOENCODING": "utf-8"}
    assert elman("generate", "a", "--lark", path, "--server", served.address, **environment).stdout == "\u00e9"


def test_characters_outside_the_output_encoding_are_escaped(served: Served) -> None:
    options = ["--lark", "/dev/stdin", "--server", served.address]
    result = elman("generate", "a", *options, stdin='start: "\u00e9\U0001f332"', PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout) == (0, r"\xe9\U0001f332"), result.stderr


@pytest.mark.parametrize(
    "write", ["models", "session create --model gru", "generate a --samples 2", "classify --model tags"]
)
def test_closed_pipe_is_not_reported(served: Served, write: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [*ELMAN, *write.split(), "--server", served.address],
        env=BUFFERED,
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    _, error_message = process.communicate(b"abc\n" * 1000, timeout=30)
    assert (process.returncode, error_message) == (1, b"")


def test_full_disk_is_one_error_message(served: Served) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [*ELMAN, "generate", "a", "--max-tokens", "3", "--samples", "2", "--server", served.address],
            env=BUFFERED,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
        )
    assert process.returncode == 1
    assert process.stderr == b"error: standard output: No space left on device\n"


def test_closed_standard_output_is_not_reported(served: Served) -> None:
    command = [*ELMAN, "generate", "a", "--max-tokens", "3", "--server", served.address]
    result = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, timeout=30)
    assert (result.returncode, result.stderr) == (0, b"")
