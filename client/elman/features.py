"""What can be said of each character of a text, to be set beside what a unit does there.

Every feature of a character is decided by the text up to it and by the character itself, which is all that the state
behind it can know. They are those that units were found to track by Karpathy, Johnson and Fei-Fei, "Visualizing and
Understanding Recurrent Networks" (2015, arXiv 1506.02078), and a few as simple.
"""

from __future__ import annotations

_QUOTES = "\"'"
_WIDTH_OF_TAB = 4


def features(text: str) -> dict[str, list[float]]:
    """The features of each character of a text.

    Args:
        text: any text.

    Returns:
        By the feature's name as many numbers as the text has characters:
            inside quotes: 1 from an opening quote to before its closing one, else 0. Double quotes, and single ones
                with neither a letter nor a digit before them, open; the same quote closes, if no backslash goes before
                it, and so does the end of the line.
            inside a comment: 1 from "#", or from the second character of "//", to before the end of the line, else 0.
                Each begins one outside quotes only, at the beginning of a line or behind white space.
            indentation depth: how many spaces the line begins with, so far; a tab counts as four.
            position in line: how many characters of the line there are up to this one; 0 for a newline.
            after a space: 1 where the character before it is a space, else 0.
            digit: 1 for 0 to 9, else 0.
    """
    quoted, commented = _quotes_and_comments(text)
    return {
        "inside quotes": quoted,
        "inside a comment": commented,
        "indentation depth": _indentation(text),
        "position in line": _positions(text),
        "after a space": [float(text[place - 1 : place] == " ") for place in range(len(text))],
        "digit": [float(character in "0123456789") for character in text],
    }


def _quotes_and_comments(text: str) -> tuple[list[float], list[float]]:
    """Both at once, since each hides the beginning of the other."""
    quoted: list[float] = []
    commented: list[float] = []
    quote, comment, escaped = "", False, False
    for place, character in enumerate(text):
        if character == "\n":
            quote, comment, escaped = "", False, False
        elif quote:
            if character == quote and not escaped:
                quote = ""
            escaped = character == "\\" and not escaped
        elif not comment:
            comment = _begins_comment(text, place)
            if character in _QUOTES and not (character == "'" and text[max(0, place - 1) : place].isalnum()):
                quote, escaped = character, False
        quoted.append(float(bool(quote)))
        commented.append(float(comment))
    return quoted, commented


def _begins_comment(text: str, place: int) -> bool:
    """Whether a comment has begun with the character at a place outside quotes and comments."""
    sign = "#" if text[place] == "#" else "//"
    start = place + 1 - len(sign)
    if start < 0 or text[start : place + 1] != sign:
        return False
    return start == 0 or text[start - 1].isspace()


def _indentation(text: str) -> list[float]:
    found: list[float] = []
    depth, begun = 0, False
    for character in text:
        if character == "\n":
            depth, begun = 0, False
        elif not begun and character in " \t":
            depth += _WIDTH_OF_TAB if character == "\t" else 1
        else:
            begun = True
        found.append(float(depth))
    return found


def _positions(text: str) -> list[float]:
    found: list[float] = []
    position = 0
    for character in text:
        position = 0 if character == "\n" else position + 1
        found.append(float(position))
    return found
