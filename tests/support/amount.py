"""How much is tested: `pytest` draws few examples of a property, `pytest --all` many."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_EVERYTHING = "everything"
# Tests share the cores with each other, so no example has a deadline.
for _name in ("quick", _EVERYTHING):
    settings.register_profile(_name, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def choose_amount(*, everything: bool) -> None:
    """Choose for all modules that are imported afterwards."""
    settings.load_profile(_EVERYTHING if everything else "quick")


def examples(quick: int, *, everything: int) -> int:
    """Return how many examples of a property to draw.

    Args:
        quick: with `pytest`.
        everything: with `pytest --all`.
    """
    return everything if settings.get_current_profile_name() == _EVERYTHING else quick
