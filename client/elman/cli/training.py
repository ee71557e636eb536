"""`elman train`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from elman.cli.generated import GeneratedCommand, GeneratedOption, given_options, option_name

if TYPE_CHECKING:
    from pydantic import ValidationError

    from elman_training import Result, TrainingConfig
    from elman_training.options import TrainingOption

_FEW = 2  # tasks that have a panel of their own
_METAVARS = {bool: "", int: "N", float: "X", str: "TEXT"}


class TrainCommand(GeneratedCommand):
    """`elman train`: an option for each field of the configuration models, in a panel for the tasks that have it."""

    extra = "training"

    def generated_options(self) -> Iterable[GeneratedOption]:
        """--preset, and one option for each field."""
        from elman_training.config import RunConfig
        from elman_training.options import TASKS, training_options

        self.epilog = _epilog()
        options = {option.name: option for option in training_options()}
        yield GeneratedOption("task", options.pop("task").description, "TASK", "Options", "lm, or that of the preset")
        corpus = str(RunConfig.model_fields[options.pop("corpus").name].description)
        yield GeneratedOption("corpus", corpus, "PATH", "Options", "that of the preset")
        yield GeneratedOption("preset", "Values to start from (see below).", "NAME", "Options", "by task")
        ranks = {option.name: _rank(option, TASKS) for option in options.values()}
        for option in sorted(options.values(), key=lambda option: ranks[option.name]):
            yield _option(option, TASKS)


def _epilog() -> str:
    """What the corpora and the presets are, below the options."""
    from elman_training.options import corpus_formats
    from elman_training.presets import PRESET_NOTES, PRESETS

    corpora = [f"  {tasks}: {text}" for tasks, text in corpus_formats().items()]
    presets = [f"  {name} ({values['task']}): {PRESET_NOTES[name]}" for name, values in PRESETS.items()]
    return escape("\n".join(["Corpora", *corpora, "", "Presets", *presets]))


def _rank(option: TrainingOption, all_tasks: tuple[str, ...]) -> tuple[int, ...]:
    """Orders options by their panels: those of all tasks, those of several, then task by task."""
    tasks = tuple(all_tasks.index(task) for task in option.tasks)
    return (tasks != tuple(range(len(all_tasks))), len(tasks) <= _FEW, tasks[0], -len(tasks))


def _option(option: TrainingOption, all_tasks: tuple[str, ...]) -> GeneratedOption:
    text, tasks = option.description, ", ".join(option.tasks)
    if option.tasks == all_tasks:
        panel = "Every task"
    elif len(option.tasks) > _FEW:
        panel = "Several tasks"
        text = text if text.startswith(option.tasks[0]) else f"{tasks}: {text[0].lower()}{text[1:]}"
    else:
        panel = f"Only {' and '.join(option.tasks)}"
    return GeneratedOption(option.name, text, "|".join(option.choices) or _METAVARS[option.kind], panel, option.default)


def train(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run, which must be new.", show_default="runs/ and the preset or corpus"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Resume this stopped run with its own configuration.", show_default=False)
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after this step; --resume continues.", show_default="never", min=1)
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop after this time; --resume continues.", show_default="never", min=0)
    ] = None,
) -> None:
    """Train a model. Ctrl-C stops it and keeps what was learned.

    An option that is not given has the value of the preset, or else its default.
    """
    import elman_training

    console = Console(stderr=True, highlight=False, markup=False)
    given = given_options(context)
    if resume is not None:
        _refuse_with_resume([*given, *(["output"] if output is not None else [])])
        folder = resume
        result = elman_training.resume(resume, console=console, stop_after=stop_after, minutes=max_minutes)
    else:
        config, name = _configure(given)
        folder = output or Path("runs") / name
        result = elman_training.train(config, folder, console=console, stop_after=stop_after, minutes=max_minutes)
    _report(result, folder, console)


def _configure(given: dict[str, Any]) -> tuple[TrainingConfig, str]:
    """The configuration that the options ask for, and what its run is called if nothing else is said.

    Raises:
        typer.BadParameter: an option is wrong, or has no effect.
    """
    from pydantic import ValidationError

    from elman_training import parse_config
    from elman_training.options import ineffective
    from elman_training.presets import DEFAULT_PRESETS, PRESETS

    given = dict(given)
    task, corpus, preset = (given.pop(name, None) for name in ("task", "corpus", "preset"))
    if task is not None and task not in DEFAULT_PRESETS:
        raise typer.BadParameter(f"--task: got {task}; expected one of {', '.join(DEFAULT_PRESETS)}")
    chosen = preset or DEFAULT_PRESETS[task or "lm"]
    if chosen not in PRESETS:
        raise typer.BadParameter(f"--preset: got {chosen}; expected one of {', '.join(PRESETS)}")
    values = dict(PRESETS[chosen])
    if task not in (None, values["task"]):
        raise typer.BadParameter(f"--task: got {task}; the preset {chosen} is for the task {values['task']}")
    embedded = _set_corpus(values, corpus, chosen)
    try:
        config = parse_config({"preset": chosen, **values, **given})
    except ValidationError as error:
        _refuse_value(error, str(values["task"]))
    found = ineffective(config, given)
    if found is not None:
        _refuse_ineffective(*found, given)
    return config, chosen if embedded or preset else Path(config.corpus).stem


def _set_corpus(values: dict[str, Any], corpus: str | None, preset: str) -> bool:
    """Put the corpus into the values of a preset.

    Returns:
        Whether it is an embedded one.

    Raises:
        typer.BadParameter: the preset needs another corpus.
    """
    from elman_training.config import DIGITS, STORIES
    from elman_training.corpus_files import STDLIB

    own = values.get("corpus")
    if corpus in (None, STDLIB, DIGITS, STORIES):
        if own is None or corpus not in (None, own):
            rule = f"is for the corpus {own}. Give it, or" if own else "needs a corpus of your own. Give"
            raise typer.BadParameter(f"--corpus: got {corpus or 'none'}; the preset {preset} {rule} a file or a folder")
        return True
    values["corpus"] = str(Path(str(corpus)).resolve())
    if own == STDLIB:
        # Chosen for millions of characters of source; another text is read whole.
        values.pop("minimum_count", None)
        values.pop("corpus_limit", None)
    return False


def _refuse_with_resume(given: Iterable[str]) -> None:
    for name in given:
        raise typer.BadParameter(
            f"{option_name(name)}: cannot be combined with --resume; a resumed run keeps its own values"
        )


def _refuse_value(error: ValidationError, task: str) -> NoReturn:
    from elman_training.options import training_options

    problem = error.errors()[0]
    name, got = str(problem["loc"][-1]), problem["input"]  # The task stands before the name.
    rule = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        (tasks,) = (option.tasks for option in training_options() if option.name == name)
        _refuse_ineffective(name, {"task": task}, tasks, {name: got})
    raise typer.BadParameter(f"{option_name(name)}: got {_text(got)}; {rule[0].lower()}{rule[1:]}") from error


def _refuse_ineffective(
    name: str, values: Mapping[str, Any], effective: Iterable[str], given: Mapping[str, Any]
) -> NoReturn:
    by = " and ".join(f"{option_name(other)} {value}" for other, value in values.items())
    raise typer.BadParameter(
        f"{option_name(name)}: got {_text(given[name])}; it has no effect with {by}, only with {' or '.join(effective)}"
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _report(result: Result, folder: Path, console: Console) -> None:
    """Print what a training has reached, and the command that follows it."""
    from elman_training.checkpoint import CURVE, load_labels

    validation = result.validation
    # In one piece and from one start, where the validations on the way cut the text into rows.
    console.print(f"kept, measured exactly: {validation.nats:.4f} nats, {validation.bits:.4f} bits, held out")
    if validation.accuracy is not None and validation.majority is not None and load_labels(folder) is not None:
        console.print(f"accuracy: {validation.accuracy:.2%}; of the most frequent class: {validation.majority:.2%}")
    for figure, value in result.measured.items():
        console.print(f"{figure.replace('_', ' ')}: {value:.4g}")
    console.print(f"curve: {folder / CURVE}")
    if not result.finished:
        console.print(f"continue with: elman train --resume {folder}")
    if result.stopped:
        raise typer.Exit(130)  # A command chained to this one must not run.
    console.print(f"next: elman export {folder}")
