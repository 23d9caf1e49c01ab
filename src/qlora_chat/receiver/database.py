"""Opens the database that a store's URL names: SQLite or PostgreSQL, as durable as they can be.

Scope: addresses and the version of the tables. How a file or a server is opened is databases.py's. Knows no records.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import Connection, Engine, column, insert, select, table, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from qlora_chat.databases import postgresql_engine, private_file, sqlite_engine
from qlora_chat.errors import UserError

BUSY_SECONDS = 10
"""How long a writer of SQLite waits for another one."""

Migration = Callable[[Connection], None]


class StoreError(UserError, RuntimeError):
    """A store cannot be opened or used; the message says what arrived, what was expected and what to do next."""


def open_database(address: str, *, create: bool) -> Engine:
    """An engine on which a commit is on disk when it returns.

    Takes sqlite:///FILE and postgresql://USER@HOST/NAME. StoreError for any other URL, one with a password in it, or,
    unless `create`, a file that is not there.
    """
    url = _checked(address)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, create)
    try:
        return postgresql_engine(url)
    except ModuleNotFoundError:
        raise StoreError("postgresql:// needs the psycopg package: pip install 'qlora-chat[postgres]'") from None


def _checked(address: str) -> URL:
    expected = "a store is sqlite:///FILE or postgresql://USER@HOST/NAME"
    try:
        url = make_url(address)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise StoreError(f"--store names no database: {expected}") from None
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"--store begins with {url.drivername}://, but {expected}")
    if url.password is not None:
        raise StoreError(
            "--store holds a password, which every user of this machine could read: put it into PGPASSWORD instead"
        )
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise StoreError(f"--store names no file: {expected}")
    return url


def _sqlite(url: URL, create: bool) -> Engine:
    file = Path(str(url.database)).expanduser()
    if not file.is_file():
        if not create:
            raise StoreError(f"there is no store at {file}; `qlora-chat logs serve --store` makes one")
        try:
            private_file(file)
        except OSError as problem:
            raise StoreError(f"the store {file} cannot be made ({problem.strerror or problem})") from problem
    return sqlite_engine(file, BUSY_SECONDS * 1000)


_VERSIONS = table("receiver_schema", column("version"))


def migrate(engine: Engine, migrations: Sequence[Migration]) -> None:
    """Bring the tables to the newest version, forward only, in one transaction. StoreError for a store of a later program."""
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(716253)"))  # two receivers may start at once
            connection.execute(text("CREATE TABLE IF NOT EXISTS receiver_schema (version INTEGER NOT NULL)"))
            done = connection.execute(select(_VERSIONS.c.version)).scalars().all()
            _check_version(max(done, default=0), len(migrations))
            for version, step in enumerate(migrations, start=1):
                if version not in done:
                    step(connection)
                    connection.execute(insert(_VERSIONS).values(version=version))
    except (DBAPIError, sqlite3.Error) as problem:
        raise unusable(problem) from problem


def _check_version(found: int, known: int) -> None:
    if found > known:
        raise StoreError(f"the store is of version {found}, and this program knows {known}: use the newer program that made it")


def unusable(problem: Exception) -> StoreError:
    """What a database's refusal means to the person who gave its URL, without the statement and its values."""
    reason = str(getattr(problem, "orig", None) or problem).strip().splitlines()
    return StoreError(f"the store cannot be used: {reason[0] if reason else type(problem).__name__}")
