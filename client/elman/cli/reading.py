"""Input of the commands: files, and standard input at once or as it arrives."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import errno
import io
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from elman.cli.printing import shown_name

STANDARD_INPUT = "-"
_READ_BYTES = 65536


def read_text(name: str) -> str:
    """The text of a file, or of standard input for `STANDARD_INPUT`, read as training reads it.

    Raises:
        OSError: it cannot be read, is not UTF-8, or is empty.
    """
    content = _all_of_standard_input() if name == STANDARD_INPUT else Path(name).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"is not text in UTF-8 (see byte {error.start})", shown_input(name)) from error
    if not text:
        raise OSError(errno.ENODATA, "is empty: there is nothing to read", shown_input(name))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shown_input(name: str) -> str:
    """The name of a file, or "standard input", for people."""
    return "standard input" if name == STANDARD_INPUT else shown_name(name)


def _all_of_standard_input() -> bytes:
    _check_open()
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise _read_error(error) from error


async def standard_input() -> AsyncIterator[str]:
    """Standard input as it arrives, in pieces of complete characters, with every line end as a newline.

    Raises:
        OSError: it cannot be read.
    """
    _check_open()
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes | OSError] = asyncio.Queue()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # The loop has ended.
            try:
                while content := os.read(0, _READ_BYTES):
                    loop.call_soon_threadsafe(arrived.put_nowait, content)
            except OSError as error:
                loop.call_soon_threadsafe(arrived.put_nowait, _read_error(error))
            else:
                loop.call_soon_threadsafe(arrived.put_nowait, b"")

    # A daemon thread: reading from a terminal cannot be interrupted, and Ctrl-C must end the command.
    threading.Thread(target=read, daemon=True).start()
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(errors="replace"), translate=True)
    content: bytes | OSError = b"more"
    while content:
        content = await arrived.get()
        if isinstance(content, OSError):
            raise content
        piece = decoder.decode(content, final=not content)
        if piece:
            yield piece


async def input_lines(*, blank: bool = False) -> AsyncIterator[str]:
    """The lines of standard input as they arrive.

    Args:
        blank: whether blank lines are included.

    Raises:
        OSError: it cannot be read.
    """
    rest = ""
    async for piece in standard_input():
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            if blank or line.strip():
                yield line
    if rest and (blank or rest.strip()):
        yield rest


def _check_open() -> None:
    # If Python found it closed, its descriptor may belong to something else by now.
    if sys.stdin is None:
        raise _read_error(OSError(errno.EBADF, os.strerror(errno.EBADF)))


def _read_error(error: OSError) -> OSError:
    return OSError(error.errno, f"cannot be read: {error.strerror}", shown_input(STANDARD_INPUT))
