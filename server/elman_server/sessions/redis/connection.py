"""One Redis, which may be away for a while."""

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
from elman_server.sessions.redis.scripts import SCRIPTS, Command
from elman_server.settings import public_store

OLDEST = (6, 2)  # the version of Redis

_SOCKET_SECONDS = 2.0  # for which one try waits
_OPEN_SECONDS = 2.0  # for which a server that starts waits
_PAUSES = EqualJitterBackoff(cap=0.5, base=0.02)

_log = structlog.get_logger(__name__)


class Connection:
    """Commands to one Redis, sent again and again while it is away.

    Args:
        url: where it is.
        patience: for how many seconds it may be away.

    Attributes:
        name: the URL without what is secret.

    Raises:
        StoreOpenError: see `RedisStore`.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.name = public_name(url)
        self._patience = _OPEN_SECONDS
        try:
            # redis-py would try a number of times. How long that takes is another matter where nothing answers.
            self._client: Any = Redis.from_url(
                url,
                socket_timeout=_SOCKET_SECONDS,
                socket_connect_timeout=_SOCKET_SECONDS,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
            (found,) = self.ask([("INFO",)])
            raise_first([found])
        except (ValueError, TypeError) as error:
            raise StoreOpenError(f"{self.name}: something in this URL means nothing to redis-py: {error}") from error
        except (StoreError, RedisError) as error:
            raise StoreOpenError(f"the sessions cannot be opened: {error} (is Redis running there?)") from error
        self._check(found)
        self._patience = patience

    def _check(self, found: Mapping[str, Any]) -> None:
        version = str(found.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
            raise StoreOpenError(
                f"{self.name}: is Redis {version}; sessions need {'.'.join(map(str, OLDEST))} or later"
            )
        policy = str(found.get("maxmemory_policy", ""))
        if policy.startswith("allkeys"):
            _log.warning("Redis may evict sessions", store=self.name, maxmemory_policy=policy, better="noeviction")

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands together, again and again until they are answered. A command may be carried out several times.

        Args:
            commands: in order.

        Returns:
            for each its answer, or the ResponseError that it is.

        Raises:
            StoreUnavailableError: Redis has been away for longer than patience lasts, or lets nobody in.
        """
        deadline = time.monotonic() + self._patience
        tries = 0
        while True:
            try:
                return self._send(commands)
            except (AuthenticationError, AuthorizationError) as error:
                raise StoreUnavailableError(
                    f"{self.name}: Redis lets nobody in by the URL's password: {error}"
                ) from error
            except (ConnectionError, TimeoutError, ReadOnlyError, MasterDownError, NoScriptError) as error:
                tries += 1
                pause = _PAUSES.compute(tries)
                if time.monotonic() + pause >= deadline:
                    raise StoreUnavailableError(
                        f"{self.name}: Redis has not answered for {self._patience:g} seconds: {error}"
                    ) from error
                time.sleep(pause)
            except RedisError as error:
                raise self.named(error) from error

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute(raise_on_error=False)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            self._load_scripts()
        # Of a Redis that cannot take it now none may be taken: the changes of one session follow each other.
        raise_first(
            [answer for answer in answers if isinstance(answer, NoScriptError | ReadOnlyError | MasterDownError)]
        )
        return answers

    def _load_scripts(self) -> None:
        for script in SCRIPTS.values():
            self._client.script_load(script)

    def named(self, error: Exception) -> StoreError:
        """What an error of Redis is to a session."""
        if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in str(error):
            return StoreFullError(
                f"{self.name}: there is no memory left for sessions; maxmemory sets how much there is"
            )
        return StoreUnavailableError(f"{self.name}: the store of sessions has failed: {error}")

    def close(self) -> None:
        self._client.close()


def public_name(url: str) -> str:
    """The URL of a Redis without the user name and the password.

    Raises:
        StoreOpenError: it is none.
    """
    try:
        return public_store(url)
    except ValueError as error:
        raise StoreOpenError(f"store: got a URL that is not shown; {error}") from None  # It may quote the password.


def raise_first(answers: Sequence[Any]) -> None:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
