"""Every name that the signatures and docstrings of `elman` make a user look for is a name of `elman`."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest

import elman
import elman_bundle
import elman_export
from tests.support.paths import ROOT

_RAISES = re.compile(r"^ {4,}(\w+(?:Error|Exception))(?:, \w+)*:", re.MULTILINE)
_QUOTED = re.compile(r"`(?:\w+\.)?([A-Z]\w+)`|see ([A-Z]\w+)")
_CAPITALIZED = re.compile(r"\b[A-Z]\w+")


def classes_of_elman() -> set[str]:
    """The names of the classes of the packages that users import from."""
    modules: list[ModuleType] = []
    for package in (elman, elman_bundle, elman_export):
        modules.append(package)
        modules += [
            import_module(found.name)
            for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
            if ".cli" not in found.name
        ]
    classes = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    return {
        kind.__name__ for kind in classes if re.match("elman(?!_protos)", kind.__module__) and kind.__name__[0] != "_"
    }


CLASSES = classes_of_elman()
# What a user never needs to name: bases of public classes, what makes streams, and what decoder() returns.
UNNAMED = {"Connection", "AnalysisCalls", "SessionCalls", "UnaryCalls", "RetryBudget", "TextDecoder"}


def public_parts(name: str) -> Iterator[object]:
    """A public object, and if it is a class its public methods."""
    value = getattr(elman, name)
    yield value
    if inspect.isclass(value):
        for method, part in inspect.getmembers(value):
            if (method == "__init__" or not method.startswith("_")) and callable(part):
                yield part


def named_classes(part: object) -> set[str]:
    """The classes of elman in annotations and docstrings."""
    texts = [str(annotation) for annotation in getattr(part, "__annotations__", {}).values()]
    words = {word for text in texts for word in _CAPITALIZED.findall(text)}
    document = inspect.getdoc(part) or ""
    words |= {next(filter(None, groups)) for groups in _QUOTED.findall(document)} | set(_RAISES.findall(document))
    return words & CLASSES


@pytest.mark.parametrize("name", elman.__all__)
def test_what_a_public_name_mentions_is_public(name: str) -> None:
    mentioned = {word for part in public_parts(name) for word in named_classes(part)}
    assert mentioned - set(elman.__all__) - UNNAMED == set()


def test_all_public_names_are_in_the_reference() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference" / "python").glob("*.md"))
    assert set(re.findall(r"^::: elman\.(\w+)$", pages, re.MULTILINE)) == set(elman.__all__)


def test_everything_that_export_takes_is_public() -> None:
    of_export = {name for name in elman_export.__all__ if name != "export_run"}  # The command line's.
    vocabularies = {name for name in elman_bundle.__all__ if name.endswith("Vocabulary")}
    vocabularies -= {
        "InputVocabulary",
        "TextVocabulary",
        "LabelVocabulary",
        "Vocabulary",
    }  # Unions, and what is inside.
    assert (of_export | vocabularies) - set(elman.__all__) == set()
