"""One SQLite file or one PostgreSQL database: opened, locked down, written to by one hand at a time.

Scope: addresses, transactions, errors that people can read. How a file or a server is opened is databases.py's. Knows no table.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from qlora_chat.databases import FULL, READS_ONLY, postgresql_engine, private_file, sqlite_engine
from qlora_chat.history import HistoryError, HistoryUnavailable
from qlora_chat.history.storage.migrations import MIGRATIONS, Migration, migrate

BUSY_MS = 30_000
"""How long one process waits for another's transaction before "locked" is an error."""
RESERVE_BYTES = 2 * 2**20


class Database:
    """Transactions over one database. HistoryUnavailable where it cannot be read or written just now."""

    def __init__(self, engine: Engine) -> None:
        self.sqlite = engine.dialect.name == "sqlite"
        self._engine = engine
        self._lock = threading.RLock()
        self._writer: Connection | None = None

    @property
    def path(self) -> Path | None:
        """SQLite's file."""
        return Path(self._engine.url.database or "") if self.sqlite else None

    @contextmanager
    def write(self, *, synchronous: int = FULL) -> Iterator[Connection]:
        """A transaction, committed at the end of the block. SQLite: one at a time in this process, none ever "locked"."""
        with _readable():
            if not self.sqlite:
                with self._engine.begin() as connection:
                    yield connection
                return
            with self._lock:
                connection = self._writing()
                connection.connection.driver_connection.execute(f"PRAGMA synchronous={synchronous}")  # type: ignore[union-attr]
                with connection.begin():
                    yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database and does not wait for writers."""
        with _readable(), self._engine.connect().execution_options(**{READS_ONLY: True}) as connection:
            yield connection

    def truncate_log(self) -> bool:
        """SQLite: carry the write-ahead log into the file and empty it, so that no old page is left there; -> whether it is
        empty, which somebody who reads an older state forbids for as long as BUSY_MS."""
        if not self.sqlite:
            return True
        with _readable(), self._lock:
            driver: Any = self._writing().connection.driver_connection
            return not driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]

    def leave_no_old_page(self) -> None:
        """After an erasure. HistoryUnavailable where somebody's reading keeps an old page in the log."""
        if not self.truncate_log():
            raise HistoryUnavailable(
                "what was erased is out of the history, but its old pages are still in the file's log, because another program "
                "has been reading it all the while: end that program, and erase anything, or start this one again"
            )

    def keep_reserve(self) -> None:
        """SQLite: hold some of the disk, so that a full one can still be written to as far as emptying the queue takes."""
        path = self._reserve_path()
        if path is None or path.exists():
            return
        with suppress(OSError):
            space = os.statvfs(path.parent)
            if space.f_bavail * space.f_frsize > 2 * RESERVE_BYTES:
                with open(path, "wb", opener=_private) as file:
                    file.write(b"\0" * RESERVE_BYTES)

    def free_reserve(self) -> None:
        """Let go of it, and carry the log into the file, which needs room."""
        if path := self._reserve_path():
            path.unlink(missing_ok=True)
            self.truncate_log()

    def _reserve_path(self) -> Path | None:
        return Path(f"{self.path}-reserve") if self.path else None

    def vacuum(self, tables: Sequence[str]) -> None:
        """PostgreSQL: free deleted rows at once, which it would do by itself some time."""
        if self.sqlite:
            return
        with _readable(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in tables:
                connection.exec_driver_sql(f"VACUUM {table}")

    def close(self) -> None:
        """Let go of every connection."""
        with self._lock:
            if self._writer:
                self._writer.close()
                self._writer = None
            self._engine.dispose()

    def _writing(self) -> Connection:
        if self._writer is None or self._writer.closed:
            self._writer = self._engine.connect()
        return self._writer


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _readable() -> Iterator[None]:
    """A driver's error as one that people can read and that quotes no statement, since statements hold conversations."""
    try:
        yield
    except DBAPIError as problem:
        raise _explained(problem) from None
    except sqlite3.Error as problem:  # of a statement that goes past SQLAlchemy, to stay out of its transactions
        raise _explained(problem) from None
    except SQLAlchemyError as problem:
        raise HistoryUnavailable(f"the history cannot be used just now ({type(problem).__name__})") from None


def _explained(problem: DBAPIError | sqlite3.Error) -> HistoryError:
    cause = problem.orig if isinstance(problem, DBAPIError) else problem
    said = str(cause).lower()
    if "disk is full" in said or "no space left" in said:
        return HistoryUnavailable("the disk is full")
    if "malformed" in said or "not a database" in said or "disk image" in said:
        return HistoryUnavailable(
            "the history's file is damaged: `qlora-chat history rescue` brings what can be read of it, and what waits to be "
            "delivered, into a new file, and keeps the damaged one beside it; or restore a copy of your own"
        )
    if "readonly" in said or "read-only" in said or "unable to open" in said:
        return HistoryUnavailable("the history's file cannot be opened for writing: check its folder and permissions")
    if "locked" in said:
        return HistoryUnavailable(f"another program has held the history's file for {BUSY_MS // 1000} s")
    if "password" in said or "authentication" in said:
        return HistoryUnavailable(
            "the database server refuses the password: give it in QLORA_CHAT_HISTORY_PASSWORD, PGPASSWORD or ~/.pgpass"
        )
    if "connect" in said or (isinstance(problem, DBAPIError) and problem.connection_invalidated):
        return HistoryUnavailable("the database server cannot be reached")
    return HistoryUnavailable(f"the history cannot be used just now ({type(cause).__name__})")


def open_database(url: str, password: str | None = None, migrations: Sequence[Migration] = MIGRATIONS) -> Database:
    """Connect, make or update the tables. HistoryError for an address that cannot be used, or a newer schema."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        database = Database(_sqlite(Path(parsed.database or "")))
    else:
        database = Database(_postgresql(parsed, password))
    try:
        with database.write() as connection:
            migrate(connection, migrations)
    except BaseException:
        database.close()
        raise
    return database


def sqlite_file(url: str) -> Path:
    """The file of sqlite:///FILE. HistoryError for any other address."""
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite":
        raise HistoryError("only a history in sqlite:///FILE is one file; a database server has tools of its own")
    return Path(parsed.database or "")


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise HistoryError(f"{url.partition('://')[0]!r} is no kind of history; {KINDS}") from None
    if backend not in ("sqlite", "postgresql"):
        raise HistoryError(f"{backend!r} is no kind of history; {KINDS}")
    if parsed.password is not None:
        raise HistoryError(
            "the address of the history holds a password, which every user of this machine can read in the list of "
            "processes: leave it out and set QLORA_CHAT_HISTORY_PASSWORD or PGPASSWORD"
        )
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise HistoryError("sqlite:///FILE needs a file (without --history, conversations live in memory anyway)")
    return parsed


def _sqlite(path: Path) -> Engine:
    try:
        private_file(path)
    except OSError as problem:
        raise HistoryError(f"{path} cannot be opened for writing ({problem.strerror})") from None
    return sqlite_engine(path, BUSY_MS)


def _postgresql(url: URL, password: str | None) -> Engine:
    try:
        return postgresql_engine(url, password)
    except ModuleNotFoundError:
        raise HistoryError("postgresql:// needs the psycopg package: pip install 'qlora-chat[postgres]'") from None


KINDS = "known: sqlite:///FILE, postgresql://USER@HOST/DATABASE, jsonl:FOLDER"
