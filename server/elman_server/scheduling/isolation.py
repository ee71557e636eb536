"""One failure belongs to one sequence: what failed together is tried one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from elman_server.errors import EngineError

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


def run_each(
    parts: Iterable[_Part], run: Callable[[_Part], _Result]
) -> tuple[dict[_Part, _Result], dict[_Part, EngineError]]:
    """Run the parts of a run that failed, one by one.

    Args:
        parts: what to run.
        run: runs one of them.

    Returns:
        The results by part, and the failures by part.
    """
    results: dict[_Part, _Result] = {}
    failures: dict[_Part, EngineError] = {}
    for part in parts:
        try:
            results[part] = run(part)
        except EngineError as error:
            failures[part] = error
    return results, failures
