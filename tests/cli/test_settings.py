"""The settings of a server: one declaration, and options, variables, a file and a reference generated from it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from typer.core import TyperCommand
from typer.main import get_command
from typer.testing import CliRunner

from elman.cli.application import app
from elman.connection import DEFAULT_ADDRESS
from elman_server.errors import SettingsError
from elman_server.settings import (
    Fsync,
    LogFormat,
    ProviderChoice,
    Settings,
    default_of,
    load_settings,
    misspelled_variables,
    option_of,
    panel_of,
    settings_table,
    variable_of,
)
from tests.support.paths import ROOT

FIELDS = list(Settings.model_fields)
PASSWORD = "hunter2"
# A value that is not the default, as text, for each setting but --config.
OTHERS = {
    "bundles": "one,two",
    "listen": "0.0.0.0:1234",
    "gather_ms": "20.5",
    "message_rate": "300",
    "write_timeout": "1.5",
    "idle_timeout": "2.5",
    "drain_timeout": "7",
    "provider": "cpu",
    "threads": "3",
    "slots": "9",
    "chunk_ms": "2.5",
    "waiting_limit": "17",
    "max_tokens_limit": "100",
    "input_limit": "200",
    "message_limit": "30000",
    "store": "sessions.db",
    "store_limit": "5",
    "fsync": "always",
    "session_memory": "8",
    "session_ttl": "60",
    "sessions_per_caller": "4",
    "snapshot_steps": "64",
    "prefix_cache": "0",
    "share_prefixes": "true",
    "log_format": "json",
    "verbose": "true",
}
DEFAULTS = Settings(
    bundles=(),
    config=None,
    listen="127.0.0.1:50051",
    gather_ms=40.0,
    message_rate=0.0,
    write_timeout=60.0,
    idle_timeout=600.0,
    drain_timeout=8.0,
    provider=ProviderChoice.AUTO,
    threads=0,
    slots=128,
    chunk_ms=5.0,
    waiting_limit=1024,
    max_tokens_limit=65_536,
    input_limit=65_536,
    message_limit=4 * 1024 * 1024,
    store=SecretStr("memory"),
    store_limit=4096,
    fsync=Fsync.CHECKPOINT,
    session_memory=256,
    session_ttl=0.0,
    sessions_per_caller=0,
    snapshot_steps=512,
    prefix_cache=64,
    share_prefixes=False,
    log_format=LogFormat.CONSOLE,
    verbose=False,
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all variables; tests set those that they need."""
    for name in FIELDS:
        monkeypatch.delenv(variable_of(name), raising=False)


def write(path: Path, **values: str) -> Path:
    """Write a configuration file; values are given in TOML syntax."""
    path.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
    return path


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)], env={"COLUMNS": "200"})


def refusal(command_line: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(command_line)
    return str(refused.value)


# One declaration.


def test_defaults() -> None:
    assert Settings() == DEFAULTS
    assert Settings().listen == DEFAULT_ADDRESS  # the default address of clients
    assert OTHERS.keys() == set(FIELDS) - {"config"}


def test_settings_in_a_program_read_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_SLOTS", "9")
    assert Settings() == DEFAULTS


def test_settings_cannot_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().slots = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_has_an_option_a_variable_and_a_reference_row(name: str) -> None:
    field, options = Settings.model_fields[name], serve_parameters()
    assert field.description
    assert field.description.endswith(".")
    shown = options[name]
    assert shown.rich_help_panel == panel_of(field)
    assert shown.help == field.description
    assert name == "bundles" or option_of(name) in shown.opts
    (row,) = (line for line in settings_table().splitlines() if f"| `{variable_of(name)}` |" in line)
    assert field.description in row.replace(r"\|", "|")
    assert f"| `{default_of(field)}` |" in row or not default_of(field)
    assert name == "bundles" or f"| `{option_of(name)}" in row


def serve_parameters() -> dict[str, Any]:
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    assert isinstance(command, TyperCommand)
    return {str(parameter.name): parameter for parameter in command.params}


def test_help_groups_the_options() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    panels = re.findall(r"╭─ ([A-Z][a-z ]*) ─", result.stdout)
    expected = ["Arguments", "Options", "Network", "Model execution", "Limits", "Sessions", "Prefix cache", "Logging"]
    assert panels == expected
    for name in FIELDS[1:]:
        assert option_of(name) in result.stdout


def test_the_reference_page_is_generated() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate" / "settings.py")]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert result.stdout.startswith("# Settings\n")
    assert settings_table().strip() in result.stdout


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml", "docker-compose.gpu.yml"])
def test_containers_set_variables_that_exist(file: str) -> None:
    named = set(re.findall(r"\bELMAN_[A-Z_]+", (ROOT / file).read_text()))
    assert named
    assert named <= {*map(variable_of, FIELDS), "ELMAN_SERVER"}


# Sources.


@pytest.mark.parametrize("name", OTHERS)
def test_each_setting_can_come_from_each_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = OTHERS[name]
    expected = Settings.model_validate({name: text})
    assert getattr(expected, name) != getattr(DEFAULTS, name)
    given = load_settings({name: text})
    assert (given.settings, given.sources[name]) == (expected, option_of(name))
    quoted = text if re.fullmatch(r"[0-9.]+|true", text) else f'"{text}"'
    path = write(tmp_path / "elman.toml", **{name: quoted})
    filed = load_settings({"config": str(path)})
    assert filed.settings == expected.model_copy(update={"config": path})
    assert filed.sources[name] == str(path)
    monkeypatch.setenv(variable_of(name), text)
    result = load_settings({})
    assert (result.settings, result.sources[name]) == (expected, variable_of(name))
    assert {result.sources[other] for other in FIELDS if other != name} == {"default"}


def test_command_line_overrides_environment_overrides_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "elman.toml", slots="1", threads="1", chunk_ms="1", bundles='["a", "b"]')
    monkeypatch.setenv("ELMAN_CONFIG", str(path))
    monkeypatch.setenv("ELMAN_SLOTS", "2")
    monkeypatch.setenv("ELMAN_THREADS", "2")
    loaded = load_settings({"slots": "3"})
    settings, sources = loaded.settings, loaded.sources
    assert (settings.slots, settings.threads, settings.chunk_ms, settings.session_ttl) == (3, 2, 1.0, 0.0)
    assert settings.bundles == (Path("a"), Path("b"))
    assert [sources[name] for name in ("slots", "threads", "chunk_ms", "session_ttl")] == [
        "--slots", "ELMAN_THREADS", str(path), "default",
    ]  # fmt: skip


def test_config_option_overrides_the_config_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_CONFIG", str(write(tmp_path / "other.toml", slots="1", threads="1")))
    chosen = write(tmp_path / "elman.toml", slots="2")
    settings = load_settings({"config": chosen}).settings
    assert (settings.config, settings.slots, settings.threads) == (chosen, 2, 0)


def test_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_STORE", "")
    monkeypatch.setenv("ELMAN_BUNDLES", "")
    assert load_settings({}).settings == DEFAULTS


def test_command_line_flag_overrides_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_SHARE_PREFIXES", "1")
    assert "share_prefixes       true             ELMAN_SHARE_PREFIXES" in invoke("--show-settings").stdout
    off = invoke("--show-settings", "--no-share-prefixes").stdout
    assert "share_prefixes       false            --share-prefixes" in off


def test_settings_are_shown_with_their_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_GATHER_MS", "12.5")
    path = write(tmp_path / "elman.toml", store=f'"redis://user:{PASSWORD}@cache:7000/2"')
    result = invoke("one", "two", "--config", path, "--slots", 4, "--show-settings")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["bundles"] == ["one,two", "BUNDLES"]
    assert rows["config"] == [str(path), "--config"]
    assert rows["slots"] == ["4", "--slots"]
    assert rows["gather_ms"] == ["12.5", "ELMAN_GATHER_MS"]
    assert rows["store"] == ["redis://cache:7000/2", str(path)]
    assert rows["chunk_ms"] == ["5", "default"]
    assert rows.keys() == {"setting", *FIELDS}
    assert PASSWORD not in result.output


# Errors.


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("slots", "0", "input should be greater than or equal to 1"),
        ("slots", "many", "input should be a valid integer, unable to parse string as an integer"),
        ("message_limit", "268435457", "input should be less than or equal to 268435456"),
        ("chunk_ms", "0.05", "input should be greater than or equal to 0.1"),
        ("drain_timeout", "nan", "input should be greater than or equal to 0"),
        ("write_timeout", "soon", "input should be a valid number, unable to parse string as a number"),
        ("provider", "gpu", "input should be 'auto', 'cpu' or 'cuda'"),
        ("fsync", "sometimes", "input should be 'always', 'checkpoint' or 'never'"),
        ("verbose", "perhaps", "input should be a valid boolean, unable to interpret input"),
        ("listen", "nonsense", "expected HOST:PORT, such as 0.0.0.0:50051 or [::1]:50051, or unix:PATH"),
        ("listen", "localhost:65536", "expected HOST:PORT, such as 0.0.0.0:50051 or [::1]:50051, or unix:PATH"),
    ],
)
def test_invalid_value_is_reported_with_its_source(
    name: str, text: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal({name: text}) == f"{option_of(name)}: got {text}; {rule}"
    path = write(tmp_path / "elman.toml", **{name: f'"{text}"'})
    assert refusal({"config": path}) == f"{path}: {name}: got {text}; {rule}"
    monkeypatch.setenv(variable_of(name), text)
    assert refusal({}) == f"{variable_of(name)}: got {text}; {rule}"


def test_each_invalid_value_is_reported_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_THREADS", "-1")
    assert refusal({"slots": "0"}).splitlines() == [
        "ELMAN_THREADS: got -1; input should be greater than or equal to 0",
        "--slots: got 0; input should be greater than or equal to 1",
    ]


def test_booleans_are_not_accepted_as_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "elman.toml", slots="true")
    assert refusal({"config": path}) == f"{path}: slots: got True; expected a number"


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("slotz", "Did you mean slots?"),
        ("session-ttl", "Did you mean session_ttl?"),
        ("chunk", "Did you mean chunk_ms?"),
        ("qqqqq", "elman serve --show-settings lists them all"),
    ],
)
def test_unknown_key_is_rejected_with_a_suggestion(key: str, remedy: str, tmp_path: Path) -> None:
    path = write(tmp_path / "elman.toml", slots="3", **{key: "5"})
    assert refusal({"config": path}) == f"{path}: {key}: there is no such setting. {remedy}"


def test_unusable_files_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing.toml"
    assert refusal({"config": missing}) == f"--config: got {missing}; there is no such file"
    monkeypatch.setenv("ELMAN_CONFIG", str(tmp_path))
    assert refusal({}) == f"ELMAN_CONFIG: got {tmp_path}; there is no such file"
    path = tmp_path / "elman.toml"
    path.write_text("slots 3\n")
    assert refusal({"config": path}).startswith(f"{path}: not valid TOML: ")
    path.write_bytes(b"slots = \xff\n")
    assert refusal({"config": path}).startswith(f"{path}: not valid TOML: ")
    write(path, config='"other.toml"')
    assert refusal({"config": path}) == f"{path}: config: a file cannot name another one. Use --config"


def test_misspelled_variable_is_detected() -> None:
    names = ["ELMAN_SLOT", "ELMAN_SLOTS", "ELMAN_SERVER", "ELMAN_PORT_50051_TCP", "PATH", "ELMAN_SESSIONS_TTL"]
    assert misspelled_variables(names) == {"ELMAN_SLOT": "ELMAN_SLOTS", "ELMAN_SESSIONS_TTL": "ELMAN_SESSION_TTL"}


def test_misspelled_variable_is_shown_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_CHUNK", "3")
    result = invoke("--show-settings")
    assert result.exit_code == 0
    assert result.stderr == "warning: ELMAN_CHUNK is not a setting. Did you mean ELMAN_CHUNK_MS?\n"


# Secrets.


@pytest.mark.parametrize(
    "store",
    [
        f"redis://user:{PASSWORD}/@localhost/0",
        f"redis://:{PASSWORD}@localhost:port/0",
        f"http://:{PASSWORD}@localhost/0",
        f"redis://:{PASSWORD}@localhost/0#fragment",
    ],
)
def test_errors_do_not_contain_passwords(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = "got a value that is not shown; expected redis://HOST:PORT/DATABASE"
    assert refusal({"store": store}).startswith(f"--store: {rule}")
    path = write(tmp_path / "elman.toml", store=f'"{store}"')
    assert refusal({"config": path}).startswith(f"{path}: store: {rule}")
    monkeypatch.setenv("ELMAN_STORE", store)
    assert refusal({}).startswith(f"ELMAN_STORE: {rule}")
    with pytest.raises(ValidationError) as refused:
        Settings(store=SecretStr(store))
    assert PASSWORD not in str(refused.value) + refusal({}) + refusal({"config": path}) + refusal({"store": store})


def test_printed_settings_do_not_contain_passwords() -> None:
    settings = Settings(store=SecretStr(f"redis://:{PASSWORD}@localhost/0"))
    assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_a_store_has_a_name() -> None:
    assert refusal({"store": ""}).startswith("--store: got nothing; ")
