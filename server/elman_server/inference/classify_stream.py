"""The use case StreamClassify: an input that arrives in pieces is labelled piece by piece; the state is kept."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from elman_bundle import TextVocabulary
from elman_server.engine import Arrays
from elman_server.errors import InvalidFieldError, ModelUnsuitableError, QueueFullError, shortened
from elman_server.inference.delivery import Mailbox
from elman_server.inference.input_forms import Input, TextInput
from elman_server.inference.inputs import read_steps
from elman_server.inference.labels import Prediction, predict
from elman_server.inference.model import LabelOutput, ServedModel
from elman_server.inference.readings import run_reading
from elman_server.inference.resources import Resources
from elman_server.inference.session_targets import check_request_id, check_target
from elman_server.scheduling import Reading
from elman_server.scheduling.callers import current_caller, has_room
from elman_server.sessions import TOKEN_TYPE, Target


@dataclass(frozen=True)
class StreamConfig:
    """What a stream of pieces is about.

    Attributes:
        model: name of the model; "" for the only one that suits.
        session: the session that the pieces continue; None for none.
    """

    model: str = ""
    session: Target | None = None


@dataclass(frozen=True)
class Piece:
    """The next piece of an input.

    Attributes:
        input: may be empty.
        request_id: name of the piece among the calls of its session; may be empty.
        fingerprint: of what the piece asks for; see `Target`.
    """

    input: Input | None
    request_id: str
    fingerprint: bytes


@dataclass(frozen=True)
class StreamStarted:
    """The stream has been accepted: name of the model and digest of its bundle."""

    model: str
    digest: str


@dataclass(frozen=True)
class PieceResult:
    """The answer to a piece.

    Attributes:
        prediction: of a classifier: after everything so far; of a tagger: for the steps of this piece.
        session_position: position of the session after the piece; None without a session.
        unknown_token_count: how many tokens of the piece the vocabulary does not have.
    """

    prediction: Prediction
    session_position: int | None = None
    unknown_token_count: int = 0


# Runs the steps of a piece; returns the logits of every step or the last one, and the position of the session.
_Reader = Callable[[Piece, NDArray[Any]], Awaitable[tuple[NDArray[Any], int | None]]]


class StreamClassifier:
    """Answers streams of pieces, of which a limited number is open at a time.

    Args:
        resources: what the server has.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._open: dict[str, Counter[str]] = defaultdict(Counter)  # by model and caller

    async def answer(
        self, config: StreamConfig, pieces: AsyncIterator[Piece]
    ) -> AsyncGenerator[StreamStarted | PieceResult, None]:
        """Answer a stream: with its start, and with one result for each piece.

        Args:
            config: what it is about.
            pieces: the pieces.

        Raises:
            DomainError: why it cannot be answered.
        """
        model, output, read = await self._reader_of(config)
        with self._counted(model):
            yield StreamStarted(model.name, model.bundle.digest)
            latest, after_return = PieceResult(Prediction([], [], 0)), False
            async for piece in pieces:
                given = piece.input
                if not model.reads_numbers:
                    given, after_return = without_divided_newline(given, model.vocabulary, after_return)
                steps = await read_steps(given, model, self._resources.limits)
                count = latest.prediction.step_count + len(steps)
                if len(steps):
                    logits, position = await read(piece, steps.values)
                    prediction = await predict(output.labels, logits, count, every_step=output.every_step)
                    latest = PieceResult(prediction, position, steps.unknown_count)
                elif output.every_step:
                    latest = replace(latest, prediction=Prediction([], [], count), unknown_token_count=0)
                else:
                    latest = replace(latest, unknown_token_count=0)
                yield latest

    async def _reader_of(self, config: StreamConfig) -> tuple[ServedModel, LabelOutput, _Reader]:
        name, target = config.model, config.session
        if target is not None:
            check_target(target, "config.session")
            if target.request_id:
                got, rule = repr(shortened(target.request_id)), "every piece is a call of its own"
                raise InvalidFieldError("config.session.request_id", got, rule, "Set piece.request_id")
            name = name or await self._resources.sessions.model_of(target.session_id)
        model, output = self._resources.models.that_labels(name, "config.model")
        if model.reads_trees:
            raise ModelUnsuitableError("config.model", repr(model.name), "it reads complete trees", "Use Classify")
        if model.reads_source_only:
            rule = "it needs its complete input"
            raise ModelUnsuitableError("config.model", repr(model.name), rule, "Use Classify")
        read = _without_session(model, output) if target is None else self._in_session(model, output, target)
        return model, output, read

    def _in_session(self, model: ServedModel, output: LabelOutput, target: Target) -> _Reader:
        expected, kept = target.position, model.for_sessions

        async def read(piece: Piece, steps: NDArray[Any]) -> tuple[NDArray[Any], int | None]:
            nonlocal expected
            check_request_id(piece.request_id, "piece.request_id")
            call = replace(target, position=expected, request_id=piece.request_id, fingerprint=piece.fingerprint)
            tokens = array(TOKEN_TYPE, steps.tolist())
            reader = self._resources.sessions.reader
            found = await reader.read(kept, call, tokens, every_step=output.every_step, always=True)
            expected = found.end
            return found.outputs, found.end

        return read

    @contextmanager
    def _counted(self, model: ServedModel) -> Iterator[None]:
        """Count a stream while it is open. Its pieces are always admitted, so the streams are limited instead."""
        limit = model.scheduler.slot_count + model.scheduler.waiting_limit
        caller, streams = current_caller.get(), self._open[model.name]
        if not has_room(streams[caller], streams.total(), len(streams.keys() | {caller}), limit):
            raise QueueFullError(f"open stream of {model.name!r}", limit)
        streams[caller] += 1
        try:
            yield
        finally:
            streams[caller] -= 1
            if not streams[caller]:
                del streams[caller]


def without_divided_newline(
    given: Input | None, vocabulary: TextVocabulary, after_return: bool
) -> tuple[Input | None, bool]:
    """Return a piece without the LF of a CR LF whose CR ended the text before, where both are one newline; and whether
    the text ends with a CR now.

    Args:
        given: the piece.
        vocabulary: what it is read in.
        after_return: whether the text before it ends with a CR.
    """
    if not isinstance(given, TextInput) or not vocabulary.universal_newlines:
        return given, False
    if not given.text:
        return given, after_return
    text = given.text.removeprefix("\n") if after_return else given.text
    return TextInput(given.field, text), given.text.endswith("\r")


def _without_session(model: ServedModel, output: LabelOutput) -> _Reader:
    state: Arrays | None = None

    async def read(_piece: Piece, steps: NDArray[Any]) -> tuple[NDArray[Any], int | None]:
        nonlocal state
        mailbox = Mailbox()
        reading = Reading(steps, mailbox, state, every_step=output.every_step, keep_state=True)
        finished = await run_reading(model, reading, mailbox, always=True)
        state = finished.state
        return finished.outputs, None

    return read
