"""Messages of llguidance, translated for the author of an expression."""

from __future__ import annotations

import re

from elman_server.errors import shortened

_MAX_REASON = 200  # characters
_PLACE = re.compile(r"(?:at )?(?P<line>\d+)\((?P<column>\d+)\): ")
_TOO_COMPLEX = re.compile(r"too (big|large|many|deeply)|fuel|determine|increase limits", re.IGNORECASE)
_TRANSLATIONS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("^failed to compile JSON schema: ", ""),
        (" at line [0-9]+ column [0-9]+$", ""),
        (r" \(at .*", ""),
        ("^NoExtensionBias$", "nothing can match it"),
        ("^lexer error$", "no token of Lark begins like this"),
        ("^recursion limit exceeded$", "nested too deeply"),
        ("Regex is empty: .*", "no string matches the patterns"),
        ("Unable to determine if regex is empty: .*", "too complex: whether any string matches the patterns"),
        (
            "^(fuel exhausted|lexer precomputation failed|initial lexer configuration).*",
            "too complex: too many alternatives",
        ),
        ("^oneOf constraints are not supported.*", "oneOf is supported only where no two alternatives can overlap"),
    )
]

_ASSERTION = re.compile(r"lookarounds not supported yet; (?P<name>Start|End|Word)\w* in regex")
_ASSERTION_RULES = {
    "Start": r"^ and \A are allowed at the beginning only",
    "End": r"$ and \z are allowed at the end only",
    "Word": r"\b and \B are not supported",
}


def place_of(message: str) -> tuple[int, int] | None:
    """Return the line and the column of the grammar that a message begins with, both counted from 1, the column in
    bytes; None if it begins with none."""
    place = _PLACE.match(message)
    return (int(place["line"]), int(place["column"])) if place else None


def reason_of(message: str) -> str:
    """Return what a message says is wrong, without the parts that refer to the grammar instead of the expression."""
    if place := _PLACE.match(message):
        message = message[place.end() :]
    if found := regex_problem(message):
        return found[1]
    if name := assertion_name(message):
        return _ASSERTION_RULES[name]
    reason = message.partition("\n")[0]
    for pattern, replacement in _TRANSLATIONS:
        reason = pattern.sub(replacement, reason)
    if _TOO_COMPLEX.search(reason) and not reason.startswith("too complex"):
        reason = f"too complex: {reason}"
    return shortened(reason, longest=_MAX_REASON)


def regex_problem(message: str) -> tuple[str, str] | None:
    """Return the drawing of a regular expression in a message, and what is wrong with it; None if there is none."""
    drawing, found, rest = message.partition("regex parse error:\n")[2].partition("\nerror: ")
    return (drawing, rest.partition("\n")[0]) if found else None


def assertion_name(message: str) -> str | None:
    """Return which assertion a message says is misplaced: "Start", "End" or "Word"; None if it says no such thing."""
    found = _ASSERTION.search(message)
    return found["name"] if found else None
