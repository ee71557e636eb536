"""`elman score` and `elman inspect`, as a person types them."""

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
from tests.support.command_line import ELMAN, Served, check_complaint, elman
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
    """A server that takes 500 tokens at once."""
    server = Served(bundles["gru"].path, "--provider", "cpu", "--input-limit", 500)
    yield server
    server.end()


def scored(*arguments: object, stdin: str = "") -> list[dict[str, object]]:
    found = elman("score", "--json", *arguments, stdin=stdin)
    assert (found.returncode, found.stderr) == (0, "")
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_files_are_scored_one_by_one_and_together(
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


def test_standard_input_is_scored_as_training_reads_it(served: Served) -> None:
    plain = scored("--server", served.address, stdin="one\ntwo\n")
    assert plain[0]["file"] == "-"
    assert plain[0]["token_count"] == 7  # Nothing goes before the first one.
    assert scored("--server", served.address, stdin="\ufeffone\r\ntwo\r\n") == plain


def test_a_file_longer_than_the_limit_is_scored_in_pieces(
    bundles: Mapping[str, Bundle], narrow: Served, tmp_path: Path
) -> None:
    file = tmp_path / "long"
    file.write_text(TEXT, encoding="utf-8")
    one, _ = scored(file, "--server", narrow.address)
    # 1760 characters are halved twice before a piece fits into 500 tokens.
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

    # Beyond the transport's limit too, four times the message's, where the server gives no reason.
    async with serving(bundles["gru"], message_limit=3000) as running:
        pieces = [piece async for piece in scored_pieces(running.client, TEXT * 10, "", "")]
        found = FileScore.of_pieces(pieces)
    assert found.token_count == len(TEXT) * 10 - 1
    assert found.piece_count > 8


def test_where_pieces_end() -> None:
    assert piece_end("ab\ncd ef", 0, 8) == 8
    assert piece_end("ab\ncd ef", 0, 5) == 3
    assert piece_end("ab cd ef", 0, 5) == 3
    assert piece_end("a\nbcdefghi", 0, 6) == 6  # A newline in the first half would make pieces needlessly short.
    assert piece_end("abcd", 3, 1) == 4


def test_mistakes_of_scoring(served: Served, narrow: Served, tmp_path: Path) -> None:
    good, binary, empty, short = (tmp_path / name for name in ("good", "binary", "empty", "short"))
    good.write_text("the quick")
    binary.write_bytes(b"ab\xff")
    empty.write_bytes(b"")
    short.write_text("a")
    server = ["--server", served.address]
    for wrong, complaint in (
        ([good, tmp_path / "nope"], f"error: {tmp_path / 'nope'}: No such file or directory"),
        ([tmp_path], f"error: {tmp_path}: Is a directory"),
        ([good, binary], f"error: {binary}: is not text in UTF-8 (see byte 2)"),
        ([good, empty], f"error: {empty}: is empty: there is nothing to read"),
        ([], "error: standard input: is empty: there is nothing to read"),
        ([short], f"error: {short}: candidates[0]: got one token without a context; a first token has no probability"),
        ([good, "--model", "tags"], "model: got 'tags'; it has labels and does not generate text. Use Classify"),
    ):
        found = elman("score", *wrong, *server)
        check_complaint(found, complaint)
        assert len(found.stderr.splitlines()) == 1
    check_complaint(
        elman("score", good, "--context", "a" * 501, "--server", narrow.address),
        "context.text: got 501 tokens or more; at most 500 are allowed",
    )


CODE = 'def f(a):\n    return "1 <b>" # é\t2\n' * 3
UNKNOWN = sum(CODE.count(character) for character in '():"1<>#\t2')


def unit_name(served: Served) -> str:
    """A unit that the model has."""

    async def first() -> Unit:
        async with Client(served.address) as client:
            stream = client.inspect("a", model="gru")
            async for _ in stream:
                return stream.units[7]
            raise AssertionError

    unit = asyncio.run(first())
    return f"{unit.state}:{unit.index}"


def watched(served: Served, name: str, text: str) -> list[tuple[str, float]]:
    """What a unit does at each character, unknown ones among them."""

    async def values() -> list[float]:
        state, _, index = name.rpartition(":")
        async with Client(served.address) as client:
            stream = client.inspect(text, model="gru", units={state: [int(index)]})
            return [step.values[0] async for step in stream]

    return list(zip(text, asyncio.run(values()), strict=True))


def test_names_that_are_not_utf_8_are_shown(served: Served, tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(file)).write_text("the quick")
    shown = f"{tmp_path}/caf\ufffd.txt"
    (one, _), options = scored(os.fsdecode(file), "--model", "gru", "--server", served.address), ["--model", "gru"]
    assert one["file"] == shown
    table = elman("score", os.fsdecode(file), *options, "--server", served.address)
    assert table.stdout.splitlines()[1].split()[0] == shown
    check_complaint(elman("score", os.fsdecode(file) + "x", *options), f"error: {shown}x: No such file")


def test_an_output_that_cannot_show_a_character_escapes_it(served: Served) -> None:
    found = elman(
        "inspect", "--text", "\u00e9a", "--model", "gru", "--unit", unit_name(served), "--server", served.address,
        PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert [line.split("\t")[0] for line in found.stdout.splitlines()] == [r"\xe9", "a"]


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


class Spans(HTMLParser):
    """The spans of a page that have a title: title, style and text."""

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


def test_a_unit_is_drawn(served: Served, tmp_path: Path) -> None:
    file, page = tmp_path / "code.py", tmp_path / "page.html"
    file.write_text(CODE, encoding="utf-8")
    name = unit_name(served)
    options = ["--model", "gru", "--unit", name, "--server", served.address]
    found = elman("inspect", file, *options, "--html", page)
    assert found.returncode == 0
    assert found.stderr == f"note: {UNKNOWN} tokens of the text are unknown to the model\n"
    expected = watched(served, name, CODE)
    assert found.stdout.splitlines() == [f"{escaped(text)}\t{value:.6g}" for text, value in expected]
    assert elman("inspect", "--text", CODE, *options).stdout == found.stdout
    assert elman("inspect", *options, stdin=CODE).stdout == found.stdout
    shown = page.read_text(encoding="utf-8")
    spans = Spans()
    spans.feed(shown)
    assert [title for title, _, _ in spans.found] == [f"{value:.6g}" for _, value in expected]
    scale = max(abs(value) for _, value in expected)
    for (_, style, text), (read, value) in zip(spans.found, expected, strict=True):
        assert style == "background:#{:02x}{:02x}{:02x}".format(*colour(value, scale))
        assert text.rstrip("\n").replace("↵", "\n")[: len(read)] == read
    assert spans.others == set()  # Nothing is fetched.
    assert f"<h1>{html.escape(name)}</h1>" in shown
    assert f"{-scale:.3g} (blue)" in shown
    assert f"{scale:.3g} (red)" in shown


def test_a_page_shows_markup_as_text() -> None:
    unit = Unit("<s>", 1)
    page = as_html(Reading("m&m", "d", (unit,), ["<b>&", "c\n"], []), unit, [0.5, -1.0])
    assert ">&lt;b&gt;&amp;</span>" in page
    assert ">c↵\n</span>" in page
    assert "<h1>&lt;s&gt;:1</h1>" in page
    assert "m&amp;m" in page


def test_on_a_terminal_a_unit_is_drawn_in_colours(served: Served) -> None:
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
    expected = watched(served, name, "abc")
    scale = max(abs(value) for _, value in expected)
    for text, value in expected:
        red, green, blue = colour(value, scale)
        assert re.search(rf"48;2;{red};{green};{blue}m{text}", shown)


def test_the_units_that_follow_features_best_are_listed(served: Served, tmp_path: Path) -> None:
    async def everything() -> tuple[tuple[Unit, ...], list[tuple[float, ...]]]:
        async with Client(served.address) as client:
            stream = client.inspect(CODE, model="gru")
            rows = [step.values async for step in stream]
        return stream.units, rows

    units, rows = asyncio.run(everything())
    found = elman("inspect", "--text", CODE, "--model", "gru", "--best", 2, "--server", served.address)
    assert found.returncode == 0, found.stderr
    head, _, drawn = found.stdout.partition("\n\n")
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
    assert drawn.splitlines() == [f"{escaped(text)}\t{value:.6g}" for text, value in watched(served, name, CODE)]


def test_units_made_to_follow_features_are_found() -> None:
    text = 'a "b1" c\n  d "e"\n'
    made = features(text)
    rows = [
        [0.5, -3 * quoted + 1, depth]
        for quoted, depth in zip(made["inside quotes"], made["indentation depth"], strict=True)
    ]
    # Steps without a character, like a begin token, have no features.
    reading = Reading("m", "d", tuple(Unit("s", index) for index in range(3)), ["", *text], [[9.0, 9.0, 9.0], *rows])
    best = {one.feature: one for one in best_units(reading, 1)}
    assert (best["inside quotes"].unit, best["inside quotes"].coefficient) == (1, pytest.approx(-1))
    assert (best["indentation depth"].unit, best["indentation depth"].coefficient) == (2, pytest.approx(1))
    assert "inside a comment" not in best
    pairs = Reading("m", "d", reading.units, [text[:2], *text[2:]], rows[1:])
    assert {one.feature: one for one in best_units(pairs, 1)}["inside quotes"].coefficient == pytest.approx(-1)


def test_what_does_not_change_correlates_with_nothing() -> None:
    values = np.array([[0.1, 1.0, np.nan], [0.1, 2.0, 1.0], [0.1, 4.0, 2.0]], dtype=np.float32)
    feature = np.array([0.0, 1.0, 3.0])
    assert correlations(values, feature) == pytest.approx([0, 1, 0])
    assert correlations(values, np.ones(3)) == pytest.approx([0, 0, 0])


def test_unknown_characters_are_drawn_as_given() -> None:
    assert as_given(["", "a", "�", "", "bc"], "a?bc") == ["", "a", "?", "", "bc"]
    assert as_given(["a", "�"], "a???") == ["a", "�"]  # Nobody knows how much the second step has read.
    assert as_given(["a", "x"], "ab") == ["a", "x"]


def test_colours() -> None:
    assert colour(0.0, 2.0) == colour(math.nan, 2.0) == (255, 255, 255)
    red, _, blue = colour(2.0, 2.0)
    assert red > blue
    red, _, blue = colour(-2.0, 2.0)
    assert blue > red
    assert colour(math.inf, 2.0) == colour(2.0, 2.0)


def test_mistakes_of_inspecting(served: Served, tmp_path: Path) -> None:
    server = ["--model", "gru", "--server", served.address]
    (tmp_path / "empty").touch()
    for wrong, complaint in (
        ([tmp_path / "nope"], f"error: {tmp_path / 'nope'}: No such file or directory"),
        ([tmp_path / "empty"], f"error: {tmp_path / 'empty'}: is empty: there is nothing to read"),
        (
            ["--text", "a", "--unit", "nope:1"],
            "units[0].state_name: got 'nope'; the states of 'gru' are: state.layer0.hidden",
        ),
        (["--text", "a", "--unit", unit_name(served).rpartition(":")[0] + ":99999"], "99999"),
    ):
        found = elman("inspect", *wrong, *server)
        check_complaint(found, complaint)
        assert len(found.stderr.splitlines()) == 1
    for wrong, complaint in (
        ([tmp_path / "empty", "--text", "a"], "exclude each other"),
        (["--text", "a", "--unit", "x:1", "--best", 2], "exclude each other"),
        (["--text", "a", "--unit", "seven"], "--unit: got 'seven'; it must be STATE:INDEX"),
        (["--text", "a"], "no feature or no unit changes"),
    ):
        found = elman("inspect", *wrong, *server)
        check_complaint(found, complaint)
        assert found.returncode == 2


def test_inspecting_without_numpy_names_the_extra() -> None:
    code = "sys.argv = ['elman', 'inspect', '--text', 'a']; from elman.cli import main; main()"
    found = run_without(SERVER_PARTS, code)
    assert found.returncode == 1
    assert "numpy is not installed, and this command needs it: pip install 'elman[server]'" in found.stderr
    assert "Traceback" not in found.stderr
