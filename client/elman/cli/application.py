"""The application: its commands, and how errors look to a person."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from elman.cli import (
    answering,
    calling,
    embeddings,
    exporting,
    generating,
    inspecting,
    scoring,
    serving,
    sessions,
    training,
)
from elman.cli.generated import MissingExtraError
from elman.cli.printing import shown_name
from elman.errors import ElmanError

app = typer.Typer(
    help="A server for recurrent models: train one, export it, serve it, call it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=training.TrainCommand)(training.train)
app.command()(exporting.export)
app.command()(embeddings.embeddings)
app.command(cls=serving.ServeCommand)(serving.serve)
app.command()(calling.models)
app.command()(generating.generate)
app.command()(answering.translate)
app.command()(answering.ask)
app.command()(calling.classify)
app.command()(scoring.score)
app.command()(inspecting.inspect)
app.command()(calling.health)
app.add_typer(sessions.app, name="session")

_EXTRAS = {
    "matplotlib": "training",
    "pydantic": "training",
    "torch": "training",
    "sacrebleu": "training",
    "onnx": "training",
    "sklearn": "training",
    "onnxruntime": "server",
    "structlog": "server",
    "numpy": "server",
    "tokenizers": "server",
}


def main() -> None:
    """Run the command; what a person can cause is one line on standard error, never a traceback."""
    _prepare_output()
    try:
        try:
            app()
        finally:
            _flush()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(f"{error.name} is not installed, and this command needs it: pip install 'elman[{extra}]'")
    except BrokenPipeError:
        sys.exit(1)  # As typer ends a command whose reader has gone while it wrote.
    except OSError as error:
        _fail(f"{shown_name(str(error.filename))}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        if not isinstance(error, (ElmanError, MissingExtraError, *_other_errors())):
            raise
        _fail(str(error))


def _prepare_output() -> None:
    """What standard output cannot show is escaped; where it is closed, nothing is printed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    else:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


def _flush() -> None:
    """Not left to the end of the interpreter, which cannot tell what has failed."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # So that the interpreter does not try again.
        raise OSError(error.errno, error.strerror, "standard output") from error


def _other_errors() -> tuple[type[Exception], ...]:
    """The errors of the parts that this run has loaded: a client never loads torch to learn their names."""
    homes = {
        "elman_training.training_error": "TrainingError",
        "elman_export.export_error": "ExportError",
        "elman_bundle.bundle_errors": "BundleError",
        "elman_server.errors": "StartError",
    }
    return tuple(getattr(sys.modules[home], name) for home, name in homes.items() if home in sys.modules)


def _fail(message: str) -> NoReturn:
    # As Text, because a message may hold what somebody typed, and that is no markup.
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(1)
