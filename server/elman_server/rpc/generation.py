"""Writing generations to their client: tokens become text, what has gathered becomes one message."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from elman_protos import v1
from elman_server.decoding.stopping import StopScanner
from elman_server.errors import InvalidFieldError, ModelFailedError
from elman_server.rpc.mailbox import Mailbox
from elman_server.rpc.models import ServedModel
from elman_server.rpc.writing import grouped
from elman_server.scheduling import BeamsFinished, Event, Failed, Finished, FinishReason, TokenReport, Tokens

_MESSAGE_BYTES = 64 * 1024  # of reports in one message, about; to write more down takes long
Write = Callable[[v1.GenerateResponse], Awaitable[None]]

_FINISH_REASONS = {
    FinishReason.MAX_TOKENS: v1.FINISH_REASON_MAX_TOKENS,
    FinishReason.END_TOKEN: v1.FINISH_REASON_END_TOKEN,
    FinishReason.STOP_SEQUENCE: v1.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.TIME_LIMIT: v1.FINISH_REASON_TIME_LIMIT,
    FinishReason.CONSTRAINT: v1.FINISH_REASON_CONSTRAINT,
}


@dataclass(frozen=True)
class Telling:
    """How a generation is told.

    Attributes:
        model: whose tokens they are.
        write: sends a message.
        started: goes with the first message; None if it has been sent.
        arrived: when the request did, by `time.perf_counter`.
        stop_sequences: texts that end it.
        single: whether every token has a message of its own.
        received: how many tokens the client has already. They are not sent, but the text goes on behind theirs, in the
            middle of a character if need be.
        index: which of several it is.
        steps_before: how many steps were taken for it before it began.
        begun_before: when the first of them was, by `time.perf_counter`; 0 if there were none.
    """

    model: ServedModel
    write: Write
    started: v1.GenerateStarted | None
    arrived: float
    stop_sequences: tuple[str, ...] = ()
    single: bool = False
    received: int = 0
    index: int = 0
    steps_before: int = 0
    begun_before: float = 0.0

    def response(self) -> v1.GenerateResponse:
        """An empty one of this generation."""
        return v1.GenerateResponse(sequence_index=self.index)


async def write_generation(mailbox: Mailbox, telling: Telling) -> None:
    """Write what comes for a generation, to its end.

    Raises:
        DomainError: what ended it.
        InvalidFieldError: the client claims to have more than there is.
    """
    response, started = telling.response(), telling.started
    if started is not None:
        response.started.CopyFrom(started)
    text = _Text(telling)
    count, first_token_time = 0, 0.0
    end: Event | None = None
    while end is None:
        new, reports, end = _split(await mailbox.gather())
        first_token_time = first_token_time or time.perf_counter()
        known = max(telling.received - count, 0)
        if known:
            text.take(new[:known])
        count += len(new)
        left = len(new) - known
        for tokens, told in _portions(new[known:], reports[known:], telling):
            left -= len(tokens)
            response.chunk.token_ids.extend(tokens)
            response.chunk.reports.extend(told)
            response.chunk.text = text.take(tokens, final=bool(end) and not left)
            if left or not isinstance(end, Finished):
                await telling.write(response)
                response = telling.response()
    if isinstance(end, Failed):
        raise end.error
    assert isinstance(end, Finished)
    if telling.received > count:
        rule = f"this call has generated {count} tokens in all"
        raise InvalidFieldError("received_token_count", telling.received, rule)
    rest = "" if response.HasField("chunk") else text.take([], final=True)
    if rest:  # Bytes that became no whole character, or what might have become a stop sequence.
        response.chunk.text = rest
    finished = response.finished
    finished.finish_reason = _FINISH_REASONS[end.reason]
    finished.generated_token_count = count
    finished.stop_sequence = text.stop_sequence if end.reason is FinishReason.STOP_SEQUENCE else ""
    if started is not None and started.HasField("session_position"):
        finished.session_position = started.session_position + started.prompt_token_count + count
    if end.begun:
        finished.usage.CopyFrom(_usage(telling, end.step_count, end.begun, first_token_time))
    await telling.write(response)


async def write_beams(mailbox: Mailbox, telling: Telling) -> None:
    """Write what a search has found, each sequence in a message of its own, when it is over. One whose time was up
    before it began has found one without tokens.

    Raises:
        DomainError: what ended it.
    """
    assert telling.started is not None
    await telling.write(v1.GenerateResponse(started=telling.started))
    (end,) = await mailbox.gather()
    if isinstance(end, Failed):
        raise end.error
    assert isinstance(end, BeamsFinished)
    usage = _usage(telling, end.step_count, end.begun, time.perf_counter()) if end.begun else None
    if not end.hypotheses:
        if not end.cut_short:
            raise ModelFailedError("everything that could follow is forbidden")
        finished = v1.GenerateFinished(finish_reason=v1.FINISH_REASON_TIME_LIMIT, usage=usage)
        await telling.write(v1.GenerateResponse(finished=finished))
    cut = v1.FINISH_REASON_TIME_LIMIT if end.cut_short else v1.FINISH_REASON_MAX_TOKENS
    for index, found in enumerate(end.hypotheses):
        response = v1.GenerateResponse(sequence_index=index)
        response.chunk.token_ids.extend(found.tokens)
        response.chunk.text = telling.model.vocabulary.decoder().decode(found.tokens, final=True)
        finished = response.finished
        finished.finish_reason = v1.FINISH_REASON_END_TOKEN if found.ended else cut
        finished.generated_token_count = len(found.tokens)
        finished.score = found.score
        if usage is not None:
            finished.usage.CopyFrom(usage)
        await telling.write(response)


class _Text:
    """From tokens to the text that may be given out."""

    def __init__(self, telling: Telling) -> None:
        self._decoder = telling.model.vocabulary.decoder()
        self._scanner = StopScanner(telling.stop_sequences)
        self._scans = bool(telling.stop_sequences)

    def take(self, tokens: list[int], *, final: bool = False) -> str:
        text = self._decoder.decode(tokens, final)
        return self._scanner.push(text, final=final) if self._scans else text

    @property
    def stop_sequence(self) -> str:
        return self._scanner.found or ""


def _split(events: list[Event]) -> tuple[list[int], list[TokenReport], Event | None]:
    """The tokens among a generation's events, what is reported of them, and its end, good or bad, if it is there."""
    tokens: list[int] = []
    reports: list[TokenReport] = []
    for event in events:
        if not isinstance(event, Tokens):
            return tokens, reports, event
        tokens.extend(event.ids)
        reports.extend(event.reports)
    return tokens, reports, None


def _portions(
    tokens: list[int], reports: list[TokenReport], telling: Telling
) -> Iterator[tuple[list[int], list[v1.TokenReport]]]:
    """New tokens as they go into one message each, with what is reported of them."""
    if not reports:
        size = 1 if telling.single else max(1, len(tokens))
        for start in range(0, len(tokens), size):
            yield tokens[start : start + size], []
        return
    start = 0
    told = (_report(report, telling.model) for report in reports)
    for some in grouped(told, 0 if telling.single else _MESSAGE_BYTES):
        yield tokens[start : start + len(some)], some
        start += len(some)


def _report(report: TokenReport, model: ServedModel) -> v1.TokenReport:
    likely = [
        v1.LikelyToken(token_id=token, text=model.vocabulary.token_text(token), log_probability=log_probability)
        for token, log_probability in report.most_likely
    ]
    return v1.TokenReport(log_probability=report.log_probability, most_likely=likely)


def _usage(telling: Telling, step_count: int, begun: float, first_token_time: float) -> v1.GenerationUsage:
    def since(then: float) -> Duration:
        duration = Duration()
        # A call that joins a generation may have come later than its first step.
        duration.FromMicroseconds(max(0, round(1e6 * (then - telling.arrived))))
        return duration

    return v1.GenerationUsage(
        step_count=telling.steps_before + step_count,
        waiting_time=since(telling.begun_before or begun),
        first_token_time=since(first_token_time),
        total_time=since(time.perf_counter()),
    )
