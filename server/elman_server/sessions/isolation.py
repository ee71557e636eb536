"""Requests that are sent to a store together. A defect that one of them triggers does not affect the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog

from elman_server.errors import SessionError, StoreUnavailableError
from elman_server.sessions.stores.interface import STORE_FAILED

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")
_Expected = TypeVar("_Expected", bound=SessionError)

_log = structlog.get_logger(__name__)


def send_isolated(
    send: Callable[[Sequence[_Request]], Sequence[_Answer]], requests: Sequence[_Request], expected: type[_Expected]
) -> Sequence[_Answer | _Expected | StoreUnavailableError]:
    """Send requests together, and after a defect each by itself.

    Args:
        send: answers requests, in order. Another number of answers is a defect.
        requests: what is sent.
        expected: an exception of this kind is the answer to all requests; any other one is a defect.

    Returns:
        An answer or an error for each, in order; StoreUnavailableError for a request that is a defect alone.
    """
    try:
        answers = send(requests)
        if len(answers) == len(requests):
            return answers
        _log.error("store failed", request_count=len(requests), answer_count=len(answers))
    except expected as error:
        return [error] * len(requests)
    except Exception:
        _log.exception("store failed", request_count=len(requests))
    if len(requests) == 1:
        return [StoreUnavailableError(STORE_FAILED)]
    return [answer for request in requests for answer in send_isolated(send, [request], expected)]
