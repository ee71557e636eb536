"""The number of examples per property test: few with `pytest`, many with `pytest --all`."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import HealthCheck, settings

T = TypeVar("T")
_EVERYTHING = "everything"
# Tests share the cores with each other, so no example has a deadline.
for _name in ("quick", _EVERYTHING):
    settings.register_profile(_name, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def choose_amount(*, everything: bool) -> None:
    """Choose the number of examples for all modules that are imported afterwards."""
    settings.load_profile(_EVERYTHING if everything else "quick")


def examples(quick: T, *, everything: T) -> T:
    """Return the number of examples of a property test, or the examples themselves.

    Args:
        quick: those with `pytest`.
        everything: those with `pytest --all`.
    """
    return everything if settings.get_current_profile_name() == _EVERYTHING else quick
