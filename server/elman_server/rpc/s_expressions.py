"""Trees written as s-expressions: "(3 (2 Effective) (2 film))". Every bracket begins with a label, which is not looked
at, and has a word, or brackets, or a word before its brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from elman_bundle import EncodingError
from elman_server.errors import InvalidFieldError, shortened
from elman_server.rpc.nodes import DEEPEST, MOST_NODES, NO_WORD, Nodes, too_deep, too_many

FIELD = "tree.s_expression"
EXAMPLE = "an s_expression, such as '(2 (2 It) (2 works))', or nodes"

# White space is what stands between pieces; a no-break space may be a part of a word.
_SPACE = " \t\r\n"
_PIECE = re.compile(rf"[()]|[^(){_SPACE}]+")
_MOST_PIECES = 2 + DEEPEST  # behind a bracket, until the next one: a label, a word, and what is closed

# What a bracket says, in one number: its token, or NO_WORD, times 2 ** 11, and how many brackets are closed behind it.
Bracket = int
_CLOSING_BITS = 11
_CLOSING = (1 << _CLOSING_BITS) - 1

_LEVELS = DEEPEST + 1  # of a tree, and one behind them
_MOST_KNOWN, _LONGEST_KNOWN = 65_536, 64  # brackets, and characters of one


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
    return ((token_of(pieces[1]) if said == 2 else NO_WORD) << _CLOSING_BITS) + closing


class Brackets(dict[str, Bracket]):
    """What brackets say, by what is behind them: most come again and again, and are looked up without a call of Python.

    Args:
        token_of: the token that a word is.
    """

    def __init__(self, token_of: Callable[[str], int]) -> None:
        super().__init__()
        self._token_of = token_of

    def __missing__(self, text: str) -> Bracket:
        said = read_bracket(text, self._token_of)
        if len(text) <= _LONGEST_KNOWN:
            if len(self) >= _MOST_KNOWN:
                self.clear()
            self[text] = said
        return said


def parsed(texts: Sequence[str], bracket: Callable[[str], Bracket]) -> Nodes:
    """The nodes of s-expressions. They are read bracket by bracket, most of which have come before and are remembered,
    as they say little more than a word, and all together, as numpy takes little longer for many than for one. Where
    there is a mistake they are read again, piece by piece, to tell the first.

    Args:
        texts: the expressions.
        bracket: `read_bracket` of a model.

    Raises:
        InvalidFieldError: one of them is no tree.
    """
    sizes = [text.count("(") for text in texts]
    if max(sizes) > MOST_NODES:
        raise too_many(FIELD, max(sizes))
    before: list[str] = []
    parts: list[str] = []
    for text in texts:
        first, *others = text.split("(")
        before.append(first)
        parts += others
    count = len(parts)
    try:
        said = np.fromiter(map(bracket, parts), np.int64, count)
    except BracketError:
        raise _first_mistake(texts) from None
    except EncodingError:
        raise _unknown_word(texts, bracket) from None
    open_before = np.zeros(count + 1, np.int64)  # each bracket, and the end
    (1 - (said & _CLOSING)).cumsum(out=open_before[1:])
    depths = open_before[:-1]
    ends = np.array(sizes).cumsum()
    # Whatever is open at all ends is 0, and nowhere else.
    whole = min(sizes) and not open_before[ends].any() and np.count_nonzero(depths) == count - len(texts)
    if not whole or depths.min() < 0 or depths.max() >= DEEPEST or "".join(before).strip(_SPACE):
        raise _first_mistake(texts)
    # The children of a node are those one deeper that come behind it, before the next one of its own depth.
    levels = depths + np.repeat(np.arange(0, len(texts) * _LEVELS, _LEVELS), sizes)
    order = levels.argsort(kind="stable")
    places = levels[order] * count + order  # ascending
    children = np.full(count + 1, count)  # where those of each begin, and the end
    children[:-1] = places.searchsorted(places + count)
    child_counts = children[1:] - children[:-1]
    child_counts[ends - 1] = 0  # What follows the last node of a tree is the next one's root.
    return Nodes(
        sizes,
        said[order] >> _CLOSING_BITS,
        child_counts,
        order,
        depths[order],
        lambda node: (FIELD, _place(texts, node)),
    )


def _unknown_word(texts: Sequence[str], bracket: Callable[[str], Bracket]) -> InvalidFieldError:
    """What is said of the first word that is no token."""
    for text in texts:
        for node, part in enumerate(text.split("(")[1:]):
            try:
                bracket(part)
            except EncodingError as error:
                word = _PIECE.findall(part)[1]
                return InvalidFieldError(FIELD, f"the word {shortened(word)!r} in {_place([text], node)}", str(error))
    raise AssertionError(f"all words are known: {shortened(texts[0])!r}")


def _place(texts: Sequence[str], node: int) -> str:
    """Which node of its tree it is, for a message."""
    opening = [place for text in texts for place, character in enumerate(text) if character == "("]
    return f"the bracket at character {opening[node]}"


def _first_mistake(texts: Sequence[str]) -> InvalidFieldError:
    """What keeps the first of the texts that is no s-expression from being one."""
    return next(mistake for mistake in map(_mistake, texts) if mistake)


def _mistake(text: str) -> InvalidFieldError | None:
    """What keeps a text from being an s-expression, if anything does."""
    path: list[int] = []  # where the brackets stand that are not closed
    begun, last = False, ")"  # `last`: what came last, a bracket, or "label" or "word"
    for found in _PIECE.finditer(text):
        piece = found.group()
        if not path and (begun or piece != "("):
            return _misplaced(found, "the tree has ended before it" if begun else "a tree begins with '('")
        begun = True
        if last == "(":
            if piece in "()":
                return _misplaced(found, "a label is needed here: '(label word)' or '(label child child)'")
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
            return _misplaced(found, "a bracket or ')' is needed here: a node has one word, before its children")
    if path:
        return InvalidFieldError(FIELD, "too few ')'", f"the bracket at character {path[-1]} is not closed")
    return None if begun else InvalidFieldError(FIELD, "an empty text", "a tree is needed", f"Give {EXAMPLE}")


def _misplaced(piece: re.Match[str], rule: str) -> InvalidFieldError:
    return InvalidFieldError(FIELD, f"{shortened(piece.group())!r} at character {piece.start()}", rule)
