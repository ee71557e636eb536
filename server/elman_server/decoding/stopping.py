"""Stop sequences: texts that end a generation when they appear.

A stop sequence may be spread over tokens and messages; no part of it is emitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from elman_bundle.vocabulary import TextDecoder


class StopScanner:
    """Searches for stop sequences in a text that arrives in pieces.

    The first sequence to be complete counts; of those that are complete at the same character, the longest.

    Args:
        sequences: the stop sequences, none of them empty.

    Attributes:
        found: the sequence that has appeared; None before.
        end: number of characters of the latest piece up to the end of the sequence.
        held: what may be the beginning of a stop sequence and is held back.
    """

    def __init__(self, sequences: Iterable[str]) -> None:
        self._sequences = tuple(sequences)
        self._longest = max((len(sequence) for sequence in self._sequences), default=0)
        self.held = ""
        self.found: str | None = None
        self.end = 0

    def push(self, piece: str, *, final: bool = False) -> str:
        """Add a piece of the text.

        Args:
            piece: may be empty; ignored after a stop sequence.
            final: whether this is the last piece, so that nothing is held back.

        Returns:
            The text that can be emitted: what neither is nor can become part of a stop sequence.
        """
        if self.found is not None:
            return ""
        text = self.held + piece
        ends = [
            (start + len(sequence), start, sequence)
            for sequence in self._sequences
            if (start := text.find(sequence)) >= 0
        ]
        if ends:
            end, start, self.found = min(ends)
            self.end = end - len(self.held)
            self.held = ""
            return text[:start]
        held = 0 if final else self._overlap(text)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]

    def _overlap(self, text: str) -> int:
        """Return the number of characters at the end of a text that are the beginning of a stop sequence."""
        for count in range(min(self._longest - 1, len(text)), 0, -1):
            if any(sequence.startswith(text[-count:]) for sequence in self._sequences):
                return count
        return 0


class StopCheck:
    """Finds the token that completes a stop sequence.

    Args:
        sequences: see `StopScanner`.
        decoder: decodes the generated tokens, from the first one on.
        before: tokens that were generated before and hold no stop sequence, but may hold the beginning of one.
    """

    def __init__(self, sequences: Iterable[str], decoder: TextDecoder, before: Sequence[int] = ()) -> None:
        self._scanner = StopScanner(sequences)
        self._decoder = decoder
        self._scanner.push(decoder.decode(before))

    @property
    def held(self) -> str:
        """The text that is held back because it may be the beginning of a stop sequence."""
        return self._scanner.held

    def feed(self, tokens: Sequence[int]) -> int | None:
        """Add tokens.

        Returns:
            The number of these tokens up to the one that completes a stop sequence, inclusive; None if none does.
        """
        pieces = [self._decoder.decode([token]) for token in tokens]
        # One scan for all tokens: a scan costs more than the characters that it reads.
        self._scanner.push("".join(pieces))
        if self._scanner.found is None:
            return None
        lengths = accumulate(len(piece) for piece in pieces)
        return next(count for count, length in enumerate(lengths, 1) if length >= self._scanner.end)
