"""What every test runs under, and the bundles that most of them share."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping

import pytest
import torch
from loky import cpu_count

from elman_bundle import Bundle, CharacterVocabulary
from elman_export import Labels, Token
from elman_server.event_loop import ServerEventLoop
from tests.support.amount import choose_amount
from tests.support.bundles import CLASSES, make_small_network, write_characters, write_network
from tests.support.quick_export import parse_translations_once
from tests.support.shared import SharedBundles, shared_bundle
from tests.support.trees import TreeLstm, write_trees

# Small networks gain nothing from more threads, and workers that share the cores lose much by them: a thread of
# torch's spins while it waits for one that has no core.
torch.set_num_threads(1)
parse_translations_once()
# For processes that tests start.
os.environ |= {"OMP_NUM_THREADS": "1", "ELMAN_THREADS": "1"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run slow tests too, and all examples of every property")


def pytest_configure(config: pytest.Config) -> None:
    """Choose how much is tested, and restore Ctrl-C, which processes started in the background ignore."""
    choose_amount(everything=config.getoption("all"))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """More workers than cores: tests wait for processes, timers and disks."""
    cores = cpu_count()
    return cores + cores // 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests, so that every run lists them with their reasons."""
    if config.getoption("all"):
        return
    for item in items:
        for slow in item.iter_markers("slow"):
            item.add_marker(pytest.mark.skip(reason=f"slow: {slow.args[0]} (make test-all)"))


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop of the server."""
    return {"server": ServerEventLoop}


@pytest.fixture(scope="session")
def bundles() -> Mapping[str, Bundle]:
    """By name: a language model of each cell, one of them in 8-bit integers too, a tagger and a classifier."""
    return SharedBundles(
        "characters",
        {
            "elman": lambda folder: write_characters(folder, "elman", "elman"),
            "lstm": lambda folder: write_characters(folder, "lstm", "lstm"),
            "gru": lambda folder: write_characters(folder, "gru", "gru"),
            "lstm-int8": lambda folder: write_characters(folder, "lstm-int8", "lstm", quantize="int8"),
            "tags": lambda folder: write_characters(folder, "tags", "gru", Labels(CLASSES, "step")),
            "classes": lambda folder: write_characters(folder, "classes", "gru", Labels(CLASSES, "sequence")),
        },
    )


@pytest.fixture(scope="session")
def ends() -> Bundle:
    """A model whose sequences begin with a token of their own, and end with one sooner or later."""
    token = Token(CharacterVocabulary("^$abc"), begin_id=0, end_id=1)
    return shared_bundle("ends", lambda folder: write_network(make_small_network(5), folder, "ends", token))


@pytest.fixture(scope="session")
def tree_bundles() -> Mapping[str, Bundle]:
    """By name: a binary Tree-LSTM and a child-sum one."""
    return {
        "binary": shared_bundle("trees-binary", lambda folder: write_trees(TreeLstm(2), folder, "binary", 2)),
        "child-sum": shared_bundle("trees-child-sum", lambda folder: write_trees(TreeLstm(0), folder, "child-sum", 0)),
    }
