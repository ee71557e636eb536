"""`elman score` and `elman inspect`, run as commands."""

from __future__ import annotations

import asyncio
import html
import json
import math
import os
import pty
import re
import subprocess
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from elman import Client, Unit
from elman.character_features import features
from elman.cli.inspecting import as_given
from elman.cli.scoring import piece_end
from elman.cli.unit_correlations import Reading, best_units, correlations
from elman.cli.unit_drawing import as_html, colour
from elman_bundle import Bundle
from tests.support.command_line import ELMAN, Served, check_failure, elman
from tests.support.light_install import SERVER_PARTS, run_without
from tests.support.scores import scores_alone
from tests.support.serving import serving

TEXT = "the quick brown fox\njumps over the lazy dog\n" * 40


@pytest.fixture(scope="module")
def served(bundles: Mapping[str, Bundle]) -> Iterator[Served]:
    server = Served(bundles["gru"].path, bundles["tags"].path, "--provider", "cpu")
    yield server
    server.end()


@pytest.fixture(scope="module")
def narrow(bundles: Mapping[str, Bundle]) -> Iterator[Served]:
    """A server that accepts at most 500 tokens per request."""
    server = Served(bundles["gru"].path, "--provider", "cpu", "--input-limit", 500)
    yield server
    server.end()


def scored(*arguments: object, stdin: str = "") -> list[dict[str, object]]:
    result = elman("score", "--json", *arguments, stdin=stdin)
    assert (result.returncode, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_files_are_scored_individually_and_in_total(
    bundles: Mapping[str, Bundle], served: Served, tmp_path: Path
) -> None:
    texts = {"a": "the quick brown fox", "b": "é 語?"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = [tmp_path / name for name in texts]
    *each, total = scored(*files, "--context", "ab", "--server", served.address)
    expected = [scores_alone(bundles["gru"], "ab", text) for text in texts.values()]
    for one, file, probabilities in zip(each, files, expected, strict=True):
        assert one["file"] == str(file)
        assert one["token_count"] == len(probabilities)
        assert one["log_likelihood"] == pytest.approx(sum(probabilities), abs=1e-4)
        assert one["perplexity"] == pytest.approx(math.exp(-sum(probabilities) / len(probabilities)), rel=1e-5)
    assert [one["unknown_token_count"] for one in each] == [0, 1]
    together = [number for probabilities in expected for number in probabilities]
    assert total["file_count"] == 2
    assert total["nats_per_token"] == pytest.approx(-sum(together) / len(together), rel=1e-5)
    assert total["bits_per_token"] == pytest.approx(-sum(together) / len(together) / math.log(2), rel=1e-5)
    table = elman("score", *files, "--context", "ab", "--server", served.address).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["file", *map(str, files), "total"]
    assert table[-1].split()[1:4] == [str(len(together)), "1", f"{total['nats_per_token']:.4f}"]


def test_standard_input_is_scored_like_training_text(served: Served) -> None:
    plain = scored("--server", served.address, stdin="one\ntwo\n")
    assert plain[0]["file"] == "-"
    assert plain[0]["token_count"] == 7  # the first token has no context
    assert scored("--server", served.address, stdin="\ufeffone\r\ntwo\r\n") == plain


def test_file_longer_than_the_limit_is_scored_in_pieces(
    bundles: Mapping[str, Bundle], narrow: Served, tmp_path: Path
) -> None:
    file = tmp_path / "long"
    file.write_text(TEXT, encoding="utf-8")
    one, _ = scored(file, "--server", narrow.address)
    # 1760 characters are halved twice until a piece fits into 500 tokens.
    longest = 440
    pieces, start = [], 0
    while start < len(TEXT):
        end = piece_end(TEXT, start, longest)
        assert TEXT[end - 1] == "\n"
        pieces.append(scores_alone(bundles["gru"], TEXT[max(0, start - longest // 2) : start], TEXT[start:end]))
        start = end
    assert one["piece_count"] == len(pieces) > 3
    assert one["token_count"] == len(TEXT) - 1
    assert one["log_likelihood"] == pytest.approx(sum(map(sum, pieces)), abs=2e-3)


async def test_pieces_of_a_large_file_fit_into_messages(bundles: Mapping[str, Bundle]) -> None:
    from elman.cli.scoring import FileScore, scored_pieces

    # The text also exceeds the limit of the transport, four times that of a message, which gives no reason.
    async with serving(bundles["gru"], message_limit=3000) as running:
        pieces = [piece async for piece in scored_pieces(running.client, TEXT * 10, "", "")]
        result = FileScore.of_pieces(pieces)
    assert result.token_count == len(TEXT) * 10 - 1
    assert result.piece_count > 8


def test_pieces_end_at_lines_or_words() -> None:
    assert piece_end("ab\ncd ef", 0, 8) == 8
    assert piece_end("ab\ncd ef", 0, 5) == 3
    assert piece_end("ab cd ef", 0, 5) == 3
    assert (
        piece_end("a\nbcdefghi", 0, 6) == 6
    )  # A newline in the first half is ignored, because the piece would be too short.
    assert piece_end("abcd", 3, 1) == 4


def test_errors_of_score(served: Served, narrow: Served, tmp_path: Path) -> None:
    good, binary, empty, short = (tmp_path / name for name in ("good", "binary", "empty", "short"))
    good.write_text("the quick")
    binary.write_bytes(b"ab\xff")
    empty.write_bytes(b"")
    short.write_text("a")
    server = ["--server", served.address]
    for wrong, error_message in (
        ([good, tmp_path / "nope"], f"error: {tmp_path / 'nope'}: No such file or directory"),
        ([tmp_path], f"error: {tmp_path}: Is a directory"),
        ([good, binary], f"error: {binary}: is not text in UTF-8 (see byte 2)"),
        ([good, empty], f"error: {empty}: is empty: there is nothing to read"),
        ([], "error: standard input: is empty: there is nothing to read"),
        ([short], f"error: {short}: candidates[0]: got one token without a context; a first token has no probability"),
        ([good, "--model", "tags"], "model: got 'tags'; it has labels and does not generate text. Use Classify"),
    ):
        result = elman("score", *wrong, *server)
        check_failure(result, error_message)
        assert len(result.stderr.splitlines()) == 1
    check_failure(
        elman("score", good, "--context", "a" * 501, "--server", narrow.address),
        "context.text: got 501 tokens or more; at most 500 are allowed",
    )


CODE = 'def f(a):\n    return "1 <b>" # é\t2\n' * 3
UNKNOWN = sum(CODE.count(character) for character in '():"1<>#\t2')


def unit_name(served: Served) -> str:
    """Return the name of a unit of the model."""

    async def first() -> Unit:
        async with Client(served.address) as client:
            stream = client.inspect("a", model="gru")
            async for _ in stream:
                return stream.units[7]
            raise AssertionError

    unit = asyncio.run(first())
    return f"{unit.state}:{unit.index}"


def unit_values(served: Served, name: str, text: str) -> list[tuple[str, float]]:
    """Return the values of a unit at each character, including unknown ones."""

    async def values() -> list[float]:
        state, _, index = name.rpartition(":")
        async with Client(served.address) as client:
            stream = client.inspect(text, model="gru", units={state: [int(index)]})
            return [step.values[0] async for step in stream]

    return list(zip(text, asyncio.run(values()), strict=True))


def test_file_names_that_are_not_utf_8_are_escaped(served: Served, tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(file)).write_text("the quick")
    shown = f"{tmp_path}/caf\ufffd.txt"
    (one, _), options = scored(os.fsdecode(file), "--model", "gru", "--server", served.address), ["--model", "gru"]
    assert one["file"] == shown
    table = elman("score", os.fsdecode(file), *options, "--server", served.address)
    assert table.stdout.splitlines()[1].split()[0] == shown
    check_failure(elman("score", os.fsdecode(file) + "x", *options), f"error: {shown}x: No such file")


def test_inspect_escapes_characters_outside_the_output_encoding(served: Served) -> None:
    result = elman(
        "inspect", "--text", "\u00e9a", "--model", "gru", "--unit", unit_name(served), "--server", served.address,
        PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [r"\xe9", "a"]


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


class Spans(HTMLParser):
    """Collects the spans of a page that have a title: title, style and text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self.others: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.others |= {name for name in named if name in ("src", "href")}
        if tag == "span" and named.get("title"):
            self.found.append([str(named["title"]), str(named["style"]), ""])

    def handle_data(self, data: str) -> None:
        if self.found and self.lasttag == "span":
            self.found[-1][2] += data


def test_inspect_draws_a_unit(served: Served, tmp_path: Path) -> None:
    file, page = tmp_path / "code.py", tmp_path / "page.html"
    file.write_text(CODE, encoding="utf-8")
    name = unit_name(served)
    options = ["--model", "gru", "--unit", name, "--server", served.address]
    result = elman("inspect", file, *options, "--html", page)
    assert result.returncode == 0
    assert result.stderr == f"note: {UNKNOWN} tokens of the text are unknown to the model\n"
    expected = unit_values(served, name, CODE)
    assert result.stdout.splitlines() == [f"{escaped(text)}\t{value:.6g}" for text, value in expected]
    assert elman("inspect", "--text", CODE, *options).stdout == result.stdout
    assert elman("inspect", *options, stdin=CODE).stdout == result.stdout
    shown = page.read_text(encoding="utf-8")
    spans = Spans()
    spans.feed(shown)
    assert [title for title, _, _ in spans.found] == [f"{value:.6g}" for _, value in expected]
    scale = max(abs(value) for _, value in expected)
    for (_, style, text), (read, value) in zip(spans.found, expected, strict=True):
        assert style == "background:#{:02x}{:02x}{:02x}".format(*colour(value, scale))
        assert text.rstrip("\n").replace("↵", "\n")[: len(read)] == read
    assert spans.others == set()  # the page loads no resources
    assert f"<h1>{html.escape(name)}</h1>" in shown
    assert f"{-scale:.3g} (blue)" in shown
    assert f"{scale:.3g} (red)" in shown


def test_html_page_escapes_markup() -> None:
    unit = Unit("<s>", 1)
    page = as_html(Reading("m&m", "d", (unit,), ["<b>&", "c\n"], []), unit, [0.5, -1.0])
    assert ">&lt;b&gt;&amp;</span>" in page
    assert ">c↵\n</span>" in page
    assert "<h1>&lt;s&gt;:1</h1>" in page
    assert "m&amp;m" in page


def test_inspect_draws_in_colour_on_a_terminal(served: Served) -> None:
    name = unit_name(served)
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [*ELMAN, "inspect", "--text", "abc", "--model", "gru", "--unit", name, "--server", served.address],
        stdout=end,
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
    )
    os.close(end)
    assert process.wait(timeout=60) == 0
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    expected = unit_values(served, name, "abc")
    scale = max(abs(value) for _, value in expected)
    for text, value in expected:
        red, green, blue = colour(value, scale)
        assert re.search(rf"48;2;{red};{green};{blue}m{text}", shown)


def test_inspect_lists_the_units_that_correlate_best_with_features(served: Served, tmp_path: Path) -> None:
    async def everything() -> tuple[tuple[Unit, ...], list[tuple[float, ...]]]:
        async with Client(served.address) as client:
            stream = client.inspect(CODE, model="gru")
            rows = [step.values async for step in stream]
        return stream.units, rows

    units, rows = asyncio.run(everything())
    result = elman("inspect", "--text", CODE, "--model", "gru", "--best", 2, "--server", served.address)
    assert result.returncode == 0, result.stderr
    head, _, drawn = result.stdout.partition("\n\n")
    listed = [re.split(r" {2,}", line.strip()) for line in head.splitlines()[1:]]
    values = np.array(rows)
    expected = []
    for name, feature in features(CODE).items():
        if len(set(feature)) > 1:
            each = [float(np.corrcoef(values[:, unit], feature)[0, 1]) for unit in range(len(units))]
            best = sorted(range(len(units)), key=lambda unit: -abs(each[unit]))[:2]
            expected += [[name, f"{units[unit].state}:{units[unit].index}", f"{each[unit]:+.3f}"] for unit in best]
    assert len(expected) == 2 * 6
    assert [row[:2] for row in listed] == [row[:2] for row in expected]
    assert [float(row[2]) for row in listed] == pytest.approx([float(row[2]) for row in expected], abs=2e-3)
    _, name, _ = max(expected, key=lambda row: abs(float(row[2])))
    assert drawn.splitlines() == [f"{escaped(text)}\t{value:.6g}" for text, value in unit_values(served, name, CODE)]


def test_constructed_correlations_are_found() -> None:
    text = 'a "b1" c\n  d "e"\n'
    made = features(text)
    rows = [
        [0.5, -3 * quoted + 1, depth]
        for quoted, depth in zip(made["inside quotes"], made["indentation depth"], strict=True)
    ]
    # Steps without a character, such as a begin token, have no features.
    reading = Reading("m", "d", tuple(Unit("s", index) for index in range(3)), ["", *text], [[9.0, 9.0, 9.0], *rows])
    best = {one.feature: one for one in best_units(reading, 1)}
    assert (best["inside quotes"].unit, best["inside quotes"].coefficient) == (1, pytest.approx(-1))
    assert (best["indentation depth"].unit, best["indentation depth"].coefficient) == (2, pytest.approx(1))
    assert "inside a comment" not in best
    pairs = Reading("m", "d", reading.units, [text[:2], *text[2:]], rows[1:])
    assert {one.feature: one for one in best_units(pairs, 1)}["inside quotes"].coefficient == pytest.approx(-1)


def test_constant_values_have_no_correlation() -> None:
    values = np.array([[0.1, 1.0, np.nan], [0.1, 2.0, 1.0], [0.1, 4.0, 2.0]], dtype=np.float32)
    feature = np.array([0.0, 1.0, 3.0])
    assert correlations(values, feature) == pytest.approx([0, 1, 0])
    assert correlations(values, np.ones(3)) == pytest.approx([0, 0, 0])


def test_unknown_characters_are_drawn_as_in_the_input() -> None:
    assert as_given(["", "a", "�", "", "bc"], "a?bc") == ["", "a", "?", "", "bc"]
    assert as_given(["a", "�"], "a???") == ["a", "�"]  # It is unknown how many characters the second step has read.
    assert as_given(["a", "x"], "ab") == ["a", "x"]


def test_values_map_to_colours() -> None:
    assert colour(0.0, 2.0) == colour(math.nan, 2.0) == (255, 255, 255)
    red, _, blue = colour(2.0, 2.0)
    assert red > blue
    red, _, blue = colour(-2.0, 2.0)
    assert blue > red
    assert colour(math.inf, 2.0) == colour(2.0, 2.0)


def test_errors_of_inspect(served: Served, tmp_path: Path) -> None:
    server = ["--model", "gru", "--server", served.address]
    (tmp_path / "empty").touch()
    for wrong, error_message in (
        ([tmp_path / "nope"], f"error: {tmp_path / 'nope'}: No such file or directory"),
        ([tmp_path / "empty"], f"error: {tmp_path / 'empty'}: is empty: there is nothing to read"),
        (
            ["--text", "a", "--unit", "nope:1"],
            "units[0].state_name: got 'nope'; the states of 'gru' are: state.layer0.hidden",
        ),
        (["--text", "a", "--unit", unit_name(served).rpartition(":")[0] + ":99999"], "99999"),
    ):
        result = elman("inspect", *wrong, *server)
        check_failure(result, error_message)
        assert len(result.stderr.splitlines()) == 1
    for wrong, error_message in (
        ([tmp_path / "empty", "--text", "a"], "exclude each other"),
        (["--text", "a", "--unit", "x:1", "--best", 2], "exclude each other"),
        (["--text", "a", "--unit", "seven"], "--unit: got 'seven'; it must be STATE:INDEX"),
        (["--text", "a"], "no feature or no unit changes"),
    ):
        result = elman("inspect", *wrong, *server)
        check_failure(result, error_message)
        assert result.returncode == 2


def test_inspecting_without_numpy_names_the_extra() -> None:
    code = "sys.argv = ['elman', 'inspect', '--text', 'a']; from elman.cli import main; main()"
    result = run_without(SERVER_PARTS, code)
    assert result.returncode == 1
    assert "numpy is not installed, and this command needs it: pip install 'elman[server]'" in result.stderr
    assert "Traceback" not in result.stderr
