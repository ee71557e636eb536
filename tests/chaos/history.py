"""What clients have seen, and whether a server that was never killed would have shown the same.

A client's history of a session is its calls in order: what it asked for, which tokens it was sent, what it was told in
the end. Three accounts of a call must agree: what the client received, what the session holds afterwards, and what an
unbroken run gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class CallHistory:
    """One call as its client saw it.

    Attributes:
        prompt: what it brought.
        max_tokens: how many tokens it asked for.
        position: where the client believed the session to be.
        tokens: what it received.
        generated: how many tokens the server says it has generated; None if it never said so.
        end: the session's position as the server told it in the end; None if it never did.
        conflict: where the server says the session is, if the call was refused for that.
        failure: any other reason why it did not come to its end.
    """

    prompt: str
    max_tokens: int
    position: int
    tokens: list[int] = field(default_factory=list)
    generated: int | None = None
    end: int | None = None
    conflict: int | None = None
    failure: str = ""


@dataclass
class SessionHistory:
    """A session as its client saw it.

    Attributes:
        session_id: which.
        seed: its seed.
        prompt: what it began with.
        calls: in order.
        held: its tokens in the end, as the server gives them.
    """

    session_id: str
    seed: int
    prompt: str
    calls: list[CallHistory] = field(default_factory=list)
    held: list[int] = field(default_factory=list)


@dataclass
class Verdict:
    """What is wrong, in tokens.

    Attributes:
        sessions: how many there were.
        calls: how many calls they made.
        tokens: how many tokens their clients received.
        lost: tokens that a client was sent, or should have been, and that are gone.
        doubled: tokens that a client or a session got twice.
        different: tokens that an unbroken run gives otherwise.
        reasons: the first few of them, in words.
    """

    sessions: int = 0
    calls: int = 0
    tokens: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.doubled or self.different)


def check(histories: Iterable[SessionHistory], unbroken: Mapping[str, list[list[int]]]) -> Verdict:
    """Hold what clients saw against what they should have seen.

    Args:
        histories: one a session.
        unbroken: by session id, the tokens of each of its calls on a server that nobody killed.
    """
    verdict = Verdict()
    for history in histories:
        verdict.sessions += 1
        _check_session(history, unbroken[history.session_id], verdict)
    return verdict


def _check_session(history: SessionHistory, unbroken: list[list[int]], verdict: Verdict) -> None:
    position = len(history.prompt)
    for number, (call, expected) in enumerate(zip(history.calls, unbroken, strict=True)):
        verdict.calls += 1
        verdict.tokens += len(call.tokens)
        where = f"session {history.session_id}, call {number}"
        if call.conflict is not None:
            _add(verdict, where, "acknowledged, but the server does not have them", lost=position - call.conflict)
            _add(verdict, where, "not acknowledged, but the server has them", doubled=call.conflict - position)
            return
        if call.failure:
            _add(verdict, where, f"not received: {call.failure}", lost=len(expected) - len(call.tokens))
            return
        _add(verdict, where, "not received", lost=len(expected) - len(call.tokens))
        _add(verdict, where, "received too many", doubled=len(call.tokens) - len(expected))
        _add(verdict, where, "unlike an unbroken run", different=_unlike(call.tokens, expected))
        position += len(call.prompt)
        held = history.held[position : position + len(call.tokens)]
        _add(verdict, where, "received, but not held", lost=len(call.tokens) - len(held))
        _add(verdict, where, "held unlike what was received", different=_unlike(held, call.tokens))
        position += len(call.tokens)
        if call.end is not None:
            _add(verdict, where, "told of, but not sent", lost=call.end - position)
            _add(verdict, where, "sent, but not told of", doubled=position - call.end)
    _add(verdict, f"session {history.session_id}", "held, but never sent", doubled=len(history.held) - position)


def _unlike(one: list[int], other: list[int]) -> int:
    return sum(left != right for left, right in zip(one, other, strict=False))


def _add(verdict: Verdict, where: str, reason: str, *, lost: int = 0, doubled: int = 0, different: int = 0) -> None:
    for name, count in (("lost", lost), ("doubled", doubled), ("different", different)):
        if count > 0:
            setattr(verdict, name, getattr(verdict, name) + count)
            if len(verdict.reasons) < 10:
                verdict.reasons.append(f"{where}: {count} tokens {reason}")
