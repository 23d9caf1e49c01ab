"""SQLite files and PostgreSQL servers as this program opens them: private, and on the disk when a commit returns.

Scope: engines of SQLAlchemy. Knows no table, no address as people give it, and not whose database it is.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

WAL_LIMIT_BYTES = 2**20
FULL, NORMAL = 2, 1
"""SQLite's `synchronous`: FULL survives a power cut; NORMAL a crash of the program, which is all a half answer asks for."""
READS_ONLY = "reads_only"
"""Execution option of a connection that will write nothing: it sees one state of the database, and waits for no writer."""

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    f"PRAGMA synchronous={FULL}",
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # what is deleted is overwritten with zeros
    "PRAGMA temp_store=MEMORY",  # no sorted copy of a conversation in a temporary file
    f"PRAGMA wal_autocheckpoint={WAL_LIMIT_BYTES // 4096}",
    f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}",
)


def sqlite_engine(file: Path, busy_ms: int) -> Engine:
    """Over one file; `busy_ms` is how long a writer waits for another process's transaction. Its connections may be used by any
    thread, one at a time."""
    url = URL.create("sqlite+pysqlite", database=str(file))
    engine = create_engine(url, hide_parameters=True, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where we say so, not where the driver guesses
        connection.execute(f"PRAGMA busy_timeout={busy_ms}")
        for pragma in _PRAGMAS:
            _execute_when_free(connection, pragma, busy_ms / 1000)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # a transaction that reads first and writes later could find itself "locked" in between
        reads_only = connection.get_execution_options().get(READS_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    return engine


def _execute_when_free(connection: sqlite3.Connection, pragma: str, seconds: float) -> None:
    """Changing a new file to WAL fails at once, whatever the busy timeout, while another does the same."""
    until = time.monotonic() + seconds
    while True:
        try:
            connection.execute(pragma).fetchall()
            return
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem) or time.monotonic() > until:
                raise
        time.sleep(0.01)


def postgresql_engine(url: URL, password: str | None = None) -> Engine:
    """Over a server. ModuleNotFoundError where its driver is not installed."""
    import psycopg  # noqa: F401

    url = url.set(drivername="postgresql+psycopg")
    if password:
        url = url.set(password=password)
    return create_engine(url, hide_parameters=True, pool_pre_ping=True, pool_size=10, max_overflow=20)


def private_folder(folder: Path) -> None:
    """Make a folder that only this user can enter; one that is there stays as it is."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def private_file(path: Path) -> None:
    """A file that only this user can read, made where it is missing; SQLite gives the same mode to what it puts beside it.
    OSError where it cannot be written."""
    private_folder(path.parent)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)
