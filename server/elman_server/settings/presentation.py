"""How a setting is written: its option, variable, panel of the help, placeholder and values as text."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from elman_server.settings.model import PREFIX, Settings
from elman_server.settings.store_names import public_store


def option_of(name: str) -> str:
    """The option of a setting: --chunk-ms for chunk_ms. Bundles are the arguments."""
    return "BUNDLES" if name == "bundles" else f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """The environment variable of a setting: ELMAN_CHUNK_MS for chunk_ms."""
    return f"{PREFIX}{name.upper()}"


def panel_of(field: FieldInfo) -> str:
    """The panel of the help, and the section of the reference, that a setting stands in."""
    return str(_presentation(field)["panel"])


def metavar_of(field: FieldInfo) -> str:
    """What stands for a setting's value: a unit, a form, or the choices; empty for a flag."""
    given = str(_presentation(field)["metavar"])
    if given or field.annotation is bool:
        return given
    if isinstance(field.annotation, type) and issubclass(field.annotation, StrEnum):
        return "|".join(field.annotation)
    return "N"


def default_of(field: FieldInfo) -> str:
    """A setting's default as it is written in a file or on the command line; empty where there is none."""
    return _text(field.default)


def shown_value(settings: Settings, name: str) -> str:
    """The value of a setting as it may be shown in a log, without user names and passwords."""
    return _text(getattr(settings, name))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, SecretStr):
        return public_store(value.get_secret_value())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _presentation(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    return extra
