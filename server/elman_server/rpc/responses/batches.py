"""The responses of batch calls, from the answers to their requests."""

from __future__ import annotations

from collections.abc import Iterator

from elman_protos import v1
from elman_server.inference.batch import Answer
from elman_server.inference.classify import Classification
from elman_server.inference.generation_events import GenerationUpdate
from elman_server.rpc.responses.classification import short_classify_response
from elman_server.rpc.responses.generation import generate_response
from elman_server.rpc.transport.sizes import grouped
from elman_server.rpc.transport.statuses import wire_status

_MESSAGE_BYTES = 256 * 1024  # about


def generate_many_responses(answers: list[Answer[GenerationUpdate]]) -> Iterator[v1.GenerateManyResponse]:
    """Yield the messages of answers."""
    for group in grouped(map(_generate_answer, answers), _MESSAGE_BYTES):
        yield v1.GenerateManyResponse(answers=group)


def classify_many_responses(answers: list[Answer[Classification]]) -> Iterator[v1.ClassifyManyResponse]:
    """Yield the messages of answers."""
    for group in grouped(map(_classify_answer, answers), _MESSAGE_BYTES):
        yield v1.ClassifyManyResponse(answers=group)


def _generate_answer(answer: Answer[GenerationUpdate]) -> v1.GenerateAnswer:
    message = v1.GenerateAnswer(request_index=answer.index, last=answer.last)
    if answer.result is not None:
        message.response.CopyFrom(generate_response(answer.result))
    elif answer.error is not None:
        message.failure.CopyFrom(_failure(answer.error))
    return message


def _classify_answer(answer: Answer[Classification]) -> v1.ClassifyAnswer:
    if answer.result is not None:
        return v1.ClassifyAnswer(request_index=answer.index, response=short_classify_response(answer.result))
    assert answer.error is not None
    return v1.ClassifyAnswer(request_index=answer.index, failure=_failure(answer.error))


def _failure(error: Exception) -> v1.Failure:
    status = wire_status(error)
    return v1.Failure(code=status.code, message=status.message, details=status.details)
