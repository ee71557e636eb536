"""The log says which exception was raised where, and nothing that users sent: no message, no local variable."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator

import pytest
import structlog

from elman_server.process import configure_log
from elman_server.settings import Settings

SECRET = "what a user wrote"
Configure = Callable[[str], io.StringIO]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Configures the log in a format, and returns what it is written to."""

    def configure(log_format: str) -> io.StringIO:
        file = io.StringIO()
        monkeypatch.setattr(sys, "stderr", file)
        configure_log(Settings.model_validate({"log_format": log_format}))
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
