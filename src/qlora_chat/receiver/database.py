"""The database of a store's URL, SQLite or PostgreSQL, opened as durable as it can be.

Scope: URLs and the version of the tables. databases.py opens files and servers. Knows no records.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from qlora_chat import databases
from qlora_chat.databases import (
    DatabaseError,
    Migration,
    check_sqlite_file,
    parse_url,
    postgresql_engine,
    server_problem,
    sqlite_engine,
)
from qlora_chat.errors import UserError
from qlora_chat.private_files import make_private_file

BUSY_S = 10
"""Longest time that a writer of SQLite waits for another, in seconds."""
ADVISORY_LOCK = 716253
OWN_TABLES = frozenset({"receiver_schema", "records", "erased"})


class StoreError(UserError, RuntimeError):
    """A store cannot be opened or used; the message says what arrived, what was expected and what to do next."""


def open_database(address: str, *, create: bool) -> Engine:
    """Engine whose commits are on disk when they return.

    `address` is sqlite:///FILE or postgresql://USER@HOST/NAME. StoreError for any other URL, for one with a password and,
    unless `create`, for a file that does not exist.
    """
    try:
        url = parse_url(address)
        return _sqlite(url, create) if url.get_backend_name() == "sqlite" else postgresql_engine(url)
    except DatabaseError as problem:
        raise StoreError(f"the store cannot be opened: {problem}") from None


def _sqlite(url: URL, create: bool) -> Engine:
    file = Path(str(url.database))
    check_sqlite_file(file, OWN_TABLES)
    if not file.is_file():
        if not create:
            raise StoreError(f"there is no store at {file}; `qlora-chat logs serve --store` makes one")
        try:
            make_private_file(file)
        except OSError as problem:
            raise StoreError(f"the store {file} cannot be created ({problem.strerror or problem})") from problem
    return sqlite_engine(file, BUSY_S * 1000)


def migrate(engine: Engine, migrations: Sequence[Migration]) -> None:
    """Bring the tables to the newest version, in one transaction. StoreError for a store of a later program."""
    try:
        with engine.begin() as connection:
            databases.migrate(
                connection, migrations, table="receiver_schema", columns="version INTEGER NOT NULL", lock=ADVISORY_LOCK
            )
    except DatabaseError as problem:
        raise StoreError(f"the store cannot be opened: {problem}") from None
    except (DBAPIError, sqlite3.Error) as problem:
        raise unusable(problem) from problem


def unusable(problem: Exception) -> StoreError:
    """A database's error for the operator, without the statement and its values."""
    if clause := server_problem(problem):
        return StoreError(f"the store cannot be used: {clause}")
    reason = str(getattr(problem, "orig", None) or problem).strip().splitlines()
    return StoreError(f"the store cannot be used: {reason[0] if reason else type(problem).__name__}")
