"""The settings of a server, each declared once.

A field of `Settings` is an option of `elman serve`, an environment variable, a key of the configuration file and a row
of the reference table. All four are generated from the field: its name, type, bounds, default, description and panel.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from elman_server.settings.store_names import MEMORY, public_store

PREFIX = "ELMAN_"  # of the environment variables
_HIGHEST_PORT = 2**16 - 1


class ProviderChoice(StrEnum):
    """Where models run, as the operator asks for it."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Fsync(StrEnum):
    """When commits to a SQLite store are forced to the disk. A killed server loses nothing in any mode; the modes
    differ in what a power failure may destroy."""

    ALWAYS = "always"  # nothing that was acknowledged
    CHECKPOINT = "checkpoint"  # commits since the last checkpoint of the write-ahead log
    NEVER = "never"  # what the system has not written by itself, and possibly the integrity of the file


class LogFormat(StrEnum):
    """How log events are written to standard error."""

    CONSOLE = "console"
    JSON = "json"


def _in(panel: str, metavar: str = "") -> dict[str, Any]:
    """Presentation of a field: its panel in the help, and what stands for its value (default: by its type)."""
    return {"panel": panel, "metavar": metavar}


class Settings(BaseSettings):
    """How to serve.

    Constructing `Settings` reads nothing but its arguments; `load_settings` also reads the environment and a file.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    bundles: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Bundles to serve, or folders of bundles.",
        json_schema_extra=_in("Arguments", "BUNDLE"),
    )
    config: Path | None = Field(
        default=None,
        description="Read settings from this TOML file; options and environment variables override it.",
        json_schema_extra=_in("Options", "FILE"),
    )

    listen: str = Field(
        default="127.0.0.1:50051",
        description="Address to listen on: HOST:PORT, with IPv6 addresses in brackets, where port 0 picks a free port; "
        "or unix:PATH.",
        json_schema_extra=_in("Network", "ADDRESS"),
    )
    gather_ms: float = Field(
        default=40.0,
        ge=0,
        description="Time for which the tokens of a stream are collected into one message; the first token is sent "
        "immediately, and a request may set an interval of its own.",
        json_schema_extra=_in("Network", "MS"),
    )
    message_rate: float = Field(
        default=0.0,
        ge=0,
        description="Messages per second to all streams of a model together, approximately: above it, tokens are "
        "collected for longer than --gather-ms. 0 adapts to the number of cores and the measured load.",
        json_schema_extra=_in("Network", "PER_SECOND"),
    )
    write_timeout: float = Field(
        default=60.0,
        ge=0.1,
        description="End a call whose client has left a message unread for this long.",
        json_schema_extra=_in("Network", "SECONDS"),
    )
    idle_timeout: float = Field(
        default=600.0,
        ge=0.1,
        description="End a stream of requests on which neither side has sent anything for this long, or nothing at all "
        "within half a minute.",
        json_schema_extra=_in("Network", "SECONDS"),
    )
    drain_timeout: float = Field(
        default=8.0,
        ge=0,
        description="Time that running calls have to finish after SIGTERM. The end of the server takes 1.5 s more at "
        "most, and `docker stop` kills after 10.",
        json_schema_extra=_in("Network", "SECONDS"),
    )

    provider: ProviderChoice = Field(
        default=ProviderChoice.AUTO,
        description="Where models run: auto takes CUDA if it loads, otherwise the CPU; cuda refuses to start without "
        "CUDA.",
        json_schema_extra=_in("Model execution"),
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="CPU threads per model step; 0 takes one per available core.",
        json_schema_extra=_in("Model execution"),
    )
    slots: int = Field(
        default=128,
        ge=1,
        description="Sequences of one model that run at the same time.",
        json_schema_extra=_in("Model execution"),
    )
    chunk_ms: float = Field(
        default=5.0,
        ge=0.1,
        description="Time that one run of a model may take: the more, the more tokens per second; the less, the sooner "
        "a new request starts.",
        json_schema_extra=_in("Model execution", "MS"),
    )

    waiting_limit: int = Field(
        default=1024,
        ge=0,
        description="Requests of one model that may wait for a slot; further ones are refused. At most --slots and "
        "this many streams of pieces are open together.",
        json_schema_extra=_in("Limits"),
    )
    max_tokens_limit: int = Field(
        default=65_536,
        ge=1,
        description="Largest max_tokens that a request may ask for.",
        json_schema_extra=_in("Limits", "TOKENS"),
    )
    input_limit: int = Field(
        default=65_536,
        ge=1,
        description="Most tokens in a prompt, an input or a piece.",
        json_schema_extra=_in("Limits", "TOKENS"),
    )
    message_limit: int = Field(
        default=4_194_304,
        ge=1,
        le=2**28,
        description="Size of the largest message that is accepted or sent.",
        json_schema_extra=_in("Limits", "BYTES"),
    )

    store: SecretStr = Field(
        default=SecretStr(MEMORY),
        min_length=1,
        description="Where sessions are kept: memory (they end with the server), a SQLite file, or the URL of a Redis "
        "or Valkey that several servers share (redis://HOST:PORT/DB, rediss:// for TLS, unix:// for a socket).",
        json_schema_extra=_in("Sessions", "memory|FILE|URL"),
    )
    store_limit: int = Field(
        default=4096,
        ge=1,
        description="Space for all sessions together, in memory or in a SQLite file; a Redis has its own maxmemory.",
        json_schema_extra=_in("Sessions", "MIB"),
    )
    fsync: Fsync = Field(
        default=Fsync.CHECKPOINT,
        description="When the SQLite file is forced to the disk: a power failure then destroys nothing (always), the "
        "last moments (checkpoint) or more (never); a killed server never loses anything.",
        json_schema_extra=_in("Sessions"),
    )
    session_memory: int = Field(
        default=256,
        ge=1,
        description="Memory for idle sessions; the least recently used leave it for the store.",
        json_schema_extra=_in("Sessions", "MIB"),
    )
    session_ttl: float = Field(
        default=0.0,
        ge=0,
        description="Delete a session that has not been used for this long; 0 never does.",
        json_schema_extra=_in("Sessions", "SECONDS"),
    )
    sessions_per_caller: int = Field(
        default=0,
        ge=0,
        description="Sessions that one caller may have; 0 sets no limit.",
        json_schema_extra=_in("Sessions"),
    )
    snapshot_steps: int = Field(
        default=512,
        ge=1,
        description="Steps between two saved states of a session, approximately: the most that are computed again "
        "after a crash or a rewind.",
        json_schema_extra=_in("Sessions", "STEPS"),
    )

    prefix_cache: int = Field(
        default=64,
        ge=0,
        description="Memory for the states behind prompts and inputs, so that a repeated beginning is not computed "
        "again; 0 turns the cache off.",
        json_schema_extra=_in("Prefix cache", "MIB"),
    )
    share_prefixes: bool = Field(
        default=False,
        description="Share cached prefixes between callers; response times can then reveal what other callers have "
        "sent.",
        json_schema_extra=_in("Prefix cache"),
    )

    log_format: LogFormat = Field(
        default=LogFormat.CONSOLE,
        description="console for people, json for one object per line.",
        json_schema_extra=_in("Logging"),
    )
    verbose: bool = Field(
        default=False,
        description="Also log every call that is cancelled.",
        json_schema_extra=_in("Logging"),
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing but the arguments: a server inside another program depends on no variable of that program."""
        return (init_settings,)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("expected a number")
        return value

    @field_validator("bundles", mode="before")
    @classmethod
    def _split_bundles(cls, value: object) -> object:
        return [path.strip() for path in value.split(",") if path.strip()] if isinstance(value, str) else value

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        if value.startswith("unix:"):
            path = value.removeprefix("unix:")
            if not path or (path.startswith("//") and not path.startswith("///")):
                raise ValueError("expected unix:PATH, such as unix:/run/elman.sock")
            return value
        host, _, port = value.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not (bare and port.isdecimal() and int(port) <= _HIGHEST_PORT):
            raise ValueError("expected HOST:PORT, such as 0.0.0.0:50051 or [::1]:50051, or unix:PATH")
        if (":" in bare) != (host == f"[{bare}]"):
            raise ValueError("expected an IPv6 address in brackets, and no other one, such as [::1]:50051")
        return value

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: SecretStr) -> SecretStr:
        public_store(value.get_secret_value())
        return value

    @property
    def store_bytes(self) -> int:
        """Bytes that all sessions together may take."""
        return self.store_limit * 2**20

    def shown_address(self, port: int) -> str:
        """The address to connect to.

        Args:
            port: the port that it has turned out to be.
        """
        return self.listen if self.listen.startswith("unix:") else f"{self.listen.rpartition(':')[0]}:{port}"
