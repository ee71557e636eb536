"""The pages of the documentation, and the code and commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.support.paths import ROOT

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    (.+?)(?:  +#.*)?$", re.MULTILINE)
_INLINE = re.compile(r"`((?:make|elman|python -m benchmarks) [^`\n]+)`")


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        path: relative to the repository.
    """

    path: str

    def __str__(self) -> str:
        return self.path

    @cached_property
    def text(self) -> str:
        return (ROOT / self.path).read_text(encoding="utf-8")

    @property
    def python(self) -> str:
        """All blocks of Python, joined: later blocks use the imports of earlier ones."""
        return "\n\n".join(self._blocks("python"))

    @property
    def commands(self) -> list[str]:
        """The command lines: those of `sh` blocks, those after a prompt in `console` blocks, and indented ones."""
        found = [line for block in self._blocks("sh") for line in block.splitlines()]
        console = [line for block in self._blocks("console") for line in block.splitlines()]
        found += [line.removeprefix("$ ") for line in console if line.startswith("$ ")]
        return found + _INDENTED.findall(_FENCE.sub("", self.text))

    @property
    def quoted_commands(self) -> list[str]:
        """Commands within sentences."""
        return _INLINE.findall(_FENCE.sub("", self.text))

    def _blocks(self, language: str) -> Iterator[str]:
        return (code for found, code in _FENCE.findall(self.text) if found == language)


def pages() -> list[Page]:
    """All pages of the site that are written by hand, and the README."""
    folders = sorted((ROOT / "docs").rglob("*.md"))
    paths = [Path(name) for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [Page(str(path)) for path in [*paths, *(path.relative_to(ROOT) for path in folders)]]
