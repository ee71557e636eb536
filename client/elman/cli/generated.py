"""Commands whose options are generated from a model elsewhere: `elman serve` and `elman train`.

The model is imported when the options of its command are needed and not before, so `elman --help` stays fast and needs
neither the server nor torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand
from typer.main import get_command

_GIVEN = "elman.cli.generated"
_HELP_OPTIONS = {"-h", "--help"}


class MissingExtraError(Exception):
    """A command cannot run, because packages that belong to an extra are not installed."""


@dataclass(frozen=True)
class GeneratedOption:
    """An option of a command. Its value is passed on as text; the model parses and checks it.

    Attributes:
        name: the field of the model, such as `chunk_ms` for --chunk-ms.
        help: what it does.
        metavar: what stands for its value; empty for a flag, which also has a --no- form.
        panel: the panel of the help that it stands in.
        default: the default, as text; empty for none.
        is_argument: whether it is not an option, but all positional arguments.
    """

    name: str
    help: str
    metavar: str
    panel: str
    default: str = ""
    is_argument: bool = False


class GeneratedCommand(TyperCommand):
    """A command with generated options, and those of its function behind them.

    The function reads the generated options by `given_options`. Where the packages that they come from are not
    installed, --help names the extra to install, and all other use of the command raises MissingExtraError.
    """

    extra: str  # what to install for the options
    _parameters: list[Any]
    _completed = False
    _missing: ModuleNotFoundError | None = None

    def generated_options(self) -> Iterable[GeneratedOption]:
        """The options to generate."""
        raise NotImplementedError

    # A property, because a command is made at every start, whether it is used or not.
    @property
    def params(self) -> list[Any]:
        if not self._completed:
            self._completed = True
            try:
                self._parameters[:0] = _parameters(self.generated_options())
            except ModuleNotFoundError as error:
                self._missing = error
                self.epilog = escape(f"For all options: pip install 'elman[{self.extra}]'")
        return self._parameters

    @params.setter
    def params(self, value: list[Any]) -> None:
        self._parameters, self._own = value, {parameter.name for parameter in value}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, of which nothing but --help can be known where packages are missing."""
        _ = self.params
        if self._missing is not None and not _HELP_OPTIONS & set(args):
            raise MissingExtraError(
                f"{self._missing.name} is not installed, and this command needs it: pip install 'elman[{self.extra}]'"
            )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Call the function with its own parameters."""
        ctx.meta[_GIVEN] = {
            name: value
            for name, value in ctx.params.items()
            if name not in self._own and ctx.get_parameter_source(name).name == "COMMANDLINE"
        }
        ctx.params = {name: value for name, value in ctx.params.items() if name in self._own}
        return super().invoke(ctx)


def option_name(field: str) -> str:
    """The option of a field: --chunk-ms for chunk_ms."""
    return f"--{field.replace('_', '-')}"


def given_options(ctx: typer.Context) -> dict[str, Any]:
    """The generated options that stand on the command line, by name, as text; flags as bool, arguments as a list."""
    given: dict[str, Any] = ctx.meta[_GIVEN]
    return given


def _parameters(options: Iterable[GeneratedOption]) -> list[Any]:
    """The parameters that typer makes of options."""

    def command() -> None:
        """A function that has the signature of all options."""

    parameters = [_parameter(option) for option in options]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    application = typer.Typer(add_completion=False)
    application.command()(command)
    return list(get_command(application).params)


def _parameter(option: GeneratedOption) -> inspect.Parameter:
    name, shown = option_name(option.name), escape(option.help)
    default: object = option.default or None
    annotation: Any
    if option.is_argument:
        annotation = Annotated[
            list[str] | None, typer.Argument(metavar=option.metavar, help=shown, rich_help_panel=option.panel)
        ]
    elif option.metavar:
        annotation = Annotated[
            str | None, typer.Option(name, metavar=option.metavar, help=shown, rich_help_panel=option.panel)
        ]
    else:
        default = option.default == "true"
        flag = f"{name}/--no-{name[2:]}"
        annotation = Annotated[bool, typer.Option(flag, help=shown, show_default=default, rich_help_panel=option.panel)]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
