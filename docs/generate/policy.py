"""The reference of the thresholds of scheduling and of the engine."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields

from elman_server.engine import EnginePolicy
from elman_server.scheduling import SchedulingPolicy

_HEAD = """\
# Scheduling policy

Every threshold of a server is a named field of one of two frozen dataclasses. They are not settings: the ones that an
operator can choose are [settings](settings.md), which set some of these fields. `python -m benchmarks ablation`
measures what each heuristic is worth.
"""
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)


def policy_page() -> str:
    """The page in Markdown: a table for each of the two classes."""
    lines = [_HEAD]
    for policy in (SchedulingPolicy, EnginePolicy):
        lines += [f"## {policy.__name__}", "", "| field | default | meaning |", "|---|---|---|", *_rows(policy), ""]
    return "\n".join(lines)


def _rows(policy: type[SchedulingPolicy] | type[EnginePolicy]) -> Iterator[str]:
    meanings = dict(_ATTRIBUTE.findall(inspect.getdoc(policy) or ""))
    for field in fields(policy):
        default = "" if field.default is MISSING else f"`{field.default!r}`"
        yield f"| `{field.name}` | {default} | {' '.join(meanings[field.name].split())} |"
