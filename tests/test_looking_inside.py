"""`elman score` and `elman inspect`, as a person types them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle import Bundle
from elman.command_line.scoring import piece_end
from tests.serving import serving
from tests.test_command_line import Served, check_complaint, elman
from tests.test_scores import scores_alone

TEXT = "the quick brown fox\njumps over the lazy dog\n" * 40


@pytest.fixture(scope="module")
def served(bundles: dict[str, Bundle]) -> Iterator[Served]:
    server = Served(bundles["gru"].path, bundles["tags"].path, "--provider", "cpu")
    yield server
    server.end()


@pytest.fixture(scope="module")
def narrow(bundles: dict[str, Bundle]) -> Iterator[Served]:
    """A server that takes 500 tokens at once."""
    server = Served(bundles["gru"].path, "--provider", "cpu", "--input-limit", 500)
    yield server
    server.end()


def scored(*arguments: object, stdin: str = "") -> list[dict[str, object]]:
    found = elman("score", "--json", *arguments, stdin=stdin)
    assert (found.returncode, found.stderr) == (0, "")
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_files_are_scored_one_by_one_and_together(bundles: dict[str, Bundle], served: Served, tmp_path: Path) -> None:
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
    bundles: dict[str, Bundle], narrow: Served, tmp_path: Path
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
    assert one["log_likelihood"] == pytest.approx(sum(map(sum, pieces)), rel=1e-5)


async def test_pieces_of_a_large_file_fit_into_messages(bundles: dict[str, Bundle]) -> None:
    from elman.command_line.scoring import FileScore, scored_pieces
    from server.rpc.validation import Limits

    # Beyond the transport's limit too, four times the message's, where the server gives no reason.
    async with serving(bundles["gru"], limits=Limits(message_bytes=3000)) as running:
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
        ([short], f"error: {short}: candidates[0]: has one token with nothing before it"),
        ([good, "--model", "tags"], "'tags' does not generate text"),
    ):
        found = elman("score", *wrong, *server)
        check_complaint(found, complaint)
        assert len(found.stderr.splitlines()) == 1
    check_complaint(elman("score", good, "--context", "a" * 501, "--server", narrow.address), "context.text: has 501")
