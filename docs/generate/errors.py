"""The reference of the errors that a client can receive."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2

from elman.errors import from_failure
from elman_protos import v1
from elman_server.errors import DomainError
from elman_server.rpc.transport.statuses import DOMAIN, INTERNAL, STATUSES, Row

_HEAD = f"""\
# Errors

Every error is a [`google.rpc.Status`](https://google.aip.dev/193): a code, a message for people, and
details for programs. The details hold an `ErrorInfo` with the domain `{DOMAIN}` and a *reason* that does
not change between versions, and, where one field of the request is at fault, a `BadRequest` that
names the field. A message reads `FIELD: got VALUE; RULE. REMEDY`:

    sampling.temperature: got -1.0; must be a finite number of 0 or more

In Python each error is an exception of [`elman`](python/errors.md) with the attributes `code`, `reason`,
`metadata` and `fields`.

An error ends the call that caused it and no other. A request in `GenerateMany` or `ClassifyMany` fails
alone, and the other requests of the same call continue.
"""
_DEFECT = "The server itself failed. This is a defect; its log has the details, and the client sees no more."


def errors_page() -> str:
    """The page in Markdown: a row for each reason, grouped by status code."""
    lines = [_HEAD, "| status | reason | when | in Python |", "|---|---|---|---|"]
    lines += [_line(row, meanings) for row, meanings in _by_reason()]
    return "\n".join(lines) + "\n"


def _by_reason() -> Iterator[tuple[Row, list[str]]]:
    """Each row of the table of statuses with the meanings of its error classes."""
    meanings: dict[Row, list[str]] = {}
    for error, row in STATUSES.items():
        meanings.setdefault(row, []).append(_meaning(error))
    meanings[INTERNAL] = [_DEFECT]
    yield from meanings.items()


def _meaning(error: type[DomainError]) -> str:
    """The first paragraph of the docstring."""
    return " ".join((inspect.getdoc(error) or "").partition("\n\n")[0].split())


def _line(row: Row, meanings: list[str]) -> str:
    exception = _exception(row)
    cells = (
        f"`{code_pb2.Code.Name(row.code)}`",
        f"`{row.reason}`",
        "<br>".join(meanings),
        f"[`{exception}`][elman.{exception}]",
    )
    return f"| {' | '.join(cells)} |"


def _exception(row: Row) -> str:
    """The name of the exception that the Python client raises."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN))
    return type(from_failure(v1.Failure(code=row.code, details=[detail]))).__name__
