"""The commands in the documentation exist, with the options that they are shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import pytest
import typer
from benchmarks.__main__ import app as benchmarks

from elman.cli.application import app as elman
from tests.support.documents import pages
from tests.support.paths import ROOT

_INNER = re.compile(r"\$\(([^()]*)\)")


def simple_commands(line: str) -> set[str]:
    """The commands of a line of shell, without loops, pipes and substitutions."""
    inner = _INNER.findall(line)
    outer = re.split(r"&&|\||;", _INNER.sub("VALUE", line))
    return {re.sub(r"^(do |\w+=VALUE$)", "", part.strip()) for part in [*inner, *outer]}


LINES = {line for page in pages() for line in [*page.commands, *page.quoted_commands]}
COMMANDS = sorted({command for line in LINES for command in simple_commands(line)})
# Each way to call a program, and its commands.
PROGRAMS = {"elman ": elman, "python -m benchmarks ": benchmarks}


def words_of(part: str, program: str) -> list[str]:
    """The arguments of a command, without redirections."""
    words = shlex.split(re.sub(r" [<>] .*", "", part.removeprefix(program)))
    return [word for word in words if word != "..."]


def parse(command: Any, words: Sequence[str]) -> None:
    """Parse arguments, without converting their values."""
    name, *rest = words
    found = command.commands[name]
    if hasattr(found, "commands"):
        parse(found, rest)
        return
    with typer.Context(found, info_name=name) as context:
        found.make_parser(context).parse_args(list(rest))


def shown(program: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(program)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_commands_have_the_options_shown(program: str) -> None:
    command = typer.main.get_command(PROGRAMS[program])
    parts = shown(program)
    assert len(parts) > 5
    for part in parts:
        try:
            parse(command, words_of(part, program))
        except Exception as error:
            raise AssertionError(f"{part}: {error}") from error


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {part.split()[1] for part in shown("make ")}
    assert {"run", "test", "docs", "bench", "chaos"} <= targets
    assert not [target for target in sorted(targets) if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
