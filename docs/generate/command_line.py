"""The reference of the command line, from the help texts of the application."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from elman.cli.application import app

_HEAD = """\
# Command line

`elman COMMAND --help` prints the same. Commands that call a server take its address from `--server` or from the
environment variable `ELMAN_SERVER`. A command that fails prints one line on standard error and exits with a status
other than 0.
"""
_DEFAULT_PANELS = {True: "Arguments", False: "Options"}


def command_line_page() -> str:
    """The page in Markdown: a section for each command, a table for each panel of its help."""
    lines = [_HEAD]
    for names, command in _commands("elman", typer.main.get_command(app)):
        lines += _section(names, command)
    return "\n".join(lines) + "\n"


def _commands(names: str, command: Any) -> Iterator[tuple[str, Any]]:
    """All commands below one, with their full names."""
    for name, found in command.commands.items():
        if hasattr(found, "commands"):
            yield from _commands(f"{names} {name}", found)
        else:
            yield f"{names} {name}", found


def _section(name: str, command: Any) -> list[str]:
    context = typer.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"## {name}", "", "```text", usage, "```", "", _paragraphs(command.help), ""]
    for panel, parameters in _panels(command.params).items():
        if len(_panels(command.params)) > 1 and panel != "Arguments":
            lines += [f"**{panel}**", ""]
        lines += ["| option | meaning |", "|---|---|"]
        lines += [_row(*parameter.get_help_record(context)) for parameter in parameters]
        lines.append("")
    # Some commands write it when their options are generated, so it is read last.
    return [*lines, *_epilog(command.epilog or "")]


def _epilog(text: str) -> Iterator[str]:
    """What the help has below the options: headings, and lists of `name: text` under them."""
    for line in text.replace(r"\[", "[").splitlines():
        name, _, rest = line.strip().partition(": ")
        yield f"- {name}: {rest}" if line.startswith(" ") else f"\n**{line}**\n" if line else ""
    yield ""


def _panels(parameters: list[Any]) -> dict[str, list[Any]]:
    """The parameters by the heading that they have in the help."""
    panels: dict[str, list[Any]] = {}
    for parameter in parameters:
        if not parameter.hidden and parameter.name != "help":
            is_argument = parameter.param_type_name == "argument"
            panel = parameter.rich_help_panel or _DEFAULT_PANELS[is_argument]
            panels.setdefault(panel, []).append(parameter)
    return panels


def _row(option: str, meaning: str) -> str:
    written = re.sub(r"  \[(.*)\]$", lambda found: f"<br>*{found[1]}*", meaning)
    return f"| `{_cell(option)}` | {_cell(written)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))
