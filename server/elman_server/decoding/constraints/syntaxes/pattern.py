r"""Patterns of JSON schemas: regular expressions of ECMA-262, translated into the syntax of Rust's `regex` crate.

Both read most patterns alike; where they differ, the meaning is that of ECMA-262 with the flag u: \d, \w and \b know
ASCII only, `.` matches no line separator, `[[:alpha:]]` is a class and a bracket. A pattern that means something else
in Python, or nothing in ECMA-262, is refused, except for (?i), (?s) and (?P<name>...), which Python and Rust share.
"""

from __future__ import annotations

import re
from typing import NoReturn

_DIGITS, _WORD = "0-9", "0-9A-Za-z_"
_SPACE = r"\t\n\v\f\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D}
_NO_LINE_END = r"[^\n\r\x{2028}\x{2029}]"
_ANY = r"[\s\S]"

_GROUP = re.compile(
    r"\((?:\?(?:(?P<flags>[is]+)(?P<scope>[:)])|(?P<plain>:)|P?<(?P<name>[A-Za-z_]\w*)>|(?P<other>.?)))?"
)
_QUANTIFIER = re.compile(r"[*+?]|\{\d+(?:,\d*)?\}")
_WITHOUT_MINIMUM = re.compile(r"\{,\d*\}")
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|u\{0*([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})")
_LOW_SURROGATE = re.compile(r"\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})")
_PROPERTY = re.compile(r"([pP])\{([A-Za-z_]+(?:=[A-Za-z_]+)?)\}")


class PatternError(ValueError):
    """A pattern cannot be translated; the message says why."""


def to_rust(pattern: str) -> str:
    """Translate a pattern.

    Raises:
        PatternError: it is invalid or means something else elsewhere. What only Rust's parser finds is not noticed.
    """
    return _Translation(pattern).result()


class _Translation:
    """A pass over a pattern.

    Args:
        pattern: the pattern.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0
        self._dot = [_NO_LINE_END]  # what `.` stands for, for each open group

    def result(self) -> str:
        parts: list[str] = []
        while self._position < len(self._pattern):
            part, repeatable = self._term()
            parts.append(part)
            if quantifier := self._take(_QUANTIFIER):
                if not repeatable:
                    raise PatternError(f"nothing to repeat before {quantifier[0]!r}")
                parts.append(quantifier[0])
                if self._next() == "?":  # Lazy: it matches the same texts.
                    self._position += 1
                if self._take(_QUANTIFIER):
                    raise PatternError("two quantifiers in succession")
        return "".join(parts)

    def _term(self) -> tuple[str, bool]:
        """Translate what comes next; returns it, and whether it may be repeated."""
        character = self._next()
        if character == "(":
            return self._open(), False
        if character == "[":
            return self._class(), True
        if character == "\\":
            return self._escape(), True
        if _QUANTIFIER.match(self._pattern, self._position):
            return "", False
        if _WITHOUT_MINIMUM.match(self._pattern, self._position):
            raise PatternError("{,n} is a text in ECMA-262 and a repetition elsewhere; write {0,n}")
        self._position += 1
        if character == ")":
            if len(self._dot) > 1:
                self._dot.pop()
            return character, True
        if character in "^$|":
            return character, False
        return self._dot[-1] if character == "." else _literal(ord(character)), True

    def _open(self) -> str:
        found = self._take(_GROUP)
        assert found is not None
        dot = _ANY if found["flags"] and "s" in found["flags"] else self._dot[-1]
        if found["scope"] == ")":
            if found.start():
                raise PatternError("flags of the whole pattern belong at its beginning")
            self._dot[-1] = dot
        elif found["other"] is not None:
            raise PatternError("look-around and this kind of group are not supported")
        else:
            self._dot.append(dot)
        flags = "i" if found["flags"] and "i" in found["flags"] else ""
        return f"(?{flags}{found['scope'] or ':'}" if flags or found["scope"] != ")" else ""

    def _escape(self) -> str:
        """Translate an escape outside of a class."""
        escaped = self._escaped()
        if isinstance(escaped, int):
            return _literal(escaped)
        return f"[{escaped}]"

    def _class(self) -> str:
        self._position += 1
        negated = self._next() == "^"
        self._position += negated
        if self._next() == "]":
            raise PatternError("a class that begins with ']' means different things; write \\]")
        parts = ["[^" if negated else "["]
        while (character := self._next()) != "]":
            if not character:
                raise PatternError("an unclosed character class")
            first = self._member()
            ahead = self._pattern[self._position : self._position + 2]
            if isinstance(first, str) or not ahead.startswith("-") or ahead in ("-", "-]"):
                parts.append(first if isinstance(first, str) else _literal(first))
                continue
            self._position += 1
            last = self._member()
            if isinstance(last, str):  # Not a range: the hyphen stands for itself.
                parts += [_literal(first), r"\-", last]
            elif last < first:
                raise PatternError(f"a range of a class runs backwards: {chr(first)}-{chr(last)}")
            else:
                parts.append(f"{_literal(first)}-{_literal(last)}")
        self._position += 1
        return "".join([*parts, "]"])

    def _member(self) -> int | str:
        """Read a character of a class, or the classes that an escape stands for."""
        if self._next() != "\\":
            self._position += 1
            return ord(self._pattern[self._position - 1])
        if self._pattern.startswith("\\b", self._position):
            self._position += 2
            return 0x08
        return self._escaped()

    def _escaped(self) -> int | str:
        """Read an escape; returns the code of a character, or what stands in a class for several."""
        self._position += 1
        name = self._next()
        if code := self._take(_CODE):
            return self._code(code)
        if found := self._take(_PROPERTY):
            return f"\\{found[1]}{{{found[2]}}}"
        self._position += 1
        if name in _CONTROLS:
            return _CONTROLS[name]
        if name.lower() in _CLASSES and name:
            members = _CLASSES[name.lower()]
            return members if name.islower() else f"[^{members}]"
        if name == "0" and not self._next().isdigit():
            return 0
        if name == "c" and self._next().isascii() and self._next().isalpha():
            self._position += 1
            return ord(self._pattern[self._position - 1]) % 32
        if not name or name.isalnum() or name == "_":
            self._refuse_escape(name)
        return ord(name)

    def _refuse_escape(self, name: str) -> NoReturn:
        if not name:
            raise PatternError("a backslash that escapes nothing")
        if name in "bB":
            raise PatternError("\\b and \\B are not supported")
        if name.isdigit() or name == "k":
            raise PatternError("backreferences are not supported")
        raise PatternError(f"the escape \\{name} has no meaning in ECMA-262")

    def _code(self, found: re.Match[str]) -> int:
        code = int(found[1] or found[2] or found[3], 16)
        if 0xD800 <= code < 0xDC00 and found[3] and (low := self._take(_LOW_SURROGATE)):
            return 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            raise PatternError(f"\\{found[0]} is not a character")
        return code

    def _next(self) -> str:
        return self._pattern[self._position : self._position + 1]

    def _take(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        found = expression.match(self._pattern, self._position)
        if found is not None:
            self._position = found.end()
        return found


def _literal(code: int) -> str:
    character = chr(code)
    return character if character.isalnum() or code == 0x20 else f"\\x{{{code:x}}}"
