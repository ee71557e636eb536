"""Expensive artifacts that many tests need, made once by the first worker or run that needs them.

Exported bundles and trained runs are kept in `.pytest_cache/made`, in folders named by a digest of their sources: the
code that exports and trains, the module that requests them and the pinned packages. If any of these changes, they are
made again.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from elman_bundle import Bundle, load_bundle
from tests.support.paths import ROOT

_MADE = ROOT / ".pytest_cache" / "made"
_SOURCES = ("bundle", "export", "protos", "training", "tests/support")
_KEPT_SECONDS = 24 * 3600

Maker = Callable[[Path], object]


def made_once(name: str, make: Maker) -> Path:
    """Return the folder that `make` fills. It is called if no run with the same sources has called it.

    Args:
        name: unique among all tests; the name of the folder.
        make: fills a folder at the given path, which does not exist yet. The folder must not be changed afterwards.
    """
    source = sys.modules[make.__module__].__file__
    assert source is not None
    folder = _folder() / f"{name}-{sha256(Path(source).read_bytes()).hexdigest()[:16]}"
    finished = folder.with_suffix(".finished")
    with FileLock(folder.with_suffix(".lock")):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
            make(folder)
            finished.touch()
    return folder


def shared_bundle(name: str, make: Maker) -> Bundle:
    """Return the bundle that `make` writes into a folder, made once."""
    return load_bundle(made_once(name, make))


class SharedBundles(Mapping[str, Bundle]):
    """Bundles by name, each made when it is first needed.

    Args:
        prefix: prefix that makes the names unique among all tests.
        makers: by name, the function that writes the bundle into a folder.
    """

    def __init__(self, prefix: str, makers: Mapping[str, Maker]) -> None:
        self._prefix = prefix
        self._makers = makers
        self._loaded: dict[str, Bundle] = {}

    def __getitem__(self, name: str) -> Bundle:
        if name not in self._loaded:
            self._loaded[name] = shared_bundle(f"{self._prefix}-{name}", self._makers[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@cache
def _folder() -> Path:
    digest = sha256(sys.version.encode())
    digest.update((ROOT / "constraints.txt").read_bytes())
    for path in sorted(path for source in _SOURCES for path in (ROOT / source).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    folder = _MADE / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    _forget_old(folder)
    return folder


def _forget_old(current: Path) -> None:
    for folder in _MADE.iterdir():
        if folder != current and time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
