"""The reference of all settings, for the documentation."""

from __future__ import annotations

from itertools import groupby

from pydantic.fields import FieldInfo

from elman_server.settings.model import Settings
from elman_server.settings.presentation import default_of, metavar_of, option_of, panel_of, variable_of

_BOUNDS = (("ge", "At least"), ("gt", "More than"), ("le", "At most"), ("lt", "Less than"))
_HEAD = ("| option | variable | default | meaning |", "| --- | --- | --- | --- |")
_SECTIONS = {"Arguments": "Bundles", "Options": "Configuration file"}


def settings_table() -> str:
    """All settings in Markdown: a section for each panel of the help, a row for each setting."""
    lines = []
    for panel, fields in groupby(Settings.model_fields.items(), lambda item: panel_of(item[1])):
        lines += [f"## {_SECTIONS.get(panel, panel)}", "", *_HEAD]
        lines += [_row(name, field) for name, field in fields]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, field: FieldInfo) -> str:
    option, metavar, default = option_of(name), metavar_of(field), default_of(field)
    if panel_of(field) == "Arguments":
        shown = f"`{metavar}...`"
    elif metavar:
        shown = f"`{option} {metavar}`"
    else:
        shown = f"`{option}`, `--no-{option.removeprefix('--')}`"
    meaning = " ".join([str(field.description), *_bounds(field)])
    return f"| {_cell(shown)} | `{variable_of(name)}` | {f'`{default}`' if default else ''} | {_cell(meaning)} |"


def _bounds(field: FieldInfo) -> list[str]:
    """The bounds of a number, a sentence for each."""
    found = [(words, getattr(rule, sign, None)) for rule in field.metadata for sign, words in _BOUNDS]
    return [f"{words} {bound}." for words, bound in found if bound is not None]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
