"""Why no token can be chosen for a row: options of the caller that exclude each other, or the model."""

from __future__ import annotations

from collections.abc import Sequence

from elman_server.decoding.constraints import Matcher
from elman_server.errors import DomainError, InvalidFieldError, listed
from elman_server.scheduling.rows.endings import NOT_FINITE


def nothing_to_choose(
    matcher: Matcher | None, allowed: Sequence[int], forced: int | None, *, finite: bool
) -> DomainError:
    """Return the error of a row for which no token can be chosen.

    Args:
        matcher: the row's grammar, if any; no complete one.
        allowed: the tokens that it allows.
        forced: the token that has to be chosen, if any.
        finite: whether the model's output is finite.
    """
    if not finite:
        return NOT_FINITE
    if matcher is None:
        rule = "forbidden_token_ids and min_tokens exclude every token, or the scores overflow"
        return InvalidFieldError(
            "shaping", "options that leave no token to choose", rule, "Give smaller values or fewer"
        )
    place = f"after {matcher.token_count} tokens"
    if matcher.error is not None:
        rule = f"{place} {matcher.error}"
        return InvalidFieldError(
            "constraint", "an expression that cannot be continued", rule, "Simplify the expression"
        )
    if forced is not None:
        rule = f"the constraint does not allow it {place}"
        return InvalidFieldError("shaping.forced_token_ids", f"token {forced}", rule)
    rule = f"{place} it allows the tokens {listed(map(str, allowed))} only, which shaping.forbidden_token_ids excludes"
    return InvalidFieldError("constraint", "an expression that cannot be continued", rule, "Allow one of the tokens")


def forced_beyond(matcher: Matcher, forced: int) -> DomainError:
    """Return the error of a row whose text is complete while a token is still forced.

    Args:
        matcher: the row's grammar.
        forced: the token.
    """
    rule = f"after {matcher.token_count} tokens the constraint is satisfied and allows nothing more"
    remedy = "Leave out the tokens from there on"
    return InvalidFieldError("shaping.forced_token_ids", f"token {forced}", rule, remedy)
