"""`elman translate`, `elman ask`, and `elman generate` with a source, run as commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from elman import Client
from elman_bundle import Bundle
from tests.support.command_line import Served, check_failure, elman
from tests.support.encoder_models import translator_bundle

WORDS = ["elman", "a quick brown fox", "z"]


@pytest.fixture(scope="module")
def answering(bundles: Mapping[str, Bundle]) -> Iterator[Served]:
    server = Served(translator_bundle().path, bundles["classes"].path, "--provider", "cpu", "--chunk-ms", "0.5")
    yield server
    assert server.end() == 0


async def searched(served: Served, word: str, width: int) -> str:
    async with Client(served.address) as client:
        return (await client.search(source=word, width=width, max_tokens=20))[0].text


async def test_translate_keeps_the_order_of_lines(answering: Served) -> None:
    at = ("--server", answering.address, "--max-tokens", 20)
    expected = [await searched(answering, word, 5) for word in WORDS]
    assert len(set(expected)) == 3
    assert elman("translate", *WORDS, *at).stdout.splitlines() == expected
    together = elman("translate", *at, stdin="\n\n".join(WORDS * 30) + "\n").stdout
    assert together == "\n\n".join(expected * 30) + "\n"  # a blank line stays blank
    greedy = elman("translate", "--beams", 1, *WORDS, *at).stdout.splitlines()
    assert greedy == [
        elman("generate", "--source", word, "--temperature", 0, *at).stdout for word in WORDS
    ]  # Without a terminal, no newline is added.
    said = [json.loads(line) for line in elman("translate", "--json", *WORDS, *at).stdout.splitlines()]
    assert [one["source"] for one in said] == WORDS
    assert [one["text"] for one in said] == expected
    assert all(one["score"] < 0 for one in said)


async def test_ask_generates_or_chooses_an_answer(answering: Served) -> None:
    at = ("--server", answering.address)
    written = elman("ask", "a fox", "what", "--max-tokens", 20, *at)
    assert written.stdout == await searched(answering, "a fox what", 5) + "\n"
    async with Client(answering.address) as client:
        result = await client.choose(["S1", "S2 S3", "S4"], source="a fox what")
    chosen = elman("ask", "a fox", "what", "--choice", "S1", "--choice", "S2 S3", "--choice", "S4", *at)
    rows = [line.rsplit(maxsplit=2) for line in chosen.stdout.splitlines()[1:]]
    assert sorted(float(row[1]) for row in rows)[::-1] == [float(row[1]) for row in rows]
    assert rows[0][0].strip() == ["S1", "S2 S3", "S4"][result.index]
    said = json.loads(elman("ask", "a fox", "what", "--choice", "S1", "--choice", "S4", "--json", *at).stdout)
    assert (
        said["text"]
        == said["choices"][0 if result.scores[0].log_likelihood > result.scores[2].log_likelihood else 1]["text"]
    )
    assert sum(one["probability"] for one in said["choices"]) == pytest.approx(1)


def test_errors_are_reported(answering: Served) -> None:
    at = ("--server", answering.address)
    check_failure(elman("ask", "a", "b", "--choice", "S1", *at), "--choice: got one; two or more are needed")
    check_failure(elman("generate", *at), "source: got none; 'translator' starts from a source. Give text or tokens")
    check_failure(elman("translate", "x" * 65, *at), f"{'x' * 60}...': source.text: got 65 positions; 'translator'")
    result = elman("ask", "Äa", "b", "--choice", "S1", "--choice", "nope", *at)
    assert "1 tokens of the passage and question are unknown" in result.stderr
    assert "1 tokens of the choices are unknown" in result.stderr
    actual = elman("translate", "a", "--model", "classes", *at)
    check_failure(actual, "model: got 'classes'; it has labels and does not generate text")
    noted = elman("translate", "Äa", *at)
    assert noted.returncode == 0
    assert "1 tokens of the source are unknown to the model" in noted.stderr
    listed = elman("models", *at).stdout
    assert "generate from a source" in listed
