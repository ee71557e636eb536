"""Constrained decoding: an output that matches an expression as a whole, whatever the model would rather say.

    Grammars (a vocabulary's) -> compile -> Grammar -> start -> Matcher -> allowed_tokens -> the model chooses -> accept

By llguidance (https://github.com/guidance-ai/llguidance): derivatives of regular expressions for the words, an Earley
parser above them, and a walk over the trie of all tokens for what may come next. A token is allowed if its bytes go on
with a match, however the rest will be divided into tokens; none is ever forced.

Axes: R matchers of a call, V tokens.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from elman_server.decoding.expressions import Constraint, ConstraintKind, explained, grammar_of
from elman_server.decoding.rehearsal import ENDED, LIMITS, Rehearsal, tokenizer_of
from elman_server.errors import ConstraintError

__all__ = ["Constraint", "ConstraintError", "ConstraintKind", "Grammar", "Grammars", "Matcher", "allowed_tokens"]

_KEPT = 32  # grammars that are likely to be asked for again, and as many complaints
_LONGEST_TOKEN = 1024  # bytes; llguidance takes no longer ones
_NO_TEXT = 0xFF  # in no UTF-8; to llguidance, the beginning of what is no text
_THREADS = 1  # A mask takes a microsecond or a few; the other cores are the model's.
_WORN = "too many states"
_STUCK = "NoExtensionBias"
_LACKING = "the vocabulary lacks what has to follow"

_Found = TypeVar("_Found")


class Grammars:
    """The grammars over one vocabulary: compiles them, and keeps those that were used last and what was wrong with
    others. Any thread may ask.

    Args:
        token_bytes: the UTF-8 of each of the V tokens, or a part of it; None for a token that is never text.
        end_token: the token that ends an output, which is no text whatever its bytes; None if the model has none.
    """

    def __init__(self, token_bytes: Sequence[bytes | None], end_token: int | None) -> None:
        self._vocabulary = _Vocabulary(token_bytes, end_token)
        self._rehearsal = Rehearsal()
        self._lock = threading.Lock()
        self._kept: OrderedDict[Constraint, Grammar] = OrderedDict()  # the least recently used first
        self._refused: OrderedDict[Constraint, tuple[str, int | None]] = OrderedDict()  # likewise

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint. Takes some milliseconds where it is not kept, and seconds at worst; other
        threads run meanwhile.

        Raises:
            ConstraintError: the expression is wrong or too complex, or no output of the model can match it.
        """
        kept = self.kept(constraint)
        if kept is not None:
            return kept
        text = grammar_of(constraint)
        complaint = self._rehearsal.complaint(text)
        if complaint == ENDED:
            raise explained(constraint, complaint)
        try:
            if complaint:
                raise explained(constraint, complaint)
            grammar = Grammar(self._vocabulary, constraint, text)
        except ConstraintError as error:
            self._keep(self._refused, constraint, (error.problem, error.position))
            raise
        self._keep(self._kept, constraint, grammar)
        return grammar

    def kept(self, constraint: Constraint) -> Grammar | None:
        """The grammar of a constraint, if it is kept; takes no time.

        Raises:
            ConstraintError: what is wrong with it is kept.
        """
        with self._lock:
            if constraint in self._refused:
                self._refused.move_to_end(constraint)
                raise ConstraintError(*self._refused[constraint])
            if constraint in self._kept:
                self._kept.move_to_end(constraint)
                return self._kept[constraint]
            return None

    def _keep(self, kept: OrderedDict[Constraint, _Found], constraint: Constraint, found: _Found) -> None:
        with self._lock:
            kept[constraint] = found
            if len(kept) > _KEPT:
                kept.popitem(last=False)


class Grammar:
    """A constraint over a vocabulary, compiled. Made by `Grammars.compile`; any thread may start matchers."""

    def __init__(self, vocabulary: _Vocabulary, constraint: Constraint, text: str) -> None:
        self.vocabulary = vocabulary
        self._text = text
        self._lock = threading.Lock()
        self._parser = self._new_parser()
        if self._parser.is_error():
            raise explained(constraint, self._parser.get_error())
        self._beginning = Matcher(self)
        allowed_tokens([self._beginning], np.empty((1, vocabulary.size), np.bool_))
        if self._beginning.error is not None:
            raise ConstraintError(f"no output of this model can match: {self._beginning.error}")

    def start(self) -> Matcher:
        """A matcher of an output of which nothing is there yet."""
        return self._beginning.copy()

    def parser(self, worn: LLMatcher | None = None) -> LLMatcher:
        """What the matchers' parsers are copies of. All copies share what they find out, and a limit to how much.

        Args:
            worn: one that has come to the limit, and is replaced unless that has happened already.
        """
        with self._lock:
            if self._parser is worn:
                self._parser = self._new_parser()
            return self._parser

    def _new_parser(self) -> LLMatcher:
        return LLMatcher(self.vocabulary.tokenizer, self._text, log_level=0, limits=LIMITS)


class Matcher:
    """How far an output has come towards a match. For one thread at a time.

    Attributes:
        is_exhausted: whether the output is complete and nothing can follow but the end token, or that has come: the
            generation ends here. Known after `accept`, or, where the vocabulary lacks what could follow, after the next
            `allowed_tokens`.
        error: why no match can come of it, if so: a token was accepted that is not allowed, the vocabulary lacks what
            has to follow, or the grammar is too complex to go on. Nothing is allowed then.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.is_exhausted = False
        self.error: str | None = None
        self._grammar = grammar
        self._tokens: list[int] = []
        self._origin = grammar.parser()
        self._parser = self._origin.deep_copy()

    @property
    def is_complete(self) -> bool:
        """Whether what has been accepted so far is a match."""
        return self.error is None and self._parser.is_accepting()

    def accept(self, token: int) -> None:
        """Take the next token of the output, which may be the end token. One that is not allowed becomes `error`.

        Raises:
            ValueError: there is no such token.
        """
        vocabulary = self._grammar.vocabulary
        if not 0 <= token < vocabulary.size:
            raise ValueError(f"there is no token {token}: the vocabulary has {vocabulary.size}")
        if self.error is not None:
            return
        fits = self.is_complete if token == vocabulary.end_token else vocabulary.is_text[token]
        self._tokens.append(token)
        if fits and (self._parser.consume_token(token) or self._renew()):
            self.is_exhausted = self._parser.is_stopped()
        else:
            self.error = self._complexity() or f"token {token} is not allowed after {len(self._tokens) - 1} others"

    def copy(self) -> Matcher:
        """One that goes on from here by itself."""
        copied = copy.copy(self)
        copied._parser = self._parser.deep_copy()
        copied._tokens = self._tokens.copy()
        return copied

    def _renew(self) -> bool:
        """Go on with a parser that is not worn, if that is all that was wrong."""
        if _WORN not in self._parser.get_error():
            return False
        self._origin = self._grammar.parser(worn=self._origin)
        self._parser = self._origin.deep_copy()
        return self._parser.consume_tokens(self._tokens)

    def _mask_again(self, bits: NDArray[np.int32]) -> None:
        """Fill in what is allowed, int32 [1, V / 32], after it could not be found."""
        if self.error is None and self._renew():
            bits[:] = self._grammar.vocabulary.masks([self._parser])
        if self._parser.is_error() or self.error is not None:
            self.error = self.error or self._complexity() or _LACKING
            bits[:] = 0

    def _take_the_end(self) -> None:
        """No text can follow."""
        self.is_exhausted = self.is_complete
        if not self.is_exhausted and self.error is None:
            self.error = _LACKING

    def _complexity(self) -> str | None:
        """What the parser says of itself, if it has failed, and not for want of tokens."""
        complaint = self._parser.get_error().partition("\n")[0]
        if not complaint or complaint == _STUCK or "doesn't satisfy the grammar" in complaint:
            return None
        return f"the grammar is too complex to go on: {complaint}"


def allowed_tokens(matchers: Sequence[Matcher], out: NDArray[np.bool_]) -> None:
    """Which token each output may go on with. Other threads run meanwhile.

    A row in which nothing is allowed is that of a matcher with an error, or of an exhausted one where the model has no
    end token.

    Args:
        matchers: R of them, all different, over one vocabulary.
        out: bool [R, V], the result.
    """
    if not matchers:
        return
    vocabulary = matchers[0]._grammar.vocabulary
    bits = vocabulary.masks([matcher._parser for matcher in matchers])
    for row, matcher in enumerate(matchers):
        if matcher.error is not None or matcher._parser.is_error():
            matcher._mask_again(bits[row : row + 1])
    followed = np.any(bits & vocabulary.text, axis=1).tolist()
    for row, matcher in enumerate(matchers):
        if not followed[row]:
            matcher._take_the_end()
    out[...] = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little", count=vocabulary.size).view(np.bool_)


class _Vocabulary:
    """A vocabulary as llguidance has it: with an end token in any case, and one bit a token in masks.

    Attributes:
        size: V.
        end_token: the model's, if it has one.
        is_text: whether each of the V tokens is text.
        text: the same in bits, int32 [V / 32, rounded up].
    """

    def __init__(self, token_bytes: Sequence[bytes | None], end_token: int | None) -> None:
        self.size = len(token_bytes)
        self.end_token = end_token
        tokens = [_text(token) for token in token_bytes]
        if end_token is None:
            tokens.append(b"")  # Its id is beyond the vocabulary, and cut off from every mask.
        else:
            tokens[end_token] = b""
        self.tokenizer = tokenizer_of(tokens, self.size if end_token is None else end_token)
        self.is_text = [bool(token) for token in tokens[: self.size]]
        self.text = _bits(self.is_text, len(tokens))
        self._executor = LLExecutor(_THREADS)

    def masks(self, parsers: Sequence[LLMatcher]) -> NDArray[np.int32]:
        """What each may go on with, in bits, int32 [R, V / 32]. That of a parser that fails at it is meaningless."""
        bits = allocate_token_bitmask(len(parsers), self.size + (self.end_token is None))
        fill_next_token_bitmask_par(self._executor, [(parser, row) for row, parser in enumerate(parsers)], bits)
        return bits


def _text(token: bytes | None) -> bytes:
    """The bytes of a token as far as llguidance takes them for text; none if it does not."""
    return b"" if token is None or _NO_TEXT in token or len(token) > _LONGEST_TOKEN else token


def _bits(flags: Sequence[bool], size: int) -> NDArray[np.int32]:
    """Flags as llguidance keeps them for `size` tokens."""
    padded = np.zeros(-(-size // 32) * 32, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.int32)
