"""Where the answers of a session began. Calls may cut an answer anywhere: what a call generates may go on with a stop
sequence, or with a match of a constraint, that began in a call before.

A session keeps this for its last answers, as a call under a name that no client can give. So every store keeps it, and
rewinds keep what they reach.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from elman_server.sessions.session import TOKEN_TYPE, Call, Session

_NAME = "answers".ljust(65, "-")  # longer than the name of a call may be
_OUTCOME = "answers"
_MOST = 8
_LONGEST_TEXT = 256  # characters of a stop sequence
_BEFORE_TOKENS = 64  # that a decoder needs
_SEARCHED_TOKENS = 1024  # of the longest beginning of a stop sequence: 255 characters


@dataclass(frozen=True, slots=True)
class Answer:
    """Where what a call generates began.

    Attributes:
        start: position from which on the call generates.
        searched_from: position from which on the text is searched for stop sequences; before `start` if a call before
            has begun the search.
        matched_from: position from which on the tokens are matched with the constraint; likewise.
        stop_sequences: what is searched for.
        constraint: digest of the constraint; "" for none.
        unsent: generated before, and sent at the beginning of the call's answer; it is not searched.
        end: position at which the answer ended by itself; None where it was cut.
        until: position after its tokens, if something else follows; None if nothing does.
    """

    start: int
    searched_from: int
    matched_from: int
    stop_sequences: tuple[str, ...] = ()
    constraint: str = ""
    unsent: str = ""
    end: int | None = None
    until: int | None = None

    @property
    def can_continue(self) -> bool:
        """Whether there is anything that a later call could go on with."""
        return bool(self.stop_sequences or self.constraint)

    def pack(self) -> bytes:
        """Return it as bytes; none for an answer with nothing that was begun before or can be continued."""
        return json.dumps(asdict(self)).encode() if self.can_continue or self.unsent else b""

    @classmethod
    def unpack(cls, packed: bytes, start: int) -> Answer:
        """Return what `pack` has packed of an answer that starts at `start`.

        Raises:
            ValueError: it is damaged.
        """
        return _read(json.loads(packed)) if packed else cls(start, start, start)


@dataclass(frozen=True, slots=True)
class Answers:
    """The last answers of a session, in their order."""

    each: tuple[Answer, ...] = ()

    @classmethod
    def of(cls, session: Session) -> Answers:
        """Return those of a session, as far as it has not been taken back."""
        call = session.calls.get(_NAME)
        try:
            found = cls() if call is None else cls.unpack(call.answer)
        except ValueError:  # Another version wrote it.
            return cls()
        return cls(tuple(answer for answer in found.each if answer.start <= session.position))

    def at(self, position: int) -> Answer | None:
        """Return the answer that a call continues from a position; None if there is none."""
        for answer in reversed(self.each):
            # Where one ends and the next begins, nothing of the next is there yet.
            if answer.start < position or answer is self.each[0]:
                inside = answer.until is None or position <= answer.until
                return answer if inside and answer.end != position and answer.can_continue else None
        return None

    def with_next(self, answer: Answer, position: int) -> Answers:
        """Return them with the answer of a call to a session at a position, which may continue the last one."""
        left = self.left(position).each
        if not answer.can_continue:
            return Answers(left)
        if left and answer == replace(left[-1], start=answer.start, end=None, until=None):
            return Answers((*left[:-1], replace(left[-1], end=None, until=None)))
        return Answers((*left, answer)[-_MOST:])

    def left(self, position: int) -> Answers:
        """Return them with the last one closed at a position, because something else follows there."""
        if not self.each:
            return self
        last = self.each[-1]
        until = position if last.until is None else min(last.until, position)
        return Answers((*self.each[:-1], replace(last, until=until)))

    def ended(self, position: int) -> Answers:
        """Return them with the last one ended at a position, by itself."""
        return Answers((*self.each[:-1], replace(self.each[-1], end=position)))

    def to_call(self) -> Call:
        """Return the call as which a session keeps them."""
        return Call(_NAME, b"", self.each[0].start if self.each else 0, 0, 0, _OUTCOME, self.pack())

    def change_of(self, session: Session) -> Call | None:
        """Return the call as which a session is to keep them; None if it does already."""
        kept = session.calls.get(_NAME)
        known = Answers().pack() if kept is None else kept.answer
        return None if self.pack() == known else self.to_call()

    def pack(self) -> bytes:
        """Return them as bytes."""
        return json.dumps([asdict(answer) for answer in self.each]).encode()

    @classmethod
    def unpack(cls, packed: bytes) -> Answers:
        """Return what `pack` has packed.

        Raises:
            ValueError: it is damaged.
        """
        try:
            values = json.loads(packed)
        except RecursionError as error:
            raise ValueError("got lists in lists") from error
        if not isinstance(values, list) or len(values) > _MOST:
            raise ValueError("got something else than a list of answers")
        return cls(tuple(map(_read, values)))


def _read(values: Mapping[str, Any]) -> Answer:
    try:
        found = Answer(**{name: values[name] for name in Answer.__slots__})
        found = replace(found, stop_sequences=tuple(found.stop_sequences))
    except (TypeError, KeyError) as error:
        raise ValueError("got an answer without some of its parts") from error
    ends = [number for number in (found.end, found.until) if number is not None]
    numbers = [found.start, found.searched_from, found.matched_from, *ends]
    texts = [*found.stop_sequences, found.constraint, found.unsent]
    right = all(type(number) is int for number in numbers) and all(type(text) is str for text in texts)
    if not right or min(numbers) < 0 or found.start < max(found.searched_from, found.matched_from):
        raise ValueError("got an answer with a part of another type")
    if max(map(len, texts)) > _LONGEST_TEXT:
        raise ValueError(f"got an answer with a text of more than {_LONGEST_TEXT} characters")
    return found


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """What precedes the text of a call's answer.

    Attributes:
        before: the tokens before those that are searched, as far as a decoder needs them.
        searched: the tokens of calls before, whose text is searched for stop sequences together with the answer.
        unsent: text that the answer begins with.
    """

    before: array[int]
    searched: array[int]
    unsent: str


def answers_before(session: Session, position: int) -> dict[str, Call]:
    """Return what a session keeps of its answers, as far as they began before a position."""
    call = session.calls.get(_NAME)
    return {} if call is None or call.start > position else {_NAME: call}


def context_of(session: Session, answer: Answer, start: int, prompt: array[int]) -> AnswerContext:
    """Return what precedes the text of a call's answer.

    Args:
        session: the session.
        answer: the answer.
        start: position from which on the call generates.
        prompt: the last tokens before it, which the session does not hold yet.
    """
    first = max(answer.searched_from, start - _SEARCHED_TOKENS)
    held = min(first, start - len(prompt))
    before = session.tokens[max(0, held - _BEFORE_TOKENS) : held] + prompt
    searched = session.tokens[first:start] if first < start else array(TOKEN_TYPE)
    return AnswerContext(before[-_BEFORE_TOKENS:], searched, answer.unsent)
