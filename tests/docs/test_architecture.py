"""docs/architecture.md is true: the files that it names exist."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TOP_LEVELS = "benchmarks|bundle|client|export|protos|server|tests|training"


def test_every_file_that_it_names_exists() -> None:
    named = set(re.findall(rf"`((?:{TOP_LEVELS})/[\w./]+)`", TEXT))
    assert len(named) > 30
    assert not [path for path in named if not (ROOT / path).exists()]


def test_it_names_every_room() -> None:
    server = ROOT / "server" / "elman_server"
    for room in server.iterdir():
        if room.is_dir() and (room / "__init__.py").exists():
            assert f"server/elman_server/{room.name}" in TEXT, room.name


@pytest.mark.parametrize(
    "new",
    [
        "sampling option",
        "request field",
        "store",
        "wire protocol",
        "kind of output",
        "cell",
        "element type",
        "error",
        "setting",
        "scheduling threshold",
    ],
)
def test_it_says_where_a_new_feature_goes(new: str) -> None:
    rows = [line for line in TEXT.splitlines() if re.match(rf"\| {new}( \(.*\))? \|", line)]
    assert len(rows) == 1
    assert re.search(rf"`(?:{TOP_LEVELS})/[\w./]+`", rows[0])
