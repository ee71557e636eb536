"""Every signal that asks a process to end lets the server drain."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest

from elman_bundle import Bundle
from tests.support.command_line import Served


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_server(bundles: Mapping[str, Bundle], number: signal.Signals) -> None:
    served = Served(bundles["gru"].path, "--provider", "cpu")
    assert served.end(number) == 0
    assert '"draining"' in "".join(served.log)
    assert '"stopped"' in served.log[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_model_is_loaded_ends_the_server(
    bundles: Mapping[str, Bundle], number: signal.Signals
) -> None:
    paths = [bundles[name].path for name in ("gru", "lstm", "tags")]
    served = Served(*paths, "--provider", "cpu", until="model ready")  # of the first one
    assert served.end(number) == 0
    assert '"while_loading": true' in served.log[-1]
    assert '"listening"' not in "".join(served.log)
