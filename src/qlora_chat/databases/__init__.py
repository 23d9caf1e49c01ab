"""SQLite files and PostgreSQL servers: their URLs, connections that are durable and private, and migrations.

Scope: SQLAlchemy engines. Knows of tables only the names by which this program's files are told apart, and not whose database
it is: callers put their own subject before its messages.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from qlora_chat.databases.postgresql import check_database, postgresql_engine
from qlora_chat.databases.problems import DatabaseError, ForeignFile, server_problem

WAL_LIMIT_BYTES = 2**20
FULL, NORMAL = 2, 1
"""SQLite's `synchronous`: FULL survives a power cut; NORMAL survives a crash of the program."""
READS_ONLY = "reads_only"
"""Execution option of a connection that writes nothing: it sees one state of the database and waits for no writer."""

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    f"PRAGMA synchronous={FULL}",
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # deleted rows are overwritten with zeros
    "PRAGMA temp_store=MEMORY",  # no sorted copy of a conversation in a temporary file
    f"PRAGMA wal_autocheckpoint={WAL_LIMIT_BYTES // 4096}",
    f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}",
)


SQLITE_HEADER = b"SQLite format 3\0"
_KINDS = (
    ({"receiver_schema", "records"}, "the store of a log receiver (logs serve --store)"),
    ({"outbox_bodies", "conversations"}, "a history (--history)"),
    ({"outbox_bodies", "outbox"}, "an outbox (LOGGING_OUTBOX), which holds no conversations"),
    (set[str](), "another program's SQLite database"),
)
"""Tables by which a file is recognised, and words for it."""


def parse_url(url: str) -> URL:
    """Parsed sqlite:///FILE or postgresql://USER@HOST/NAME. DatabaseError for any other URL and for one with a password."""
    expected = "must be sqlite:///FILE or postgresql://USER@HOST/NAME"
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise DatabaseError(f"its URL names no database, but {expected}") from None
    if backend not in ("sqlite", "postgresql"):
        raise DatabaseError(f"its URL begins with {parsed.drivername}://, but {expected}")
    if parsed.password is not None:
        raise DatabaseError(
            "its URL holds a password, which every user of this machine can read in the list of processes: leave it out and "
            "set PGPASSWORD"
        )
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise DatabaseError("its URL names no file; sqlite:///FILE needs a file")
    return _in_home_folder(parsed) if backend == "sqlite" else parsed


def _in_home_folder(url: URL) -> URL:
    """SQLite's URL with a leading ~ replaced. DatabaseError for an unknown user's, and for options, which have no effect."""
    if url.query:
        raise DatabaseError("its URL has options after a ?, which an SQLite file does not take: leave them out")
    if not (url.database or "").startswith("~"):
        return url
    try:
        return url.set(database=str(Path(url.database or "").expanduser()))
    except RuntimeError:
        raise DatabaseError(f"its URL names {url.database}, but no home folder of that name is known") from None


def check_sqlite_file(
    path: Path, own_tables: frozenset[str], *, required: frozenset[str] = frozenset(), foreign: frozenset[str] = frozenset()
) -> None:
    """ForeignFile if a file is there that is not SQLite's, or another database than the expected one; it is only read.

    `own_tables` are three names of the expected one's; two are enough, because a damaged file may have lost one. All of
    `required` and none of `foreign` must be there; they tell apart two kinds of database with the same tables.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise ForeignFile(f"{path} is no file, so it cannot be a database: name another one")
    if not begins_like_sqlite(path):
        raise ForeignFile(f"{path} is not an SQLite database, and it was left as it is: name another file")
    tables = _tables(path)
    if tables and (len(own_tables & tables) < 2 or not required <= tables or foreign & tables):
        kind = next(words for names, words in _KINDS if names <= tables)
        raise ForeignFile(f"{path} is {kind}, and it was left as it is: name another file")


def begins_like_sqlite(path: Path) -> bool:
    """True if most of the file's first bytes are those of SQLite, or none is written; a damaged file may have lost some."""
    with path.open("rb") as file:
        found = file.read(len(SQLITE_HEADER))
    alike = sum(mine == theirs for mine, theirs in zip(found, SQLITE_HEADER, strict=False))
    return 4 * alike >= 3 * len(found) or not any(found)


def _tables(path: Path) -> frozenset[str]:
    """Names of the tables, read without changing the file or making a log; none if it is damaged.

    Tables that are only in the write-ahead log are read from a copy: SQLite would write into the log's index.
    """
    if tables := _tables_in(path):
        return tables
    log = path.with_name(f"{path.name}-wal")
    if not log.is_file() or not log.stat().st_size:
        return frozenset()
    with TemporaryDirectory() as folder:
        copy = Path(folder, "copy.db")
        shutil.copyfile(path, copy)
        shutil.copyfile(log, f"{copy}-wal")
        return _tables_in(copy, with_log=True)


def _tables_in(path: Path, *, with_log: bool = False) -> frozenset[str]:
    options = "" if with_log else "?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(path.resolve().as_uri() + options, uri=True)) as connection:
            return frozenset(row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))
    except sqlite3.Error:
        return frozenset()


def sqlite_engine(file: Path, busy_ms: int) -> Engine:
    """Engine of one file; `busy_ms` is how long a writer waits for the transaction of another process.

    Any thread may use its connections, one thread at a time.
    """
    url = URL.create("sqlite+pysqlite", database=str(file))
    engine = create_engine(url, hide_parameters=True, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the `begin` below starts transactions, not the driver
        connection.execute(f"PRAGMA busy_timeout={busy_ms}")
        for pragma in _PRAGMAS:
            _execute_when_free(connection, pragma, busy_ms / 1000)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # a transaction that reads first and writes later could fail as "locked" in between
        reads_only = connection.get_execution_options().get(READS_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    return engine


def file_identity(path: str | Path | None) -> tuple[int, int] | None:
    """Device and inode of a file, which another file under its name does not have; None if there is none."""
    try:
        status = os.stat(path or "")
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _execute_when_free(connection: sqlite3.Connection, pragma: str, seconds: float) -> None:
    """Retry a pragma while the file is locked: the busy timeout does not cover the change of a new file to WAL."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection.execute(pragma).fetchall()
            return
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


@dataclass(frozen=True)
class Migration:
    """One step from a version of the tables to the next. A released step is never edited."""

    number: int
    """1, 2, 3, ..."""
    name: str
    apply: Callable[[Connection], None]


def migrate(connection: Connection, migrations: Sequence[Migration], *, table: str, columns: str, lock: int) -> None:
    """Apply the missing migrations in the caller's transaction, forward only.

    `table` lists those applied: the first of its `columns` (SQL, separated by ", ") is the number; name and applied_at (Unix
    seconds) are optional. `lock` is PostgreSQL's advisory lock, which makes processes that start at once take turns.
    DatabaseError if a newer version of the program has migrated the database, or if PostgreSQL's is another program's.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock})")
        check_database(connection, table)
    connection.exec_driver_sql(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
    names = [column.split()[0] for column in columns.split(", ")]
    applied = connection.exec_driver_sql(f"SELECT max({names[0]}) FROM {table}").scalar() or 0
    newest = migrations[-1].number
    if applied > newest:
        raise DatabaseError(
            f"a newer version of this program has changed its tables (version {applied}; this one knows {newest}): "
            "update this program"
        )
    added = text(f"INSERT INTO {table} VALUES ({', '.join(f':{name}' for name in names)})")
    for migration in migrations[applied:]:
        migration.apply(connection)
        connection.execute(added, {names[0]: migration.number, "name": migration.name, "applied_at": time.time()})
