"""The class of every character of a Python source."""

from __future__ import annotations

import io
import keyword
import token
import tokenize

_CLASS_OF_TOKEN = {token.NUMBER: "number", token.STRING: "string", tokenize.COMMENT: "comment", token.OP: "operator"}
# From Python 3.12 on an f-string is several tokens, and from 3.14 on a t-string.
_STRING_STARTS, _STRING_ENDS = (
    {getattr(token, f"{kind}STRING_{part}") for kind in "FT" if hasattr(token, f"{kind}STRING_{part}")}
    for part in ("START", "END")
)
_SPACE = "space"


def token_classes(source: str) -> list[str]:
    """The class of each character: keyword, name, number, string, comment, operator or space.

    Raises:
        tokenize.TokenError, SyntaxError: the source cannot be cut into tokens.
    """
    starts = [0]
    for line in io.StringIO(source):  # Cut as readline cuts: str.splitlines knows more line ends than \n.
        starts.append(starts[-1] + len(line))
    classes = [_SPACE] * len(source)
    string_starts: list[int] = []
    for found in tokenize.generate_tokens(io.StringIO(source).readline):
        start = starts[found.start[0] - 1] + found.start[1]
        end = starts[found.end[0] - 1] + found.end[1]
        if found.type in _STRING_STARTS:
            string_starts.append(start)
        elif found.type in _STRING_ENDS:
            # Everything inside that is not a token of an expression is string.
            first = string_starts.pop()
            classes[first:end] = ["string" if name == _SPACE else name for name in classes[first:end]]
        if found.type == token.NAME:
            name = "keyword" if keyword.iskeyword(found.string) else "name"
        elif found.type in _CLASS_OF_TOKEN:
            name = _CLASS_OF_TOKEN[found.type]
        else:
            continue
        classes[start:end] = [name] * (end - start)
    return classes
