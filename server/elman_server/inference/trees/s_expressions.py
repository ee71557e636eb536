"""Trees written as s-expressions: "(3 (2 Effective) (2 film))". Every bracket begins with a label, which is ignored,
and has a word, or brackets, or a word before its brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from elman_bundle import EncodingError
from elman_server.errors import InvalidFieldError, shortened
from elman_server.inference.trees.brackets import (
    CLOSING_BITS,
    CLOSING_MASK,
    PIECE,
    WHITE_SPACE,
    Bracket,
    BracketError,
)
from elman_server.inference.trees.nodes import MAX_DEPTH, MAX_NODES, Nodes, too_deep, too_many_nodes

EXAMPLE = "an s_expression, such as '(2 (2 It) (2 works))', or nodes"
_LEVELS = MAX_DEPTH + 1  # of a tree, and one to separate it from the next


def parse_s_expressions(texts: Sequence[str], field: str, read_bracket: Callable[[str], Bracket]) -> Nodes:
    """Parse s-expressions together, which takes numpy little longer than parsing one. Each bracket is looked up; the
    texts are read piece by piece only to describe a mistake.

    Args:
        texts: the expressions, one or more.
        field: the field that holds each.
        read_bracket: reads what follows an opening bracket; see `brackets.read_bracket`.

    Raises:
        InvalidFieldError: one of them is no tree.
    """
    sizes = [text.count("(") for text in texts]
    if max(sizes) > MAX_NODES:
        raise too_many_nodes(field, max(sizes))
    before: list[str] = []
    parts: list[str] = []
    for text in texts:
        first, *others = text.split("(")
        before.append(first)
        parts += others
    count = len(parts)
    try:
        brackets = np.fromiter(map(read_bracket, parts), np.int64, count)
    except BracketError:
        raise _first_mistake(texts, field) from None
    except EncodingError:
        raise _unknown_word(texts, field, read_bracket) from None
    open_before = np.zeros(count + 1, np.int64)  # open brackets before each bracket, and at the end
    (1 - (brackets & CLOSING_MASK)).cumsum(out=open_before[1:])
    depths = open_before[:-1]
    ends = np.array(sizes).cumsum()
    # All brackets are closed at the end of each tree and nowhere else.
    balanced = min(sizes) and not open_before[ends].any() and np.count_nonzero(depths) == count - len(texts)
    if not balanced or depths.min() < 0 or depths.max() >= MAX_DEPTH or "".join(before).strip(WHITE_SPACE):
        raise _first_mistake(texts, field)
    # The children of a node are the nodes one level deeper that follow it, up to the next node of its own level.
    levels = depths + np.repeat(np.arange(0, len(texts) * _LEVELS, _LEVELS), sizes)
    order = levels.argsort(kind="stable")
    places = levels[order] * count + order  # ascending
    children = np.full(count + 1, count)  # where those of each node begin, and the end
    children[:-1] = places.searchsorted(places + count)
    child_counts = children[1:] - children[:-1]
    child_counts[ends - 1] = 0  # The last node of a tree is followed by the root of the next.
    return Nodes(
        sizes,
        brackets[order] >> CLOSING_BITS,
        child_counts,
        order,
        depths[order],
        lambda node: (field, _described(texts, node)),
    )


def _unknown_word(texts: Sequence[str], field: str, read_bracket: Callable[[str], Bracket]) -> InvalidFieldError:
    """The error of the first word that is no token."""
    for text in texts:
        for node, part in enumerate(text.split("(")[1:]):
            try:
                read_bracket(part)
            except EncodingError as error:
                word = PIECE.findall(part)[1]
                got = f"the word {shortened(word)!r} in {_described([text], node)}"
                return InvalidFieldError(field, got, str(error))
    raise AssertionError(f"all words are known: {shortened(texts[0])!r}")


def _described(texts: Sequence[str], node: int) -> str:
    """Describe the bracket of a node, counted through all texts."""
    opening = [place for text in texts for place, character in enumerate(text) if character == "("]
    return f"the bracket at character {opening[node]}"


def _first_mistake(texts: Sequence[str], field: str) -> InvalidFieldError:
    """The error of the first text that is no s-expression."""
    return next(mistake for text in texts if (mistake := _mistake(text, field)))


def _mistake(text: str, field: str) -> InvalidFieldError | None:
    """The first mistake of a text, if there is one."""
    path: list[int] = []  # the places of the brackets that are open
    started, previous = False, ")"  # `previous`: the piece before, a bracket, or "label" or "word"
    for found in PIECE.finditer(text):
        piece = found.group()
        if not path and (started or piece != "("):
            return _misplaced(found, field, "the tree has ended before it" if started else "a tree begins with '('")
        started = True
        if previous == "(":
            if piece in "()":
                rule = "a label is needed here: '(label word)' or '(label child child)'"
                return _misplaced(found, field, rule)
            previous = "label"
        elif piece == "(":
            path.append(found.start())
            previous = "("
            if len(path) > MAX_DEPTH:
                return too_deep(field, f"the bracket at character {found.start()}")
        elif piece == ")":
            path.pop()
            previous = ")"
        elif previous == "label":
            previous = "word"
        else:
            rule = "a bracket or ')' is needed here: a node has one word, before its children"
            return _misplaced(found, field, rule)
    if path:
        return InvalidFieldError(field, "too few ')'", f"the bracket at character {path[-1]} is not closed")
    return None if started else InvalidFieldError(field, "an empty text", "a tree is needed", f"Give {EXAMPLE}")


def _misplaced(piece: re.Match[str], field: str, rule: str) -> InvalidFieldError:
    return InvalidFieldError(field, f"{shortened(piece.group())!r} at character {piece.start()}", rule)
