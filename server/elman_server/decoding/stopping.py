"""Stop sequences: texts whose appearance ends a generation. They may lie across tokens and across messages, and no
part of one is ever given out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from elman_bundle.vocabulary import TextDecoder


class StopScanner:
    """Looks for stop sequences in a text that comes piece by piece.

    The first one to be complete counts; of those that are complete at the same character, the longest.

    Args:
        sequences: what to look for, none of them empty.

    Attributes:
        found: the one that has appeared; None as long as none has.
        end: with how many characters of the latest piece it was complete.
    """

    def __init__(self, sequences: Iterable[str]) -> None:
        self._sequences = tuple(sequences)
        self._longest = max((len(sequence) for sequence in self._sequences), default=0)
        self._held = ""
        self.found: str | None = None
        self.end = 0

    def push(self, piece: str, *, final: bool = False) -> str:
        """Take the next piece; what can be given out: all that is no part of a stop sequence and cannot become one.

        Args:
            piece: may be empty; what follows a stop sequence is ignored.
            final: nothing more will come, so that what may have become one is given out.
        """
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [
            (start + len(sequence), start, sequence)
            for sequence in self._sequences
            if (start := text.find(sequence)) >= 0
        ]
        if ends:
            end, start, self.found = min(ends)
            self.end = end - len(self._held)
            self._held = ""
            return text[:start]
        kept = 0 if final else self._beginning_at_end(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def _beginning_at_end(self, text: str) -> int:
        """How many characters at the end of a text are the beginning of a stop sequence."""
        for count in range(min(self._longest - 1, len(text)), 0, -1):
            if any(sequence.startswith(text[-count:]) for sequence in self._sequences):
                return count
        return 0


class StopCheck:
    """Tells at which token a stop sequence is complete.

    Args:
        sequences: see `StopScanner`.
        decoder: turns the generated tokens, from the first one on, into text.
    """

    def __init__(self, sequences: Iterable[str], decoder: TextDecoder) -> None:
        self._scanner = StopScanner(sequences)
        self._decoder = decoder

    def feed(self, tokens: Sequence[int]) -> int | None:
        """Take the next tokens; how many of them there are up to the one that completes a sequence, that one included;
        None if none is complete."""
        pieces = [self._decoder.decode([token]) for token in tokens]
        # All at once: a scan costs more than what it looks at.
        self._scanner.push("".join(pieces))
        if self._scanner.found is None:
            return None
        lengths = accumulate(len(piece) for piece in pieces)
        return next(count for count, length in enumerate(lengths, 1) if length >= self._scanner.end)
