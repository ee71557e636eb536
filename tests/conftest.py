"""Bundles for tests: small, with random weights, made by the real export."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping

import pytest

from elman_bundle import Bundle, CharacterVocabulary
from elman_export import Labels, NextToken, Token
from elman_export.contract import Output
from elman_server.event_loop import ServerEventLoop
from tests.support.bundles import CLASSES, export_network, make_bundle, make_small_network
from tests.support.trees import make_tree_bundles

_LABELLED: Mapping[str, Output] = {"tags": Labels(CLASSES, "step"), "classes": Labels(CLASSES, "sequence")}


def pytest_configure() -> None:
    """Where tests are started behind somebody's back (nohup, a shell's &), Ctrl-C is ignored, and by what they start,
    too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop of the server."""
    return {"server": ServerEventLoop}


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By name: a language model of each cell, one of them in 8-bit integers too, a tagger and a classifier."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {"lstm-int8": make_bundle(folder, "lstm-int8", "lstm", NextToken(), quantize="int8")}
    made |= {cell: make_bundle(folder, cell, cell, NextToken()) for cell in ("elman", "lstm", "gru")}
    return made | {name: make_bundle(folder, name, "gru", meaning) for name, meaning in _LABELLED.items()}


@pytest.fixture(scope="session")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model whose sequences begin with a token of their own, and end with one sooner or later."""
    token = Token(CharacterVocabulary("^$abc"), begin_id=0, end_id=1)
    return export_network(make_small_network(5), tmp_path_factory.mktemp("ends"), "ends", token)


@pytest.fixture(scope="session")
def tree_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By name: a binary Tree-LSTM and a child-sum one."""
    return make_tree_bundles(tmp_path_factory.mktemp("trees"))
