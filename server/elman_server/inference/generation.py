"""From the scheduler's events to what a caller of a generation sees: updates with tokens, text and the end.

GenerationRun -> events of its sequences -> Continuation | SearchResults -> GenerationUpdate
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Protocol

from elman_server.decoding.stopping import StopScanner
from elman_server.errors import InvalidFieldError, ModelFailedError
from elman_server.inference.delivery import Mailbox
from elman_server.inference.generation_events import (
    GenerationFinished,
    GenerationUpdate,
    LikelyToken,
    TokenLikelihood,
)
from elman_server.inference.generation_run import GenerationRun
from elman_server.scheduling import CUT, BeamsFinished, Event, Failed, Finished, FinishReason, TokenReport, Tokens

# Approximate size of the reports in one update, so that writing them does not block the event loop for long.
_REPORT_BYTES = 64 * 1024
_BYTES_PER_REPORT = 12
_BYTES_PER_LIKELY_TOKEN = 20  # without its text


async def updates_of(run: GenerationRun) -> AsyncGenerator[GenerationUpdate, None]:
    """Yield the updates of a generation until all its sequences have finished. The start goes with the first tokens of
    a single continuation; else it is an update of its own.

    Args:
        run: the generation.

    Raises:
        DomainError: why a sequence failed.
    """
    outputs: list[_Output]
    if run.settings.beams is not None:
        outputs = [SearchResults(run)]
    else:
        outputs = [Continuation(run, index) for index in range(len(run.mailboxes))]
    if run.settings.beams is not None or len(outputs) > 1:
        yield GenerationUpdate(started=run.started)
    while outputs:
        await run.news.wait()
        run.news.clear()
        for output in outputs:
            if output.mailbox.has_events:
                for update in output.updates(output.mailbox.take()):
                    yield update
        outputs = [output for output in outputs if not output.finished]


class _Output(Protocol):
    """What turns the events of one sequence into updates."""

    mailbox: Mailbox
    finished: bool

    def updates(self, events: list[Event]) -> Iterator[GenerationUpdate]:
        """Yield the updates that new events make.

        Raises:
            DomainError: why the sequence failed.
        """
        ...


class Continuation:
    """One continuation of a prompt.

    Args:
        run: the generation.
        index: which of its sequences.
    """

    def __init__(self, run: GenerationRun, index: int) -> None:
        self.mailbox = run.mailboxes[index]
        self.finished = False
        self._run = run
        self._index = index
        self._vocabulary = run.model.vocabulary
        context, sequences = run.context, run.settings.stop_sequences
        self._decoder = self._vocabulary.decoder(() if context is None else context.before)
        self._scanner = StopScanner(sequences) if sequences else None
        self._unsent = "" if context is None else context.unsent
        if context is not None and self._scanner is not None:
            self._scanner.push(self._decoder.decode(context.searched))
        self._next = GenerationUpdate(index, run.started if len(run.mailboxes) == 1 else None)
        self._count = 0
        self._first_token = 0.0

    def updates(self, events: list[Event]) -> Iterator[GenerationUpdate]:
        tokens, reports, end = _split(events)
        self.finished = end is not None
        self._first_token = self._first_token or time.perf_counter()
        known = max(self._run.received_count - self._count, 0)
        self._count += len(tokens)
        if known:
            self._text(tokens[:known])
            tokens, reports = tokens[known:], reports[known:]
        succeeded = isinstance(end, Finished)
        # What a call of a session is cut in the middle of belongs to the next one.
        complete = self.finished and (
            self._run.context is None or (isinstance(end, Finished) and end.reason not in CUT)
        )
        remaining = len(tokens)
        for ids, likelihoods in self._portions(tokens, reports):
            remaining -= len(ids)
            update = self._next
            update.token_ids, update.likelihoods = ids, likelihoods
            update.text = self._text(ids, final=complete and not remaining)
            if remaining or not succeeded:
                self._next = GenerationUpdate(self._index)
                yield update
        if isinstance(end, Failed):
            raise end.error
        if isinstance(end, Finished):
            yield self._last_update(end, complete=complete)

    def _last_update(self, end: Finished, *, complete: bool) -> GenerationUpdate:
        if self._run.received_count > self._count:
            rule = f"this call has generated {self._count} tokens in all"
            raise InvalidFieldError("received_token_count", self._run.received_count, rule)
        update, started = self._next, self._run.started
        if not update.token_ids:  # Flush incomplete characters and text held back as the beginning of a stop sequence.
            update.text = self._text([], final=complete)
        position = None
        if started.session_position is not None:
            position = started.session_position + started.prompt_token_count + self._count
        stopped = end.reason is FinishReason.STOP_SEQUENCE and self._scanner is not None
        update.finished = GenerationFinished(
            end.reason,
            self._count,
            position,
            self._run.settings.stop_sequences.get(self._scanner.found or "", "") if stopped and self._scanner else "",
            held_text=self._held_text(),
            usage=self._run.usage(self._index, end.step_count, end.started_at, self._first_token)
            if end.started_at
            else None,
        )
        return update

    def _text(self, tokens: list[int], *, final: bool = False) -> str:
        # In a session, the next call may complete a character even where this answer is complete.
        text = self._decoder.decode(tokens, final and self._run.context is None)
        unsent, self._unsent = self._unsent, ""
        return unsent + (text if self._scanner is None else self._scanner.push(text, final=final))

    def _held_text(self) -> str:
        """Return what is held back at the end of a call of a session."""
        if self._run.context is None:
            return ""
        return ("" if self._scanner is None else self._scanner.held) + self._decoder.decode([], final=True)

    def _portions(
        self, tokens: list[int], reports: list[TokenReport]
    ) -> Iterator[tuple[list[int], list[TokenLikelihood]]]:
        """Divide new tokens among updates."""
        if not reports:
            if not self._run.settings.single_tokens:
                if tokens:
                    yield tokens, []
                return
            for token in tokens:
                yield [token], []
            return
        limit = 0 if self._run.settings.single_tokens else _REPORT_BYTES
        ids: list[int] = []
        likelihoods: list[TokenLikelihood] = []
        size = 0
        for token, report in zip(tokens, reports, strict=True):
            likelihood, more = self._likelihood(report)
            if ids and size + more > limit:
                yield ids, likelihoods
                ids, likelihoods, size = [], [], 0
            ids.append(token)
            likelihoods.append(likelihood)
            size += more
        yield ids, likelihoods

    def _likelihood(self, report: TokenReport) -> tuple[TokenLikelihood, int]:
        """Return a report with the texts of its tokens, and about how many bytes it takes on a wire."""
        most_likely = tuple(
            LikelyToken(token, self._vocabulary.token_text(token), log_probability)
            for token, log_probability in report.most_likely
        )
        size = _BYTES_PER_REPORT + sum(_BYTES_PER_LIKELY_TOKEN + len(likely.text.encode()) for likely in most_likely)
        return TokenLikelihood(report.log_probability, most_likely), size


class SearchResults:
    """What a beam search has found, each result in an update of its own, the best first. A search whose time was up
    before its first step has one result without tokens.

    Args:
        run: the generation.
    """

    def __init__(self, run: GenerationRun) -> None:
        (self.mailbox,) = run.mailboxes
        self.finished = False
        self._run = run
        self._vocabulary = run.model.vocabulary

    def updates(self, events: list[Event]) -> Iterator[GenerationUpdate]:
        (end,) = events
        self.finished = True
        if isinstance(end, Failed):
            raise end.error
        assert isinstance(end, BeamsFinished)
        usage = self._run.usage(0, end.step_count, end.started_at, time.perf_counter()) if end.started_at else None
        if not end.hypotheses:
            if not end.cut_short:
                raise ModelFailedError("everything that could follow is forbidden")
            yield GenerationUpdate(finished=GenerationFinished(FinishReason.TIME_LIMIT, 0, usage=usage))
        cut = FinishReason.TIME_LIMIT if end.cut_short else FinishReason.MAX_TOKENS
        for index, found in enumerate(end.hypotheses):
            reason = FinishReason.END_TOKEN if found.ended else cut
            yield GenerationUpdate(
                index,
                token_ids=list(found.tokens),
                text=self._vocabulary.decoder().decode(found.tokens, final=True),
                finished=GenerationFinished(reason, len(found.tokens), score=found.score, usage=usage),
            )


def _split(events: list[Event]) -> tuple[list[int], list[TokenReport], Event | None]:
    """Return the tokens among the events of a generation, their reports, and its end, if that has come."""
    tokens: list[int] = []
    reports: list[TokenReport] = []
    for event in events:
        if not isinstance(event, Tokens):
            return tokens, reports, event
        tokens.extend(event.ids)
        reports.extend(event.reports)
    return tokens, reports, None
