"""Commands to one Redis, which may be away for a while."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from redis import Redis
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)
from redis.retry import Retry

from elman_server.errors import StoreError, StoreFullError, StoreOpenError, StoreUnavailableError
from elman_server.sessions.stores.interface import STORE_FAILED
from elman_server.sessions.stores.redis.scripts import COMPLETE_SCRIPTS, Command
from elman_server.settings import public_store

MIN_VERSION = (6, 2)

_SOCKET_SECONDS = 2.0  # for one attempt
_OPEN_SECONDS = 2.0  # for all attempts while the server starts
_BACKOFF = EqualJitterBackoff(cap=0.5, base=0.02)  # seconds

_log = structlog.get_logger(__name__)


class Connection:
    """Commands to one Redis, repeated while it is away. Thread-safe.

    Args:
        url: its URL.
        patience: seconds for which it may be away.

    Attributes:
        name: the URL without secrets.

    Raises:
        StoreOpenError: see `RedisStore`.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.name = public_name(url)
        self._patience = _OPEN_SECONDS
        try:
            # redis-py retries a number of times, which can take any time; here the time is what is limited.
            self._client: Any = Redis.from_url(
                url,
                socket_timeout=_SOCKET_SECONDS,
                socket_connect_timeout=_SOCKET_SECONDS,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
            (info,) = self.ask([("INFO",)])
            raise_first([info])
        except (ValueError, TypeError) as error:
            raise StoreOpenError(f"store: got {self.name}; redis-py refuses the URL: {error}") from error
        except (StoreError, RedisError) as error:
            rule = f"it cannot be opened: {str(error.__cause__ or error).removesuffix('.')}"
            remedy = "Check that Redis is running there"
            raise StoreOpenError(f"store: got {self.name}; {rule}. {remedy}") from error
        self._check(info)
        self._patience = patience

    def _check(self, info: Mapping[str, Any]) -> None:
        version = str(info.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < MIN_VERSION:
            rule = f"it is Redis {version}, and sessions need {'.'.join(map(str, MIN_VERSION))} or later"
            raise StoreOpenError(f"store: got {self.name}; {rule}. Upgrade Redis")
        policy = str(info.get("maxmemory_policy", ""))
        if policy.startswith("allkeys"):
            _log.warning(
                "Redis may evict sessions", store=self.name, maxmemory_policy=policy, recommended_policy="noeviction"
            )

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands together, repeatedly until they are answered. A command may be executed several times.

        Args:
            commands: the commands, in order.

        Returns:
            For each its answer, or a ResponseError.

        Raises:
            StoreUnavailableError: Redis has been away for too long, or refuses access.
        """
        deadline = time.monotonic() + self._patience
        attempts = 0
        while True:
            try:
                return self._send(commands)
            except (AuthenticationError, AuthorizationError) as error:
                self._log_failure(error)
                raise StoreUnavailableError("Redis refuses the user name or the password of its URL") from error
            except (ConnectionError, TimeoutError, ReadOnlyError, MasterDownError, NoScriptError) as error:
                attempts += 1
                pause = _BACKOFF.compute(attempts)
                if time.monotonic() + pause >= deadline:
                    self._log_failure(error)
                    raise StoreUnavailableError(f"Redis has not answered for {self._patience:g} seconds") from error
                time.sleep(pause)
            except RedisError as error:
                raise self.translated(error) from error

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute(raise_on_error=False)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            self._load_scripts()
        # If Redis could not execute one, all are sent again: the changes of a session build on each other.
        raise_first(
            [answer for answer in answers if isinstance(answer, NoScriptError | ReadOnlyError | MasterDownError)]
        )
        return answers

    def _load_scripts(self) -> None:
        for script in COMPLETE_SCRIPTS.values():
            self._client.script_load(script)

    def translated(self, error: Exception) -> StoreError:
        """Return the domain error that an error of Redis means."""
        self._log_failure(error)
        if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in str(error):
            return StoreFullError("Delete sessions, or raise maxmemory of Redis")
        return StoreUnavailableError(STORE_FAILED)

    def _log_failure(self, error: Exception) -> None:
        _log.error("store failed", store=self.name, error=str(error))

    def close(self) -> None:
        self._client.close()


def public_name(url: str) -> str:
    """Return the URL of a Redis without the user name and the password.

    Raises:
        StoreOpenError: it is not such a URL.
    """
    try:
        return public_store(url)
    except ValueError as error:
        raise StoreOpenError(f"store: got a URL that is not shown; {error}") from None  # It may quote the password.


def raise_first(answers: Sequence[Any]) -> None:
    """Raise the first error among answers, if there is one."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
