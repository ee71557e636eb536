"""The options of `elman train`, read from the configuration models: which tasks have each, and what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from elman_training.config import RunConfig, TrainingConfig
from elman_training.presets import PRESETS

_FAMILIES: tuple[type[RunConfig], ...] = get_args(get_args(TrainingConfig)[0])
_TASKS: Mapping[type[RunConfig], tuple[str, ...]] = {
    family: get_args(family.model_fields["task"].annotation) for family in _FAMILIES
}
TASKS = tuple(task for tasks in _TASKS.values() for task in tasks)


@dataclass(frozen=True)
class TrainingOption:
    """A field of the configuration models that `elman train` has an option for.

    Attributes:
        name: the field.
        tasks: where it has an effect.
        description: what it does, by task where that differs.
        choices: the values that it may have; none if they are not a list.
        kind: the type of its value: bool, int, float or str.
        default: the default, as text; empty where presets differ from it, or where there is none.
    """

    name: str
    tasks: tuple[str, ...]
    description: str
    choices: tuple[str, ...]
    kind: type
    default: str


def training_options() -> list[TrainingOption]:
    """All fields that have a description, in the order of the models."""
    models: tuple[type[RunConfig], ...] = (RunConfig, *_FAMILIES)
    names = dict.fromkeys(name for model in models for name in model.model_fields)
    return [_option(name, fields) for name in names if (fields := _described(name))]


def corpus_formats() -> dict[str, str]:
    """What the corpus of a task may be, by the names of the tasks that share a description."""
    return {", ".join(tasks): str(family.model_fields["corpus"].description) for family, tasks in _TASKS.items()}


def ineffective(config: RunConfig, given: Iterable[str]) -> tuple[str, dict[str, Any], tuple[str, ...]] | None:
    """The first of the given fields that has no effect in a configuration.

    Returns:
        The field; the values of the other fields that decide it; and the values with which it would have an effect.
        None if all have one.
    """
    for name in given:
        conditions = _conditions(type(config).model_fields[name])
        values = {other: getattr(config, other) for other in conditions}
        if conditions and not any(values[other] in allowed for other, allowed in conditions.items()):
            return name, values, next(iter(conditions.values()))
    return None


def _described(name: str) -> dict[type[RunConfig], FieldInfo]:
    fields = {family: family.model_fields[name] for family in _FAMILIES if name in family.model_fields}
    return {family: field for family, field in fields.items() if field.description}


def _option(name: str, fields: Mapping[type[RunConfig], FieldInfo]) -> TrainingOption:
    tasks = {family: _conditions(field).get("task", _TASKS[family]) for family, field in fields.items()}
    kinds = [kind for field in fields.values() for kind in _kinds(field.annotation)]
    choices = tuple(dict.fromkeys(kind for kind in kinds if isinstance(kind, str)))
    return TrainingOption(
        name=name,
        tasks=tuple(task for family in fields for task in tasks[family]),
        description=_by_task({tasks[family]: str(field.description) for family, field in fields.items()}),
        choices=choices,
        kind=str if choices else kinds[0],
        default=_default(name, fields, tasks),
    )


def _default(
    name: str, fields: Mapping[type[RunConfig], FieldInfo], tasks: Mapping[type[RunConfig], tuple[str, ...]]
) -> str:
    if any(name in preset for preset in PRESETS.values()):
        return ""
    return _by_task({tasks[family]: _text(field.default) for family, field in fields.items()}, "; ")


def _text(default: object) -> str:
    if default is None or default is PydanticUndefined:
        return ""
    if isinstance(default, float):
        return f"{default:g}"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _by_task(texts: Mapping[tuple[str, ...], str], separator: str = " ") -> str:
    """The one text of all tasks; or the texts, each with its tasks before it unless it names them itself."""
    tasks_of_text: dict[str, list[str]] = {}
    for tasks, text in texts.items():
        tasks_of_text.setdefault(text, []).extend(tasks)
    if len(tasks_of_text) == 1:
        return next(iter(tasks_of_text))
    return separator.join(
        text if text.startswith(f"{tasks[0]}:") else f"{', '.join(tasks)}: {text}"
        for text, tasks in tasks_of_text.items()
    )


def _kinds(annotation: Any) -> list[Any]:
    """The types of an annotation, and the values of a Literal, without None."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    inner = get_args(annotation)
    if not inner:
        return [] if annotation is NoneType else [annotation]
    return [kind for part in inner for kind in _kinds(part) if not hasattr(part, "metadata")]


def _conditions(field: FieldInfo) -> dict[str, tuple[str, ...]]:
    extra = field.json_schema_extra
    only: Any = extra.get("only", {}) if isinstance(extra, dict) else {}
    return {name: tuple(values) for name, values in only.items()}
