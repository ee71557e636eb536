"""One failure belongs to one sequence: what failed together is tried one by one, and a defect ends only the sequence
that meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import structlog

from elman_server.errors import EngineError

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")

_log = structlog.get_logger(__name__)


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


def try_each(
    model: str, parts: Iterable[_Part], run: Callable[[_Part], _Result]
) -> tuple[dict[_Part, _Result], list[_Part]]:
    """Do for each part what raised, or may raise, for one of them. A defect is logged.

    Args:
        model: the model's name, for the log.
        parts: what to do it for.
        run: does it for one part.

    Returns:
        The results by part, and the parts for which it raised.
    """
    results: dict[_Part, _Result] = {}
    failed: list[_Part] = []
    for part in parts:
        try:
            results[part] = run(part)
        except Exception:
            log_defect(model)
            failed.append(part)
    return results, failed


def log_defect(model: str) -> None:
    """Log the exception that is being handled, which ends one sequence.

    Args:
        model: the model's name.
    """
    _log.exception("sequence failed", model=model)
