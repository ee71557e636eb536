"""The store in one SQLite file: nothing to install, and what is committed survives the process.

    store     the `Store`
    writer    changes into the tables, many in one transaction
    reader    a session out of the tables, as far as it is undamaged
    records   values and checksums of rows
    schema    the tables and the statements
    database  the file
    reserve   room on the disk for deleting

Every row is under a checksum: tokens in segments of fixed length, states, calls, and the session itself. What is
damaged is left out when a session is loaded: of the tokens everything from there on, of the states and calls each by
itself. What is missing is computed again; nothing is ever computed from a wrong state.
"""

from pathlib import Path

from elman_server.sessions.stores.interface import Store
from elman_server.sessions.stores.sqlite.store import SqliteStore
from elman_server.settings import Settings

__all__ = ["SqliteStore", "open_store"]


def open_store(settings: Settings) -> Store:
    """Open the file that the settings name; see `STORE_KINDS`.

    Raises:
        StoreOpenError: it cannot be opened.
    """
    return SqliteStore(Path(settings.store.get_secret_value()), settings.fsync, settings.store_bytes)
