"""The log says which exception was raised where, and nothing that users sent: no message, no local variable. A defect
that is met again and again takes neither the log nor the event loop."""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from elman_server.log import LineWriter, RepetitionLimit, log_of_process
from elman_server.settings import Settings

SECRET = "what a user wrote"


class Written(io.StringIO):
    """What a log is written to, by a thread of its own."""

    log: LineWriter

    def getvalue(self) -> str:
        self.log.flush()
        return super().getvalue()


Configure = Callable[[str], Written]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Configures the log in a format, and returns what it is written to."""
    with contextlib.ExitStack() as stack:

        def configure(log_format: str) -> Written:
            file = Written()
            monkeypatch.setattr(sys, "stderr", file)
            settings = Settings.model_validate({"log_format": log_format})
            file.log = stack.enter_context(log_of_process(settings))
            return file

        yield configure
    structlog.reset_defaults()


def look_up(text: str) -> int:
    held = {"other": text}
    return len(held[text])


def fail_with_a_cause(text: str) -> None:
    try:
        look_up(text)
    except KeyError as error:
        raise ValueError(f"cannot look up {text}") from error


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_defect_is_logged_without_what_users_sent(written: Configure, log_format: str) -> None:
    file, log = written(log_format), structlog.get_logger("test")
    try:
        fail_with_a_cause(SECRET)
    except ValueError as error:
        log.exception("call failed", call="Generate")
        log.error("request failed", exc_info=error)
    shown = file.getvalue()
    assert SECRET not in shown
    for name in ("ValueError", "KeyError", "look_up", "fail_with_a_cause", "test_log_of_defects.py:"):
        assert shown.count(name) >= 2, name
    assert len(shown) < 2000


def test_a_message_without_an_exception_has_none(written: Configure) -> None:
    file = written("json")
    structlog.get_logger("test").info("listening", address="127.0.0.1:1")
    assert "exception" not in json.loads(file.getvalue())


def test_json_stays_one_line_an_event(written: Configure) -> None:
    file = written("json")
    try:
        look_up(SECRET)
    except KeyError:
        structlog.get_logger("test").exception("call failed")
    (line,) = file.getvalue().splitlines()
    assert json.loads(line)["exception"].startswith("KeyError (test_log_of_defects.py:")


def log_defects(count: int, text: str = SECRET) -> float:
    """Log the same defect; returns the seconds that it took."""
    log, began = structlog.get_logger("test"), time.perf_counter()
    for _ in range(count):
        try:
            fail_with_a_cause(text)
        except ValueError:
            log.exception("call failed", call="Generate")
    return time.perf_counter() - began


def test_a_defect_that_repeats_is_logged_a_few_times(written: Configure) -> None:
    file = written("json")
    seconds = log_defects(1000)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert len(lines) == 5
    assert seconds < 1.0  # 1,000 in a second would be a flood
    structlog.get_logger("test").info("listening")
    try:
        look_up(SECRET)
    except KeyError:
        structlog.get_logger("test").exception("call failed", call="Generate")  # another place
    assert len(file.getvalue().splitlines()) == 7


def test_no_file_is_read_for_a_traceback(written: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    written("json")
    monkeypatch.setattr(linecache, "getlines", pytest.fail)
    monkeypatch.setattr(linecache, "checkcache", pytest.fail)
    log_defects(1)


def test_a_log_that_nobody_reads_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 30_000  # of which a pipe takes some hundred
    reader, file = os.pipe()
    with os.fdopen(reader) as lines, os.fdopen(file, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        settings = Settings.model_validate({"log_format": "json"})
        try:
            with log_of_process(settings) as log:  # which ends, too
                for number in range(count):
                    structlog.get_logger("test").info("model ready", number=number, model="m" * 100)
            events = (json.loads(line) for line in lines)
            numbers, left_out = [], 0
            while len(numbers) + left_out < count:
                event = next(events)
                if event["event"] == "lines left out":
                    left_out += event["count"]
                else:
                    numbers.append(event["number"])
            assert numbers == list(range(len(numbers)))
            assert len(numbers) >= 10_000
            log.info("the last")
            assert next(lines) == "the last\n"
        finally:
            structlog.reset_defaults()


def test_what_was_left_out_is_counted() -> None:
    now = 0.0
    limit = RepetitionLimit(lambda: now)

    def logged(exception: str) -> dict[str, Any] | None:
        try:
            return dict(limit(None, "error", {"event": "call failed", "exception": exception}))
        except structlog.DropEvent:
            return None

    shown = [logged("KeyError (a.py:1 in f)") for _ in range(20)]
    assert [line is not None for line in shown] == [True] * 5 + [False] * 15
    assert logged("KeyError (a.py:2 in f)") is not None
    now = 11.0
    again = logged("KeyError (a.py:1 in f)")
    assert again is not None
    assert again["left_out_count"] == 15
    now = 22.0
    assert "left_out_count" not in (logged("KeyError (a.py:1 in f)") or {})
