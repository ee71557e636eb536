"""One failure belongs to one sequence: what failed together is tried one by one, and a defect ends only the sequence
that meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import structlog

from elman_server.errors import EngineError
from elman_server.scheduling.events import Failed, Receiver
from elman_server.scheduling.interface import INTERNAL, Deliver, Emission

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
        except Exception as error:
            failures[part] = engine_error(error)
    return results, failures


def engine_error(error: Exception) -> EngineError:
    """What an engine has raised, as the failure of a step. Anything but an EngineError is a defect, which is logged."""
    if isinstance(error, EngineError):
        return error
    _log.error("engine failed", exc_info=error)
    return EngineError(type(error).__name__)


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


def deliver_each(model: str, deliver: Deliver, emissions: Iterable[Emission]) -> list[Receiver]:
    """Deliver one by one what could not be delivered together.

    Args:
        model: the model's name, for the log.
        deliver: delivers events.
        emissions: the events, none of which has been delivered.

    Returns:
        The receivers that have lost an event. They get a failure in its place, and none of the events after it.
    """
    lost: dict[Receiver, None] = {}
    for receiver, event in emissions:
        if receiver not in lost:
            try:
                deliver([(receiver, event)])
            except Exception:
                log_defect(model)
                lost[receiver] = None
    try_each(model, lost, lambda receiver: deliver([(receiver, Failed(INTERNAL))]))
    return list(lost)


def log_defect(model: str) -> None:
    """Log the exception that is being handled, which ends one sequence.

    Args:
        model: the model's name.
    """
    _log.exception("sequence failed", model=model)
