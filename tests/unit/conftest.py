"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from elman_bundle import Bundle
from tests.support.graphs import make_column_bundle


@pytest.fixture
def column_bundle(tmp_path: Path) -> Bundle:
    """Return a bundle that was not written by elman's export."""
    folder = tmp_path / "column"
    folder.mkdir()
    return make_column_bundle(folder)
