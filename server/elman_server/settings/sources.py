"""Where settings come from: the command line, before the environment, before a file, before the defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from elman_server.errors import SettingsError
from elman_server.settings.model import PREFIX, Settings
from elman_server.settings.presentation import option_of, variable_of

DEFAULT = "default"
# Variables of elman that are no settings of the server.
_OTHER_VARIABLES = {"ELMAN_SERVER"}
_SIMILARITY = 0.8  # from 0 to 1, at which a variable is taken for a misspelled one


@dataclass(frozen=True)
class LoadedSettings:
    """Settings, and where each of them comes from.

    Attributes:
        settings: the settings.
        sources: by the name of a setting, the option, the variable or the file that gave it; "default" otherwise.
    """

    settings: Settings
    sources: Mapping[str, str]


@dataclass(frozen=True)
class _Layer:
    """The values of one source.

    Attributes:
        values: by the name of a setting, as they were given.
        path: the file that they come from; None for another source.
        labels: by the name of a setting, its option or variable; empty for a file.
    """

    values: Mapping[str, Any]
    path: Path | None
    labels: Mapping[str, str]

    def source_of(self, name: str) -> str:
        """What gave a value: the option, the variable, or the file."""
        return self.labels[name] if self.path is None else str(self.path)

    def place_of(self, name: str) -> str:
        """Where a wrong value is to be corrected; in a file, that is a key."""
        return self.labels[name] if self.path is None else f"{self.path}: {name}"


def load_settings(command_line: Mapping[str, Any]) -> LoadedSettings:
    """Combine the options that were given with the environment and the file that --config or ELMAN_CONFIG names.

    Args:
        command_line: by the name of a setting, the values of the options that were given, as text or parsed.

    Raises:
        SettingsError: a value is refused, or the file cannot be used.
    """
    layers = [_Layer(dict(command_line), None, _labels(option_of))]
    layers.append(_Layer(EnvSettingsSource(Settings)(), None, _labels(variable_of)))
    for layer in tuple(layers):
        if "config" in layer.values:
            layers.append(_read_file(Path(layer.values["config"]), layer.labels["config"]))
            break
    values: dict[str, Any] = {}
    for layer in reversed(layers):
        values |= layer.values
    giving = {name: next(layer for layer in layers if name in layer.values) for name in values}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError("\n".join(_problems(error, giving))) from None  # It may quote a password.
    sources = {name: giving[name].source_of(name) if name in giving else DEFAULT for name in Settings.model_fields}
    return LoadedSettings(settings, sources)


def misspelled_variables(names: Iterable[str] = os.environ) -> dict[str, str]:
    """Environment variables that look like misspelled settings, each with the variable that was probably meant."""
    known = [variable_of(name) for name in Settings.model_fields]
    found = {}
    for name in names:
        if name.startswith(PREFIX) and name not in {*known, *_OTHER_VARIABLES}:
            for match in get_close_matches(name, known, n=1, cutoff=_SIMILARITY):
                found[name] = match
    return found


def _labels(label: Callable[[str], str]) -> dict[str, str]:
    return {name: label(name) for name in Settings.model_fields}


def _read_file(path: Path, source: str) -> _Layer:
    """The settings in a TOML file.

    Raises:
        SettingsError: it cannot be read, or it names something that is no setting.
    """
    if not path.is_file():
        raise SettingsError(f"{source}: got {path}; there is no such file")
    try:
        values = TomlConfigSettingsSource(Settings, path)()
    except OSError as error:
        raise SettingsError(f"{source}: got {path}; it cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOML that is malformed, or no UTF-8.
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    if "config" in values:
        raise SettingsError(f"{path}: config: a file cannot name another one. Use {option_of('config')}")
    return _Layer(values, path, {})


def _problems(error: ValidationError, giving: Mapping[str, _Layer]) -> Iterable[str]:
    """One line for each value that is refused."""
    for problem in error.errors():
        name, message = str(problem["loc"][0]), str(problem["msg"])
        place = giving[name].place_of(name)
        if problem["type"] == "extra_forbidden":
            yield f"{place}: there is no such setting. {_remedy(name)}"
            continue
        rule = message.removeprefix("Value error, ")
        yield f"{place}: got {_shown(name, problem['input'])}; {rule[0].lower()}{rule[1:]}"


def _remedy(name: str) -> str:
    close = get_close_matches(name.replace("-", "_"), Settings.model_fields, n=1)
    return f"Did you mean {close[0]}?" if close else "elman serve --show-settings lists them all"


def _shown(name: str, value: object) -> str:
    """A refused value, unless it may hold a password."""
    if Settings.model_fields[name].annotation is SecretStr:
        return "a value that is not shown" if value else "nothing"
    return str(value) or "nothing"
