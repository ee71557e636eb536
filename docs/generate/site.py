"""The hook of mkdocs: adds to the site what is generated from the code, and fills in measured figures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.generate.command_line import command_line_page
from docs.generate.errors import errors_page
from docs.generate.figures import with_figures
from docs.generate.policy import policy_page
from docs.generate.protocol import protocol_pages
from docs.generate.settings import settings_page

_ROOT = Path(__file__).parents[2]
_MERMAID = "assets/mermaid.min.js"
# Pages that live elsewhere in the repository.
_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"\]\(docs/")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Draw diagrams with the copy of Mermaid that `make docs` has fetched; without it the page loads its own."""
    if (Path(config.docs_dir) / _MERMAID).exists():
        config.extra_javascript = [_MERMAID, *config.extra_javascript]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the pictures of the benchmarks."""
    for path, text in _generated():
        files.append(File.generated(config, path, content=text))
    for picture in sorted((_ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"images/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables of figures."""
    return with_figures(markdown)


def _generated() -> Iterator[tuple[str, str]]:
    """The path and the text of each generated page."""
    yield "reference/command-line.md", command_line_page()
    yield "reference/settings.md", settings_page()
    yield "reference/errors.md", errors_page()
    yield "reference/scheduling-policy.md", policy_page()
    for name, text in protocol_pages().items():
        yield f"reference/protocol/{name}.md", text
    for path, source in _PAGES.items():
        yield path, _LINK.sub("](", (_ROOT / source).read_text(encoding="utf-8"))
