"""The progress of outputs towards a match, and which tokens each may continue with.

Axes: R matchers of a call, V tokens.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from elman_server.decoding.constraints.constraint import Constraint, ConstraintKind
from elman_server.decoding.constraints.json_numbers import MAX_NUMBER_LENGTH, NumberLength
from elman_server.decoding.constraints.sandbox import LIMITS, MAX_STATES, STATE_BYTES
from elman_server.decoding.constraints.vocabulary import MatcherVocabulary
from elman_server.errors import ConstraintError

# Parts of llguidance's messages.
_STATE_LIMIT = "too many states"
_NO_TOKEN = "NoExtensionBias"
_NO_MATCH = "doesn't satisfy the grammar"

_BYTES_PER_TOKEN = 1024  # by which states grow, as measured with expressions that need many

_VOCABULARY_LACKS = "the vocabulary lacks what has to follow"


class Grammar:
    """A compiled constraint over a vocabulary. Made by `Grammars.compile`; thread-safe.

    Args:
        vocabulary: the vocabulary.
        constraint: the constraint.
        text: its grammar, which has compiled in the sandbox.
        size: about how many bytes it takes.

    Attributes:
        vocabulary: the vocabulary.
        kind: the kind of the constraint.
        matches_empty_only: whether the empty output is the only match.
        token_count: about how many tokens its matchers have accepted.

    Raises:
        ConstraintError: it does not compile, or no output of the model can match it.
    """

    def __init__(self, vocabulary: MatcherVocabulary, constraint: Constraint, text: str, size: int = 0) -> None:
        self.token_count = 0
        self._size = size
        self.vocabulary = vocabulary
        self.kind = constraint.kind
        self._text = text
        self._lock = threading.Lock()
        self._parser = self._new_parser()
        if self._parser.is_error():
            raise constraint.error(self._parser.get_error())
        self._initial = Matcher(self)
        allowed_tokens([self._initial], np.empty((1, vocabulary.size), np.bool_))
        if self._initial.error is not None:
            raise ConstraintError(f"no output of this model can match: {self._initial.error}")
        self.matches_empty_only = self._initial.is_exhausted
        del self._initial._grammar  # Without a cycle, its memory is free as soon as nothing uses it.

    def start(self) -> Matcher:
        """Return a matcher of an empty output."""
        matcher = self._initial.copy()
        matcher._grammar = self
        return matcher

    @property
    def size(self) -> int:
        """About how many bytes it takes, with the states of the automaton that have been needed so far."""
        return self._size + min(self.token_count * _BYTES_PER_TOKEN, MAX_STATES * STATE_BYTES)

    def after(self, tokens: Sequence[int]) -> Matcher:
        """Return a matcher of an output that begins with tokens."""
        matcher = self.start()
        for token in tokens:
            matcher.accept(token)
        return matcher

    def parser(self, used_up: LLMatcher | None = None) -> LLMatcher:
        """Return the parser that the parsers of matchers are copies of. Copies share a cache of states of limited size.

        Args:
            used_up: a parser that has reached the limit; it is replaced unless that has happened already.
        """
        with self._lock:
            if self._parser is used_up:
                self._parser = self._new_parser()
            return self._parser

    def _new_parser(self) -> LLMatcher:
        return LLMatcher(self.vocabulary.tokenizer, self._text, log_level=0, limits=LIMITS)


class Matcher:
    """The progress of one output towards a match. Not thread-safe.

    Args:
        grammar: what the output has to match.

    Attributes:
        is_exhausted: whether the output is complete and only the end token can follow, or has followed: the generation
            ends here. Known after `accept` or, where the vocabulary lacks what could follow, after the next
            `allowed_tokens`.
        error: why the output cannot become a match; None while it can. A token was accepted that is not allowed, the
            vocabulary lacks what has to follow, or the grammar is too complex to continue. No token is allowed then.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.is_exhausted = False
        self.error: str | None = None
        self._grammar = grammar
        self._tokens: list[int] = []
        self._number = NumberLength() if grammar.kind is ConstraintKind.JSON_SCHEMA else None
        self._origin = grammar.parser()  # what `_parser` is a copy of
        self._parser = self._origin.deep_copy()

    @property
    def is_complete(self) -> bool:
        """Whether the tokens accepted so far are a match."""
        return self.error is None and self._parser.is_accepting()

    @property
    def token_count(self) -> int:
        """The number of tokens of the output."""
        return len(self._tokens)

    @property
    def end_token(self) -> int | None:
        """The end token of the model, if any."""
        return self._grammar.vocabulary.end_token

    def accept(self, token: int, *, apart: bool = False) -> None:
        """Add the next token of the output, possibly the end token. One that is not allowed sets `error`.

        Args:
            token: the token.
            apart: whether other threads run meanwhile, which takes some microseconds more.

        Raises:
            ValueError: the vocabulary has no such token.
        """
        vocabulary = self._grammar.vocabulary
        if not 0 <= token < vocabulary.size:
            raise ValueError(f"token: got {token}; the vocabulary has the tokens 0 to {vocabulary.size - 1}")
        if self.error is not None:
            return
        fits = self.is_complete if token == vocabulary.end_token else vocabulary.is_text[token]
        self._tokens.append(token)
        self._grammar.token_count += 1
        consume = vocabulary.consume if apart else LLMatcher.consume_token
        if fits and (consume(self._parser, token) or self._renew()):
            self.is_exhausted = self._parser.is_stopped()
            if self._number is not None:
                self._number.feed(vocabulary.spelled[token])
        else:
            self.error = self._complexity() or f"token {token} is not allowed after {len(self._tokens) - 1} others"

    def copy(self) -> Matcher:
        """Return an independent copy."""
        copied = copy.copy(self)
        copied._parser = self._parser.deep_copy()
        copied._tokens = self._tokens.copy()
        copied._number = copy.copy(self._number)
        return copied

    def _renew(self) -> bool:
        """If the parser has failed because the shared cache is full, replay the output on one with a new cache; return
        whether that succeeds."""
        if _STATE_LIMIT not in self._parser.get_error():
            return False
        self._origin = self._grammar.parser(used_up=self._origin)
        self._parser = self._origin.deep_copy()
        return self._parser.consume_tokens(self._tokens)

    def _retry_mask(self, bits: NDArray[np.int32]) -> None:
        """Compute the mask, int32 [1, V / 32], after a failure."""
        if self.error is None and self._renew():
            bits[:] = self._grammar.vocabulary.masks([self._parser])
        if self._parser.is_error() or self.error is not None:
            self.error = self.error or self._complexity() or _VOCABULARY_LACKS
            bits[:] = 0

    def _end_long_number(self, bits: NDArray[np.int32]) -> None:
        """Let a number that is long enough not become longer if something else may follow.

        Args:
            bits: int32 [V / 32], what the grammar allows; changed in place.
        """
        if self._number is None or self._number.value < MAX_NUMBER_LENGTH:
            return
        others = bits & ~self._grammar.vocabulary.number_bits
        if np.any(others) or self.is_complete:
            bits[:] = others

    def _note_no_text(self) -> None:
        """Record that no text can follow."""
        self.is_exhausted = self.is_complete
        if not self.is_exhausted and self.error is None:
            self.error = _VOCABULARY_LACKS

    def _complexity(self) -> str | None:
        """Return the error of a parser that has exceeded a limit; None for any other parser."""
        message = self._parser.get_error().partition("\n")[0]
        if not message or message == _NO_TOKEN or _NO_MATCH in message:
            return None
        return f"the grammar is too complex to continue: {message}"


def allowed_tokens(matchers: Sequence[Matcher], out: NDArray[np.bool_]) -> None:
    """Compute which tokens each output may continue with. Other threads run meanwhile.

    No token is allowed in the row of a matcher with an error, or of an exhausted one if the model has no end token.

    Args:
        matchers: R distinct matchers over one vocabulary.
        out: bool [R, V], receives the result.
    """
    if not matchers:
        return
    vocabulary = matchers[0]._grammar.vocabulary
    bits = vocabulary.masks([matcher._parser for matcher in matchers])
    for row, matcher in enumerate(matchers):
        if matcher.error is not None or matcher._parser.is_error():
            matcher._retry_mask(bits[row : row + 1])
        matcher._end_long_number(bits[row])
    has_text = np.any(bits & vocabulary.text_bits, axis=1).tolist()
    for row, matcher in enumerate(matchers):
        if not has_text[row]:
            matcher._note_no_text()
    out[...] = vocabulary.unpack(bits)
