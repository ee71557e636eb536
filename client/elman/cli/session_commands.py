"""`elman session ...`: the sessions of a running server.

Commands that create a session print only its id, for use in a shell: S=$(elman session create "Once upon ").
"""

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
from elman.cli.printing import note_unknown, print_table
from elman.client import Client
from elman.connection import DEFAULT_ADDRESS
from elman.session_results import Session, SessionContent

app = typer.Typer(help="Manage sessions: states that the server keeps between calls.", no_args_is_help=True)

_TIMEOUT = 60  # seconds, of a call that runs no model
_Id = Annotated[str, typer.Argument(metavar="ID", help="Session.", show_default=False)]
_NewId = Annotated[
    str,
    typer.Option(
        "--id",
        metavar="ID",
        help="Id of the new session: 1 to 64 letters, digits, '.', '_' or '-'.",
        show_default="random",
    ),
]


@app.command("list")
def list_(server: Server = DEFAULT_ADDRESS) -> None:
    """List the sessions of a server."""
    asyncio.run(_list(server))


async def _list(server: str) -> None:
    async with Client(server, timeout=_TIMEOUT) as client:
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
    tokens: Annotated[bool, typer.Option("--tokens", help="Print token ids instead of text.")] = False,
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Show a session and its text."""
    asyncio.run(_show(session_id, tokens, server))


async def _show(session_id: str, tokens: bool, server: str) -> None:
    async with Client(server, timeout=_TIMEOUT) as client:
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
    """In the local time zone."""
    return time.astimezone().isoformat(sep=" ", timespec="seconds")


@app.command()
def create(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text that the session starts with.", show_default=False)
    ] = "",
    session_id: _NewId = "",
    model: Annotated[str, model_option("the server's only one")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of calls that set none.", show_default="random")] = None,
    server: Server = DEFAULT_ADDRESS,
    timeout: Timeout = None,
) -> None:
    """Create a session and print its id."""
    asyncio.run(_create(prompt, session_id, model, seed, server, timeout))


async def _create(
    prompt: str, session_id: str, model: str, seed: int | None, server: str, timeout: float | None
) -> None:
    async with Client(server, timeout=timeout) as client:
        session = await client.create_session(prompt or None, session_id=session_id, model=model, seed=seed)
    print(session.session_id)
    note_unknown(session.unknown_token_count, "prompt")


@app.command()
def fork(
    session_id: _Id,
    position: Annotated[
        int | None,
        typer.Option("--at", metavar="POSITION", help="Position up to which it is copied.", show_default="the end"),
    ] = None,
    new_session_id: _NewId = "",
    seed: Annotated[int | None, typer.Option(help="Seed of the new session.", show_default="the same")] = None,
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Copy a session and print the id of the copy."""
    asyncio.run(_fork(session_id, position, new_session_id, seed, server))


async def _fork(session_id: str, position: int | None, new_session_id: str, seed: int | None, server: str) -> None:
    async with Client(server, timeout=_TIMEOUT) as client:
        session = await client.fork_session(session_id, new_session_id=new_session_id, position=position, seed=seed)
    print(session.session_id)


@app.command()
def rewind(
    session_id: _Id,
    position: Annotated[
        int, typer.Argument(metavar="POSITION", help="Position to rewind to, in tokens.", show_default=False)
    ],
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Rewind a session to an earlier position."""
    asyncio.run(_rewind(session_id, position, server))


async def _rewind(session_id: str, position: int, server: str) -> None:
    async with Client(server, timeout=_TIMEOUT) as client:
        await client.rewind_session(session_id, position)


@app.command()
def export(
    session_id: _Id,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Export a session to a file for `elman session import`."""
    if file.exists() and not force:
        raise FileExistsError(errno.EEXIST, "exists already; --force overwrites it", str(file))
    _write_atomically(file, asyncio.run(_export(session_id, server)))


async def _export(session_id: str, server: str) -> bytes:
    async with Client(server, timeout=_TIMEOUT) as client:
        return await client.export_session(session_id)


def _write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: at every moment it exists completely or not at all."""
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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of `elman session export`.", show_default=False)],
    session_id: Annotated[
        str, typer.Option("--id", metavar="ID", help="Id of the session.", show_default="the one it had")
    ] = "",
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Import a session from a file and print its id."""
    asyncio.run(_import(file.read_bytes(), session_id, server))


async def _import(content: bytes, session_id: str, server: str) -> None:
    async with Client(server, timeout=_TIMEOUT) as client:
        session = await client.import_session(content, session_id=session_id)
    print(session.session_id)


@app.command()
def delete(
    session_ids: Annotated[list[str], typer.Argument(metavar="ID", help="Sessions.", show_default=False)],
    server: Server = DEFAULT_ADDRESS,
) -> None:
    """Delete sessions, in order, up to the first that cannot be deleted."""
    asyncio.run(_delete(session_ids, server))


async def _delete(session_ids: list[str], server: str) -> None:
    async with Client(server, timeout=_TIMEOUT) as client:
        for session_id in session_ids:
            await client.delete_session(session_id)
