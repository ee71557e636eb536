"""Simple features of each character of a text, to correlate with the units of a state.

A feature of a character depends only on the text up to it, which is all that the state after it can know. The features
are those that units were found to track by Karpathy, Johnson and Fei-Fei, "Visualizing and Understanding Recurrent
Networks" (2015, arXiv 1506.02078), and a few of the same kind.
"""

from __future__ import annotations

_QUOTES = "\"'"
_TAB_WIDTH = 4


def features(text: str) -> dict[str, list[float]]:
    """Compute the features of each character.

    Args:
        text: any text.

    Returns:
        By the name of a feature, one number for each character:
            inside quotes: 1 from an opening quote to before its closing one, else 0. Double quotes open, and single
                ones unless a letter or digit precedes them; the same quote closes unless a backslash precedes it, and
                so does the end of the line.
            inside a comment: 1 from "#", or from the second character of "//", to before the end of the line, else 0. A
                comment starts only outside quotes, at the beginning of a line or after white space.
            indentation depth: the number of leading spaces of the line so far; a tab counts as four.
            position in line: the number of characters of the line so far; 0 for a newline.
            after a space: 1 if the preceding character is a space, else 0.
            digit: 1 for 0 to 9, else 0.
    """
    quoted, commented = _quotes_and_comments(text)
    return {
        "inside quotes": quoted,
        "inside a comment": commented,
        "indentation depth": _indentation(text),
        "position in line": _positions(text),
        "after a space": [float(text[index - 1 : index] == " ") for index in range(len(text))],
        "digit": [float(character in "0123456789") for character in text],
    }


def _quotes_and_comments(text: str) -> tuple[list[float], list[float]]:
    """Both features together, because each hides the beginning of the other."""
    quoted: list[float] = []
    commented: list[float] = []
    quote, comment, escaped = "", False, False
    for index, character in enumerate(text):
        if character == "\n":
            quote, comment, escaped = "", False, False
        elif quote:
            if character == quote and not escaped:
                quote = ""
            escaped = character == "\\" and not escaped
        elif not comment:
            comment = _starts_comment(text, index)
            if character in _QUOTES and not (character == "'" and text[max(0, index - 1) : index].isalnum()):
                quote, escaped = character, False
        quoted.append(float(bool(quote)))
        commented.append(float(comment))
    return quoted, commented


def _starts_comment(text: str, index: int) -> bool:
    """Whether the character at an index outside quotes and comments completes the sign of a comment."""
    sign = "#" if text[index] == "#" else "//"
    start = index + 1 - len(sign)
    if start < 0 or text[start : index + 1] != sign:
        return False
    return start == 0 or text[start - 1].isspace()


def _indentation(text: str) -> list[float]:
    depths: list[float] = []
    depth, after_indent = 0, False
    for character in text:
        if character == "\n":
            depth, after_indent = 0, False
        elif not after_indent and character in " \t":
            depth += _TAB_WIDTH if character == "\t" else 1
        else:
            after_indent = True
        depths.append(float(depth))
    return depths


def _positions(text: str) -> list[float]:
    positions: list[float] = []
    position = 0
    for character in text:
        position = 0 if character == "\n" else position + 1
        positions.append(float(position))
    return positions
