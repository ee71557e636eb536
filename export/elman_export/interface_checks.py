"""The checks of the arguments of `export_bundle`, before anything is computed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, get_args

from elman_bundle import InputVocabulary, LabelVocabulary
from elman_bundle.scores import ONE_LABEL
from elman_export.contract import Labels, NextToken, Source, StepInterface, Token, Tree, Values
from elman_export.export_error import ExportError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCOPES = ("sequence", "step")


def check_descriptions(
    name: str, description: str, metrics: Mapping[str, float] | None, provenance: Mapping[str, str] | None
) -> None:
    """Check what a manifest says about a model.

    Raises:
        ExportError: a manifest cannot hold it.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ExportError(f"name: got {name!r}; it must be 1 to 64 letters, digits, '.', '_' or '-'")
    _check_text("description", description)
    for field, entries in (("metrics", metrics or {}), ("provenance", provenance or {})):
        for key, value in entries.items():
            _check_text(f"{field}: the key", key)
            if field == "provenance":
                _check_text(f"provenance[{key!r}]", value)
            elif not isinstance(value, int | float) or not math.isfinite(value):
                raise ExportError(f"metrics[{key!r}]: got {value!r}; it must be a finite number")


def check_interface(interface: StepInterface) -> None:
    """Check that the kinds of inputs, constants and outputs go together.

    Raises:
        ExportError: says which do not, and why.
    """
    _check_kinds("inputs", interface.inputs, (Token, Values))
    _check_kinds("constants", interface.constants, (Values,))
    _check_kinds("outputs", interface.outputs, (NextToken, Labels))
    for field, kinds in (("inputs", interface.inputs), ("constants", interface.constants)):
        for name, kind in kinds.items():
            _check_kind(f"{field}[{name!r}]", kind)
    if interface.source is not None:
        _check_source(interface.source)
    if interface.tree is not None and not isinstance(interface.tree, Tree):
        raise ExportError(f"tree: got {_shown(interface.tree)}; it must be a Tree")
    if not interface.inputs and interface.source is None:
        raise ExportError("inputs: got none; a step without a source reads at least one input")
    if not interface.outputs:
        raise ExportError("outputs: got none; a step has at least one output")
    for name, constant in interface.constants.items():
        if constant.variable_length and interface.source is None:
            raise ExportError(
                f"constants[{name!r}]: got variable_length=True; only a source has positions, and there is none"
            )
    _check_meanings(interface)


def _check_kinds(field: str, entries: Mapping[str, Any], kinds: tuple[type, ...]) -> None:
    names = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(entries, Mapping):
        raise ExportError(f"{field}: got {_shown(entries)}; it must be a mapping from names to {names}")
    for name, value in entries.items():
        _check_text(f"{field}: the name", name)
        if not name:
            raise ExportError(f"{field}: got an empty name; a name is a text that is not empty")
        if not isinstance(value, kinds):
            raise ExportError(f"{field}[{name!r}]: got {_shown(value)}; it must be {names}")


def _check_kind(field: str, kind: Token | Values) -> None:
    if isinstance(kind, Values):
        if not all(isinstance(size, int) and size > 0 for size in kind.shape):
            raise ExportError(f"{field}: shape: got {tuple(kind.shape)}; all sizes must be at least 1")
        return
    if not isinstance(kind.vocabulary, get_args(InputVocabulary)):
        raise ExportError(
            f"{field}: vocabulary: got {_shown(kind.vocabulary)}; it must be one of "
            f"{', '.join(vocabulary.__name__ for vocabulary in get_args(InputVocabulary))}"
        )
    for name, token in (("begin_id", kind.begin_id), ("end_id", kind.end_id)):
        if token is not None and not (isinstance(token, int) and 0 <= token < kind.vocabulary.size):
            raise ExportError(
                f"{field}: {name}: got {token!r}; the ids of the vocabulary are 0 to {kind.vocabulary.size - 1}"
            )


def _check_source(source: Source) -> None:
    if not isinstance(source, Source):
        raise ExportError(f"source: got {_shown(source)}; it must be a Source")
    if not isinstance(source.kind, Token | Values):
        raise ExportError(f"source: kind: got {_shown(source.kind)}; it must be Token or Values")
    _check_kind("source", source.kind)
    if not isinstance(source.longest, int) or source.longest < 1:
        raise ExportError(f"source: longest: got {source.longest!r}; it must be at least 1")


def _check_meanings(interface: StepInterface) -> None:
    tokens = [name for name, kind in interface.inputs.items() if isinstance(kind, Token)]
    if len(tokens) > 1:
        raise ExportError(f"inputs: got the tokens {', '.join(tokens)}; a step reads one token")
    for meaning in (NextToken, Labels):
        names = [name for name, found in interface.outputs.items() if isinstance(found, meaning)]
        if len(names) > 1:
            raise ExportError(f"outputs: got {', '.join(names)} as {meaning.__name__}; only one output may be")
        if names and meaning is NextToken and not tokens:
            raise ExportError(
                f"outputs[{names[0]!r}]: got NextToken without an input that is a Token, to which the token is fed back"
            )
    for name, found in interface.outputs.items():
        if isinstance(found, Labels):
            _check_labels(f"outputs[{name!r}]", found)


def _check_labels(field: str, labels: Labels) -> None:
    if not all(isinstance(label, str) for label in labels.names):
        raise ExportError(f"{field}: names: got {labels.names!r}; they must be a list of texts, one for each label")
    if not labels.names:
        raise ExportError(f"{field}: names: got none; an output with labels has at least two")
    if len(labels.names) == 1:
        raise ExportError(f"{field}: {ONE_LABEL}")
    try:
        LabelVocabulary(labels.names)
    except ValueError as error:
        raise ExportError(f"{field}: names: {error}") from error
    if labels.scope not in _SCOPES:
        raise ExportError(f"{field}: scope: got {labels.scope!r}; it must be one of {', '.join(_SCOPES)}")


def _check_text(field: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ExportError(f"{field}: got {_shown(text)}; it must be a text")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ExportError(f"{field}: got {text!r}, which has half of a surrogate pair in it, which is no character")


def _shown(value: Any) -> str:
    """A value for people, without pages of numbers."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
