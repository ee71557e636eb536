r"""Regular expressions in the syntax of the Rust crate `regex` (https://docs.rs/regex/latest/regex/#syntax).

The output matches the expression from beginning to end. Look-around and back-references are not supported; ^ and $ are
allowed at the ends only. What means something else in Python, without an error: [a&&b], [a--b] and [a~~b] are set
operations, a++ is (a+)+, and \w includes the marks that Unicode counts as parts of words.
"""

from __future__ import annotations

import re

from elman_server.decoding.constraints.syntaxes.messages import assertion_name, reason_of, regex_problem
from elman_server.decoding.constraints.syntaxes.syntax import Syntax, to_grammar
from elman_server.errors import ConstraintError

_SLASH = re.compile(r"\\.|/", re.DOTALL)
_STOP = re.compile(r"\\.|(?P<group>\(\?P?<stop>)", re.DOTALL)
_ATOM = re.compile(r"\\.|\[(?:\\.|[^]\\])+\]?|.", re.DOTALL)  # an unterminated class extends to the end
_DRAWN_LINE = re.compile(r"(?P<number>\s*\d+: |    )(?P<line>.*)")
_ASSERTIONS = {"Start": ("^", r"\A"), "End": ("$", r"\z"), "Word": (r"\b", r"\B")}


def _grammar(expression: str) -> str:
    check_groups(expression)
    return to_grammar(f"start: /{_escaped(expression) or '()'}/")


def check_groups(expression: str, start: int = 0) -> None:
    """Refuse a group named "stop", from which llguidance takes what has to follow a match without being part of it.

    Args:
        expression: a regular expression.
        start: where it starts in what the caller has written.

    Raises:
        ConstraintError: there is such a group.
    """
    for found in _STOP.finditer(expression):
        if found["group"]:
            raise ConstraintError("a group must not be named 'stop'", start + found.start())


def _escaped(expression: str) -> str:
    """Return an expression as it is written between the slashes of a Lark grammar."""
    complete = re.match(r"(?:[^\\]|\\.)*", expression)
    assert complete is not None
    if complete.end() < len(expression):
        raise ConstraintError("a backslash that escapes nothing; for a line break write \\n", complete.end())
    return _SLASH.sub(lambda found: "\\/" if found[0] == "/" else found[0], expression)


def _error(expression: str, message: str) -> ConstraintError:
    return ConstraintError(reason_of(message), _position(expression, message))


def _position(expression: str, message: str) -> int | None:
    if problem := regex_problem(message):
        position = _drawn_position(problem[0])
        for found in _SLASH.finditer(expression):
            if found[0] == "/" and position is not None and found.start() < position:
                position -= 1  # for the backslash that `_escaped` has inserted before it
        return position
    if name := assertion_name(message):
        return _assertion_position(expression, name)
    return None


def _drawn_position(drawing: str) -> int | None:
    """Return the character that the carets of a drawing mark: under one indented line, or under one of several numbered
    lines."""
    start = following = indent = 0
    position = None
    for line in drawing.split("\n"):
        if following and line.strip() and not line.strip(" ^"):
            # Of two marked places the later one is meant: the earlier one is what it conflicts with.
            position = start + len(line.rstrip(" ").rstrip("^")) - indent
        elif drawn := _DRAWN_LINE.match(line):
            start, indent = following, len(drawn["number"])
            following += len(drawn["line"]) + 1
    return position


def _assertion_position(expression: str, name: str) -> int | None:
    """Return the position of a misplaced assertion; None unless there is exactly one."""
    found = [atom for atom in _ATOM.finditer(expression) if atom[0] in _ASSERTIONS[name]]
    allowed = {"Start": 0, "End": len(expression)}.get(name)
    misplaced = [atom.start() for atom in found if allowed not in atom.span()]
    return misplaced[0] if len(misplaced) == 1 else None


SYNTAX = Syntax("regular expression", _grammar, _error)
