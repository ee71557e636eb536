"""What commands read: files, and standard input, whole or as it comes."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import errno
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from elman.cli.printing import shown_name

STANDARD_INPUT = "-"


def read_text(name: str) -> str:
    """The text of a file, or of standard input where the name is `STANDARD_INPUT`, as training reads it.

    Raises:
        OSError: it cannot be read, is not UTF-8, or has nothing in it.
    """
    content = _whole_standard_input() if name == STANDARD_INPUT else Path(name).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"is not text in UTF-8 (see byte {error.start})", shown_input(name)) from error
    if not text:
        raise OSError(errno.ENODATA, "is empty: there is nothing to read", shown_input(name))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shown_input(name: str) -> str:
    """What people call a file, or standard input."""
    return "standard input" if name == STANDARD_INPUT else shown_name(name)


def _whole_standard_input() -> bytes:
    _check_open()
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise _unreadable(error) from error


async def standard_input() -> AsyncIterator[str]:
    """Standard input as it comes, in pieces of whole characters.

    Raises:
        OSError: it cannot be read.
    """
    _check_open()
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes | OSError] = asyncio.Queue()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
            try:
                while content := os.read(0, 65536):
                    loop.call_soon_threadsafe(arrived.put_nowait, content)
            except OSError as error:
                loop.call_soon_threadsafe(arrived.put_nowait, _unreadable(error))
            else:
                loop.call_soon_threadsafe(arrived.put_nowait, b"")

    # A thread that nobody waits for: reading from a terminal cannot be interrupted, and Ctrl-C shall end it all.
    threading.Thread(target=read, daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    content: bytes | OSError = b"more"
    while content:
        content = await arrived.get()
        if isinstance(content, OSError):
            raise content
        piece = decoder.decode(content, final=not content)
        if piece:
            yield piece


async def written_lines(*, blank: bool = False) -> AsyncIterator[str]:
    """The lines of standard input as they come.

    Args:
        blank: give blank ones, too.

    Raises:
        OSError: it cannot be read.
    """
    rest = ""
    async for piece in standard_input():
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            if blank or line.strip():
                yield line.removesuffix("\r")
    if rest and (blank or rest.strip()):
        yield rest


def _check_open() -> None:
    # Where Python has found it closed, its number may belong to something else by now.
    if sys.stdin is None:
        raise _unreadable(OSError(errno.EBADF, os.strerror(errno.EBADF)))


def _unreadable(error: OSError) -> OSError:
    return OSError(error.errno, f"cannot be read: {error.strerror}", shown_input(STANDARD_INPUT))
