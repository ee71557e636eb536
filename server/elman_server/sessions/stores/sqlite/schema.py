"""The tables of the SQLite store, and the statements on them."""

from __future__ import annotations

from elman_server.sessions.session import REMEMBERED_CALLS

FORMAT = 1  # in `PRAGMA user_version`
SEGMENT_TOKENS = 1024

TABLES = """
CREATE TABLE IF NOT EXISTS sessions (
    key INTEGER PRIMARY KEY, session_id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, digest TEXT NOT NULL,
    seed INTEGER NOT NULL, caller TEXT NOT NULL, created REAL NOT NULL, used REAL NOT NULL, position INTEGER NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS sessions_by_use ON sessions (used);
CREATE INDEX IF NOT EXISTS sessions_by_caller ON sessions (caller);
CREATE TABLE IF NOT EXISTS segments (
    key INTEGER NOT NULL, number INTEGER NOT NULL, tokens BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (key, number)
);
CREATE TABLE IF NOT EXISTS snapshots (
    key INTEGER NOT NULL, position INTEGER NOT NULL, state BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (key, position)
);
CREATE TABLE IF NOT EXISTS calls (
    number INTEGER PRIMARY KEY, key INTEGER NOT NULL, request_id TEXT NOT NULL, fingerprint BLOB NOT NULL,
    start INTEGER NOT NULL, prompt_count INTEGER NOT NULL, generated_count INTEGER NOT NULL, outcome TEXT NOT NULL,
    answer BLOB NOT NULL, checksum INTEGER NOT NULL, UNIQUE (key, request_id)
);
"""
TABLE_NAMES = ("segments", "snapshots", "calls", "sessions")

# Changes. {rows} stands for many rows: the GIL is contended between two statements, not within one.

ADD_SESSION = "INSERT OR IGNORE INTO sessions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ADVANCE_POSITIONS = """
UPDATE sessions SET used = moved.column4, position = moved.column3 FROM (VALUES {rows}) AS moved
WHERE session_id = moved.column1 AND position = moved.column2 RETURNING session_id, key
"""
APPEND_TOKENS = """
INSERT INTO segments VALUES {rows} ON CONFLICT (key, number) DO UPDATE SET
    tokens = CAST(tokens || excluded.tokens AS BLOB), checksum = excluded.checksum
"""
ADD_SNAPSHOTS = "INSERT OR REPLACE INTO snapshots VALUES {rows}"
DROP_SNAPSHOTS = "DELETE FROM snapshots WHERE (key, position) IN (VALUES {rows})"
ADD_CALLS = "INSERT OR REPLACE INTO calls VALUES {rows}"
DROP_OLD_CALLS = f"""
DELETE FROM calls WHERE number IN (SELECT number FROM (
    SELECT number, row_number() OVER (PARTITION BY key ORDER BY number DESC) AS age
    FROM calls WHERE key IN (VALUES {{rows}}))
WHERE age > {REMEMBERED_CALLS})
"""

KEY = "(SELECT key FROM sessions WHERE session_id = ?)"
SEGMENT_CHECKSUM = "SELECT checksum FROM segments WHERE key = ? AND number = ?"
SEGMENT_TOKENS_AT = f"SELECT tokens FROM segments WHERE key = {KEY} AND number = ?"
DROP_SEGMENTS_FROM = f"DELETE FROM segments WHERE key = {KEY} AND number >= ?"
ADD_SEGMENT = f"INSERT INTO segments VALUES ({KEY}, ?, ?, ?)"
DROP_SNAPSHOTS_AFTER = f"DELETE FROM snapshots WHERE key = {KEY} AND position > ?"
DROP_CALLS_AFTER = (
    f"DELETE FROM calls WHERE key = {KEY} AND (start + prompt_count + generated_count > ? OR outcome = '')"
)
SET_POSITION = "UPDATE sessions SET position = ? WHERE session_id = ?"
DELETE_FROM = f"DELETE FROM {{table}} WHERE key = {KEY}"

# To find out whether there is space: a row of no session.
TAKE_SPACE = "INSERT OR REPLACE INTO segments VALUES (-1, 0, zeroblob(262144), 0)"
RETURN_SPACE = "DELETE FROM segments WHERE key = -1"

# Queries.

SESSION = "SELECT * FROM sessions WHERE session_id = ?"
SEGMENTS = "SELECT number, tokens, checksum FROM segments WHERE key = ? ORDER BY number"
SNAPSHOTS = "SELECT position, state, checksum FROM snapshots WHERE key = ? ORDER BY position"
CALLS = "SELECT * FROM calls WHERE key = ? ORDER BY number"
# Rows whose values cannot be shown are left out; whether a value is right is found when the session is loaded.
PAGE = """
SELECT session_id, model, digest, seed, created, used, position FROM sessions
WHERE session_id > ? AND typeof(seed) = 'integer' AND typeof(created) = 'real' AND typeof(used) = 'real'
    AND typeof(position) = 'integer' AND created BETWEEN 0 AND 1e11 AND used BETWEEN 0 AND 1e11 AND position >= 0
ORDER BY session_id LIMIT ?
"""
EXPIRED = "SELECT session_id FROM sessions WHERE used < ?"
COUNT = "SELECT count(*) FROM sessions WHERE caller = ?"
