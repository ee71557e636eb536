"""`elman session ...`: the sessions of a running server. What makes one prints its id and nothing else, so that a shell
can keep it: S=$(elman session create "Once upon ")."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from elman.cli.options import Server, Timeout, model_option
from elman.cli.printing import print_table
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.sessions import Session, SessionContent

app = typer.Typer(help="Keep what a model has read on the server, and go on from there.", no_args_is_help=True)

_SECONDS = 60  # that a call may take which runs no model
_Id = Annotated[str, typer.Argument(metavar="ID", help="The session's id.", show_default=False)]
_NewId = Annotated[
    str,
    typer.Option(
        "--id", help="The new session's id: 1 to 64 letters, digits, '.', '_' or '-'.", show_default="a random one"
    ),
]


@app.command("list")
def list_(server: Server = DEFAULT_ADDRESS) -> None:
    """List the sessions of a server."""
    asyncio.run(_list(server))


async def _list(server: str) -> None:
    async with Client(server, timeout=_SECONDS) as client:
        rows = [
            (
                session.session_id,
                session.model,
                str(session.position),
                str(session.seed),
                _shown_time(session.create_time),
                _shown_time(session.use_time),
                "yes" if session.running else "no",
            )
            async for session in client.list_sessions()
        ]
    print_table(("id", "model", "position", "seed", "created", "used", "running"), rows)


@app.command()
def show(
    session_id: _Id,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Print the ids of its tokens instead of their text.")
    ] = False,
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Show one session: facts about it, an empty line, and its text."""
    asyncio.run(_show(session_id, tokens, server))


async def _show(session_id: str, tokens: bool, server: str) -> None:
    async with Client(server, timeout=_SECONDS) as client:
        content = await client.session_tokens(session_id)
    for name, fact in _facts(content.session).items():
        print(f"{name:<9} {fact}")
    print()
    print(_shown_ids(content) if tokens else content.text)


def _facts(session: Session) -> dict[str, object]:
    return {
        "id": session.session_id,
        "model": session.model,
        "digest": session.digest,
        "position": session.position,
        "seed": session.seed,
        "created": _shown_time(session.create_time),
        "used": _shown_time(session.use_time),
        "running": "yes" if session.running else "no",
    }


def _shown_ids(content: SessionContent) -> str:
    return " ".join(map(str, content.token_ids))


def _shown_time(time: datetime) -> str:
    """In the time zone of whoever looks."""
    return time.astimezone().isoformat(sep=" ", timespec="seconds")


@app.command()
def create(
    prompt: Annotated[str, typer.Argument(help="The text it starts with.", show_default=False)] = "",
    session_id: _NewId = "",
    model: Annotated[str, model_option("the server's only one")] = "",
    seed: Annotated[
        int | None, typer.Option(help="The seed of calls that do not bring their own.", show_default="a random one")
    ] = None,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Make a session, and print its id."""
    asyncio.run(_create(prompt, session_id, model, seed, server, timeout))


async def _create(
    prompt: str, session_id: str, model: str, seed: int | None, server: str, timeout: float | None
) -> None:
    async with Client(server, timeout=timeout) as client:
        session = await client.create_session(prompt or None, session_id=session_id, model=model, seed=seed)
    print(session.session_id)


@app.command()
def fork(
    session_id: _Id,
    position: Annotated[
        int | None, typer.Option("--at", help="The position up to which it is copied.", show_default="all of it")
    ] = None,
    new_session_id: _NewId = "",
    seed: Annotated[int | None, typer.Option(help="The new one's seed.", show_default="the same")] = None,
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Copy a session, and print the new one's id."""
    asyncio.run(_fork(session_id, position, new_session_id, seed, server))


async def _fork(session_id: str, position: int | None, new_session_id: str, seed: int | None, server: str) -> None:
    async with Client(server, timeout=_SECONDS) as client:
        session = await client.fork_session(session_id, new_session_id=new_session_id, position=position, seed=seed)
    print(session.session_id)


@app.command()
def rewind(
    session_id: _Id,
    position: Annotated[
        int, typer.Argument(metavar="POSITION", help="The position to go back to.", show_default=False)
    ],
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Take a session back to an earlier position."""
    asyncio.run(_rewind(session_id, position, server))


async def _rewind(session_id: str, position: int, server: str) -> None:
    async with Client(server, timeout=_SECONDS) as client:
        await client.rewind_session(session_id, position)


@app.command()
def export(
    session_id: _Id,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if there is one.")] = False,
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Write a session to a file, which `elman session import` reads, here or for another server."""
    if file.exists() and not force:
        raise FileExistsError(errno.EEXIST, "is there already, and only --force overwrites it", str(file))
    _write_whole(file, asyncio.run(_export(session_id, server)))


async def _export(session_id: str, server: str) -> bytes:
    async with Client(server, timeout=_SECONDS) as client:
        return await client.export_session(session_id)


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file such that at every moment there is all of it or none of it."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file that `elman session export` wrote.", show_default=False)
    ],
    session_id: Annotated[str, typer.Option("--id", help="The session's id.", show_default="the one it had")] = "",
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Make a session from a file, and print its id."""
    asyncio.run(_import(file.read_bytes(), session_id, server))


async def _import(content: bytes, session_id: str, server: str) -> None:
    async with Client(server, timeout=_SECONDS) as client:
        session = await client.import_session(content, session_id=session_id)
    print(session.session_id)


@app.command()
def delete(
    session_ids: Annotated[list[str], typer.Argument(metavar="ID", help="The sessions' ids.", show_default=False)],
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Forget sessions, one after the other; the first that cannot be forgotten ends it."""
    asyncio.run(_delete(session_ids, server))


async def _delete(session_ids: list[str], server: str) -> None:
    async with Client(server, timeout=_SECONDS) as client:
        for session_id in session_ids:
            await client.delete_session(session_id)
