"""The README is short, and its links and figures are right."""

from __future__ import annotations

import re

import pytest
from docs.generate.figures import TABLES, renewed

from tests.support.documents import Page, pages
from tests.support.paths import ROOT

README = Page("README.md").text
MARK = re.compile(r"^<!-- figures: ([\w-]+) -->$", re.MULTILINE)


def test_it_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_its_figures_are_those_of_the_results() -> None:
    assert MARK.findall(README)
    assert renewed(README) == README, "run .venv/bin/python -m docs.generate.figures"


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_to_files_resolve(page: Page) -> None:
    """Links between pages; those into generated pages are checked when the site is built."""
    folder = (ROOT / page.path).parent
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.text):
        generated = "reference/" in link or page.path.startswith("docs/reference") or "images/" in link
        assert generated or (folder / link).exists() or link in ("contributing.md", "changelog.md"), link


@pytest.mark.parametrize("page", pages(), ids=str)
def test_tables_of_figures_exist(page: Page) -> None:
    assert set(MARK.findall(page.text)) <= set(TABLES)
