"""The application: its commands, and how errors are reported."""

from __future__ import annotations

import inspect
import io
import os
import sys
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from elman.cli import (
    answering,
    classifying,
    embeddings,
    exporting,
    generating,
    inspecting,
    scoring,
    server_status,
    serving,
    session_commands,
    training,
)
from elman.cli.generated import MissingExtraError
from elman.cli.printing import shown_name
from elman.errors import ElmanError

app = typer.Typer(
    help="Train, export and serve recurrent models, and call a server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_MAKE, _SERVE, _CALL = "Make a model", "Run a server", "Call a server"
app.command(cls=training.TrainCommand, rich_help_panel=_MAKE)(training.train)
app.command(rich_help_panel=_MAKE)(exporting.export)
app.command(rich_help_panel=_MAKE)(embeddings.embeddings)
app.command(cls=serving.ServeCommand, rich_help_panel=_SERVE)(serving.serve)
app.command(rich_help_panel=_SERVE)(server_status.health)
app.command(rich_help_panel=_SERVE)(server_status.models)
app.command(rich_help_panel=_CALL)(generating.generate)
app.command(rich_help_panel=_CALL)(answering.translate)
app.command(rich_help_panel=_CALL)(answering.ask)
app.command(rich_help_panel=_CALL)(classifying.classify)
app.command(rich_help_panel=_CALL)(scoring.score)
app.command(rich_help_panel=_CALL)(inspecting.inspect)
app.add_typer(session_commands.app, name="session", rich_help_panel=_CALL)
for command in (*app.registered_commands, *session_commands.app.registered_commands):
    # typer keeps the line breaks of a docstring's paragraphs, which fit no terminal.
    paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
    command.help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)

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
    """Run the command. An error that a user can cause is one line on standard error, never a traceback."""
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
        sys.exit(1)  # The same status as typer's for a closed pipe.
    except OSError as error:
        _fail(f"{shown_name(str(error.filename))}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        if not isinstance(error, (ElmanError, MissingExtraError, *_other_errors())):
            raise
        _fail(str(error))


def _prepare_output() -> None:
    """Escape what standard output cannot show, and print nothing if it is closed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    else:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the end


def _flush() -> None:
    """Flush standard output before the interpreter exits, which would not say what failed."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # So that the interpreter does not flush again.
        raise OSError(error.errno, error.strerror, "standard output") from error


def _other_errors() -> tuple[type[Exception], ...]:
    """The errors of the packages that are loaded; a client must not load torch to know their classes."""
    modules = {
        "elman_training.training_error": "TrainingError",
        "elman_export.export_error": "ExportError",
        "elman_bundle.bundle_errors": "BundleError",
        "elman_server.errors": "StartError",
    }
    return tuple(getattr(sys.modules[module], name) for module, name in modules.items() if module in sys.modules)


def _fail(message: str) -> NoReturn:
    # As Text, because a message may quote user input, which must not be interpreted as markup.
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(1)
