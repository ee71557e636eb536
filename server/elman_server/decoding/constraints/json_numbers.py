"""The length of the numbers in a JSON text, which JSON itself does not limit: a model could write digits for ever."""

from __future__ import annotations

MAX_NUMBER_LENGTH = 24  # characters, as the longest number in double precision has: -2.2250738585072014e-308

_DIGITS = frozenset(b"-0123456789")
NUMBER_BYTES = _DIGITS | frozenset(b"+.eE")


class NumberLength:
    """Follows a JSON text.

    Attributes:
        value: the number of characters of the number that the text ends with; 0 where it ends with something else.
    """

    def __init__(self) -> None:
        self.value = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: bytes) -> None:
        """Add what follows."""
        for byte in text:
            if self._in_string:
                self._in_string = self._escaped or byte != ord('"')
                self._escaped = not self._escaped and byte == ord("\\")
            elif byte in (NUMBER_BYTES if self.value else _DIGITS):
                self.value += 1
            else:
                self.value = 0
                self._in_string = byte == ord('"')
