"""Trees written as s-expressions: "(3 (2 Effective) (2 film))". Every bracket begins with a label, which is not looked
at, and has a word, or brackets, or a word before its brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice

import numpy as np

from bundle import EncodingError
from server.decoding.errors import shortened
from server.rpc.errors import FieldError
from server.rpc.nodes import DEEPEST, MOST_NODES, NO_WORD, Nodes, too_deep, too_many

FIELD = "tree.s_expression"
EXAMPLE = "an s_expression, such as '(2 (2 It) (2 works))', or nodes"

# White space is what stands between pieces; a no-break space may be a part of a word.
_PIECE = re.compile(r"[()]|[^() \t\r\n]+")
_MOST_PIECES = 2 + DEEPEST  # behind a bracket, until the next one: a label, a word, and what is closed

Bracket = tuple[int, int]  # the token, or NO_WORD, and how many brackets are closed behind it


class BracketError(ValueError):
    """What follows an opening bracket is not what should."""


def read_bracket(text: str, token_of: Callable[[str], int]) -> Bracket:
    """What an opening bracket says.

    Args:
        text: what is behind it, until the next one.
        token_of: the token that a word is.

    Raises:
        BracketError: it is not a label, a word or none, and closing brackets.
        EncodingError: the word is no token.
    """
    # Of a text of megabytes no more is looked at than a bracket can have.
    pieces = [found.group() for found in islice(_PIECE.finditer(text), _MOST_PIECES + 1)]
    closing = pieces.count(")")
    said = len(pieces) - closing  # a label, and perhaps a word
    if said not in (1, 2) or ")" in pieces[:said] or len(pieces) > _MOST_PIECES:
        raise BracketError(text)
    return (token_of(pieces[1]) if said == 2 else NO_WORD), closing


def parsed(text: str, bracket: Callable[[str], Bracket]) -> Nodes:
    """The nodes of an s-expression. It is read bracket by bracket, most of which have come before and are remembered,
    as they say little more than a word; where there is a mistake it is read again, piece by piece, to tell the first.

    Args:
        text: the expression.
        bracket: `read_bracket` of a model.

    Raises:
        FieldError: it is no tree.
    """
    if text.count("(") > MOST_NODES:
        raise too_many(FIELD, text.count("("))
    before, *parts = text.split("(")
    tokens: list[int] = []
    depths: list[int] = []
    child_counts = [0] * len(parts)
    path = [0] * DEEPEST  # the latest node at each depth
    depth = 0
    for node, part in enumerate(parts):
        try:
            token, closing = bracket(part)
        except BracketError:
            raise _first_mistake(text) from None
        except EncodingError as error:
            word = _PIECE.findall(part)[1]
            raise FieldError(FIELD, f"{_place(text, node)}has the word {shortened(word)!r}: {error}") from error
        if not (0 < depth < DEEPEST or depth == node == 0):
            raise _first_mistake(text)
        tokens.append(token)
        depths.append(depth)
        child_counts[path[depth - 1]] += 1
        path[depth] = node
        depth += 1 - closing
    if not tokens or depth != 0 or before.strip(" \t\r\n"):
        raise _first_mistake(text)
    child_counts[0] -= 1  # The root is nobody's child.
    by_depth = np.array(depths)
    order = by_depth.argsort(kind="stable")
    return Nodes(
        np.array(tokens), np.array(child_counts), order, by_depth[order], lambda node: (FIELD, _place(text, node))
    )


def _place(text: str, node: int) -> str:
    """Which node it is, for a message."""
    opening = [place for place, character in enumerate(text) if character == "("]
    return f"the bracket at character {opening[node]} "


def _first_mistake(text: str) -> FieldError:
    """What keeps a text from being an s-expression."""
    path: list[int] = []  # where the brackets stand that are not closed
    begun, last = False, ")"  # `last`: what came last, a bracket, or "label" or "word"
    for found in _PIECE.finditer(text):
        piece = found.group()
        if not path and (begun or piece != "("):
            complaint = "follows the end of the tree" if begun else "stands where a tree begins with '('"
            return _misplaced(found, complaint)
        begun = True
        if last == "(":
            if piece in "()":
                return _misplaced(found, "stands where a label is needed: '(label word)' or '(label child child)'")
            last = "label"
        elif piece == "(":
            path.append(found.start())
            last = "("
            if len(path) > DEEPEST:
                return too_deep(FIELD, f"the bracket at character {found.start()}")
        elif piece == ")":
            path.pop()
            last = ")"
        elif last == "label":
            last = "word"
        else:
            complaint = "stands where a bracket or ')' is needed: a node has one word, before its children"
            return _misplaced(found, complaint)
    if path:
        return FieldError(FIELD, f"the bracket at character {path[-1]} is not closed")
    return FieldError(FIELD, f"is empty: give {EXAMPLE}")


def _misplaced(piece: re.Match[str], complaint: str) -> FieldError:
    return FieldError(FIELD, f"{shortened(piece.group())!r} at character {piece.start()} {complaint}")
