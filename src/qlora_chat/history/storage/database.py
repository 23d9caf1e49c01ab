"""Transactions over one SQLite file or one PostgreSQL database.

Scope: opening, transactions, disk space, and errors in words that quote no conversation. Knows no table.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from qlora_chat.databases import (
    FULL,
    READS_ONLY,
    DatabaseError,
    ForeignFile,
    Migration,
    begins_like_sqlite,
    check_sqlite_file,
    file_identity,
    parse_url,
    postgresql_engine,
    server_problem,
    sqlite_engine,
)
from qlora_chat.history import HistoryError, HistoryUnavailable
from qlora_chat.history.storage.migrations import MIGRATIONS, migrate
from qlora_chat.history.types import HistoryDamaged
from qlora_chat.private_files import make_private_file, private_opener

BUSY_MS = 30_000
"""Time that a process waits for the transaction of another before "locked" is an error."""
MARKS = (b"an index of tokens", b"outbox bytes", b"\x93QLCrec")
"""In every history's list of migrations, in an outbox's counters, and before each record."""
OWN_TABLES = frozenset({"facts", "outbox", "outbox_bodies"})
"""Of a history and of an outbox, in every version."""
HISTORY_TABLES = frozenset({"conversations"})
"""Of a history, but not of an outbox in a file of its own."""
RESERVE_BYTES = 2 * 2**20
"""Disk space held back, so that the outbox can still be emptied when the disk is full."""


class Database:
    """Transactions over one database. HistoryUnavailable if it cannot be read or written at the moment."""

    def __init__(self, engine: Engine) -> None:
        self.sqlite = engine.dialect.name == "sqlite"
        self._engine = engine
        self._lock = threading.RLock()
        self._writer: Connection | None = None
        self._identity: tuple[int, int] | None = None
        """Device and inode of SQLite's file when it was opened."""
        self._check: Callable[[Connection], None] | None = None

    @property
    def path(self) -> Path | None:
        """SQLite's file; None for PostgreSQL."""
        return Path(self._engine.url.database or "") if self.sqlite else None

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """INSERT that can name what to do on a conflict."""
        return (sqlite if self.sqlite else postgresql).insert(table)

    @contextmanager
    def write(self, *, synchronous: int = FULL) -> Iterator[Connection]:
        """A transaction, committed at the end of the block. SQLite: one at a time in this process, so none is "locked"."""
        with _readable_errors():
            if not self.sqlite:
                with self._engine.begin() as connection:
                    self._check_first(connection)
                    yield connection
                return
            with self._lock:
                connection = self._writer_connection()
                self._check_identity()
                connection.connection.driver_connection.execute(f"PRAGMA synchronous={synchronous}")  # type: ignore[union-attr]
                with connection.begin():
                    self._check_first(connection)
                    yield connection

    def before_writing(self, check: Callable[[Connection], None]) -> None:
        """Call `check` at the beginning of each further transaction of `write`; an exception from it ends the transaction."""
        self._check = check

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database and does not wait for writers."""
        with _readable_errors(), self._engine.connect().execution_options(**{READS_ONLY: True}) as connection:
            yield connection

    def checkpoint(self) -> bool:
        """Write SQLite's log back into the file and empty it, so that no old page is left in it. Returns True if it is empty.

        False after waiting BUSY_MS for a reader of an older state.
        """
        if not self.sqlite:
            return True
        with _readable_errors(), self._lock:
            driver: Any = self._writer_connection().connection.driver_connection
            return not driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]

    def purge_old_pages(self) -> None:
        """Remove erased rows from SQLite's log. HistoryUnavailable if a reader prevents that."""
        if not self.checkpoint():
            raise HistoryUnavailable(
                "the conversations are erased from the history, but their old pages are still in the file's log, because "
                "another program keeps reading it: end that program, then erase anything or restart this program"
            )

    def ensure_reserve(self) -> None:
        """SQLite: reserve disk space, if there is enough, for writing to a full disk."""
        path = self._reserve_path()
        if path is None or path.exists():
            return
        with suppress(OSError):
            space = os.statvfs(path.parent)
            if space.f_bavail * space.f_frsize > 2 * RESERVE_BYTES:
                with open(path, "wb", opener=private_opener) as file:
                    file.write(b"\0" * RESERVE_BYTES)

    def free_reserve(self) -> None:
        """Release the reserved space for a checkpoint, which needs room."""
        if path := self._reserve_path():
            path.unlink(missing_ok=True)
            self.checkpoint()

    def _reserve_path(self) -> Path | None:
        return Path(f"{self.path}-reserve") if self.path else None

    def vacuum(self, tables: Sequence[str]) -> None:
        """PostgreSQL: remove deleted rows now instead of at the next autovacuum."""
        if self.sqlite:
            return
        with _readable_errors(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in tables:
                connection.exec_driver_sql(f"VACUUM {table}")

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            if self._writer:
                self._writer.close()
                self._writer = None
            self._engine.dispose()

    def _writer_connection(self) -> Connection:
        if self._writer is None or self._writer.closed:
            self._writer = self._engine.connect()
            self._identity = self._identity or file_identity(self.path)
        return self._writer

    def _check_first(self, connection: Connection) -> None:
        if self._check:
            self._check(connection)

    def _check_identity(self) -> None:
        """HistoryUnavailable if the file's name is another file's by now, or nobody's: what is written would be lost."""
        if file_identity(self.path) != self._identity:
            raise HistoryUnavailable(
                f"{self.path} was removed or replaced while it was open, and nothing more is written: restart this program"
            )


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Turn driver errors into HistoryErrors without the statement, which may hold conversation text."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as problem:  # sqlite3.Error: from statements that bypass SQLAlchemy's transactions
        raise _history_error(problem) from None
    except SQLAlchemyError:  # such as its own timeout for a connection
        raise HistoryUnavailable("the history's database is too busy at the moment: try again") from None


def _history_error(problem: DBAPIError | sqlite3.Error) -> HistoryError:
    cause = problem.orig if isinstance(problem, DBAPIError) else problem
    if clause := server_problem(problem):
        return HistoryUnavailable(clause)
    reason = str(cause).lower()
    if "disk is full" in reason or "no space left" in reason:
        return HistoryUnavailable("the disk is full")
    if "malformed" in reason or "not a database" in reason or "disk image" in reason:
        return _damaged()
    if "readonly" in reason or "read-only" in reason or "unable to open" in reason:
        return HistoryUnavailable("the history's file cannot be opened for writing: check its folder and permissions")
    if "locked" in reason:
        return HistoryUnavailable(f"another program has locked the history's file for {BUSY_MS // 1000} s")
    return HistoryUnavailable(f"SQLite cannot use the history's file at the moment: {_sqlite_code(cause)}")


def _sqlite_code(cause: object) -> str:
    """Name of SQLite's error, which quotes no value, such as SQLITE_IOERR_WRITE."""
    return str(getattr(cause, "sqlite_errorname", None) or "an unknown error")


def _damaged() -> HistoryDamaged:
    return HistoryDamaged(
        "the history's file is damaged: `qlora-chat history rescue` copies what can be read of it, and what waits to be "
        "delivered, into a new file, and renames the damaged one; or restore a backup"
    )


def open_database(
    url: str, password: str | None = None, migrations: Sequence[Migration] = MIGRATIONS, what: str = "history"
) -> Database:
    """Connect, and create or migrate the tables. HistoryError for an unusable URL, an unwritable file or a newer schema.

    `what` is the database's name in messages.
    """
    try:
        database = Database(_engine(url, password, is_history=migrations is MIGRATIONS))
        try:
            with database.write() as connection:
                migrate(connection, migrations)
        except BaseException:
            database.close()
            raise
    except DatabaseError as problem:
        raise HistoryError(f"the {what} cannot be opened: {problem}") from None
    except HistoryUnavailable as problem:
        if url.startswith("sqlite"):
            raise
        raise HistoryUnavailable(f"the {what} cannot be opened: {problem}") from None
    return database


def sqlite_file(url: str) -> Path:
    """File of sqlite:///FILE. HistoryError for any other URL."""
    try:
        parsed = parse_url(url)
    except DatabaseError as problem:
        raise HistoryError(f"the history cannot be opened: {problem}") from None
    if parsed.get_backend_name() != "sqlite":
        raise HistoryError("only a history in sqlite:///FILE is one file; a database server has tools of its own")
    return Path(parsed.database or "")


def _engine(url: str, password: str | None, *, is_history: bool) -> Engine:
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        return postgresql_engine(parsed, password)
    path = Path(parsed.database or "")
    try:
        _check_file(path, is_history)
        make_private_file(path)
    except OSError as problem:
        raise DatabaseError(f"{path} cannot be opened for writing ({problem.strerror})") from None
    return sqlite_engine(path, BUSY_MS)


def _check_file(path: Path, is_history: bool) -> None:
    """ForeignFile if the file is no history, or no outbox; HistoryDamaged if it is, but has lost its beginning."""
    required, foreign = (HISTORY_TABLES, frozenset[str]()) if is_history else (frozenset[str](), HISTORY_TABLES)
    try:
        check_sqlite_file(path, OWN_TABLES, required=required, foreign=foreign)
    except ForeignFile:
        if path.is_file() and _holds_marks(path):
            raise _damaged() from None
        raise


def _holds_marks(path: Path) -> bool:
    """True for a file that was this program's database, though its first page may be lost."""
    if begins_like_sqlite(path):
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(mark) >= 0 for mark in MARKS)
