"""`elman serve`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elman.cli.generated import GeneratedCommand, GeneratedOption, given_options
from elman.cli.printing import print_table

if TYPE_CHECKING:
    from elman_server.settings import LoadedSettings

_NEEDED = ("fcntl", "resource")  # modules of Python that Windows does not have
_RUN_FILE = "config.json"  # of a training run; known here because importing elman_training needs torch


class ServeCommand(GeneratedCommand):
    """`elman serve`: an option for each setting of the server."""

    extra = "server"

    def generated_options(self) -> Iterable[GeneratedOption]:
        """One option for each setting."""
        from elman_server.settings import Settings, default_of, metavar_of, panel_of

        for name, field in Settings.model_fields.items():
            yield GeneratedOption(
                name=name,
                help=str(field.description),
                metavar=metavar_of(field),
                panel=panel_of(field),
                default=default_of(field),
                is_argument=name == "bundles",
            )


def serve(
    context: typer.Context,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print the settings in effect and their sources, then exit.")
    ] = False,
) -> None:
    """Serve bundles until SIGTERM or Ctrl-C, then let running calls finish; a second signal ends them.

    Each option is also an environment variable (--chunk-ms: ELMAN_CHUNK_MS) and
    a key of the file that --config names (chunk_ms). The command line overrides
    the environment, which overrides the file.
    """
    from elman_server.errors import SettingsError
    from elman_server.settings import load_settings

    loaded = load_settings(given_options(context))
    if show_settings:
        _print_settings(loaded)
        return
    _check_system()
    bundles = loaded.settings.bundles
    if not bundles:
        raise SettingsError("bundles: got none; at least one is needed. Name it as an argument or in ELMAN_BUNDLES")
    _refuse_runs(bundles)
    from elman_server.process import run

    run(loaded.settings)


def _check_system() -> None:
    """Refuse systems without what the server needs of them.

    Raises:
        StartError: says where it runs.
    """
    from elman_server.errors import StartError

    try:
        for name in _NEEDED:
            import_module(name)
    except ModuleNotFoundError as error:
        raise StartError(
            f"elman serve runs on Linux and macOS; this system has no {error.name}. On Windows, run it in WSL or in "
            "the container image; all other commands work here"
        ) from error


def _refuse_runs(paths: Iterable[Path]) -> None:
    """Refuse training runs, which are easily taken for bundles.

    Raises:
        BundleError: one of the folders is a run.
    """
    from elman_bundle import MANIFEST, BundleError

    for path in paths:
        if (path / _RUN_FILE).is_file() and not any((*path.glob(MANIFEST), *path.glob(f"*/{MANIFEST}"))):
            raise BundleError(f"bundles: got {path}; it is a training run. Make a bundle of it: elman export {path}")


def _print_settings(loaded: LoadedSettings) -> None:
    from elman_server.settings import misspelled_variables, shown_value

    for name, meant in misspelled_variables().items():
        print(f"warning: {name} is not a setting. Did you mean {meant}?", file=sys.stderr)
    rows = [(name, shown_value(loaded.settings, name), source) for name, source in loaded.sources.items()]
    print_table(("setting", "value", "source"), rows)
