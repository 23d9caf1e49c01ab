"""Makes a database's tables, and brings older ones up to date: numbered steps, forward only, each in a transaction.

Scope: DDL. A step that has shipped is never edited; a change is a new step at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from qlora_chat.history import HistoryError

ADVISORY_LOCK = 7_860_001
"""PostgreSQL: two processes that start at once take turns."""


@dataclass(frozen=True)
class Migration:
    """A step; `statements` takes the dialect's name, sqlite or postgresql."""

    number: int
    name: str
    statements: Callable[[str], Sequence[str]]


def _first(dialect: str) -> Sequence[str]:
    sqlite = dialect == "sqlite"
    seq = "INTEGER PRIMARY KEY AUTOINCREMENT" if sqlite else "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    real = "REAL" if sqlite else "DOUBLE PRECISION"
    turns_of = "TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE"
    shared = (
        f"""CREATE TABLE conversations (
            id TEXT PRIMARY KEY, owner TEXT, title TEXT NOT NULL, tags TEXT NOT NULL, model TEXT, adapter TEXT, system TEXT,
            settings TEXT NOT NULL, head_id TEXT, turns INTEGER NOT NULL, created_at {real} NOT NULL,
            updated_at {real} NOT NULL)""",
        "CREATE INDEX conversations_by_change ON conversations(updated_at)",
        f"""CREATE TABLE turns (
            seq {seq}, id TEXT NOT NULL UNIQUE, conversation_id {turns_of}, parent_id TEXT, role TEXT NOT NULL,
            content TEXT NOT NULL, token_ids TEXT NOT NULL, finish_reason TEXT, details TEXT NOT NULL,
            indexed INTEGER NOT NULL, created_at {real} NOT NULL)""",
        "CREATE INDEX turns_by_conversation ON turns(conversation_id, seq)",
        f"""CREATE TABLE feedback (
            seq {seq}, conversation_id {turns_of}, turn_id TEXT NOT NULL, rating INTEGER, edited TEXT, comment TEXT,
            created_at {real} NOT NULL)""",
        "CREATE INDEX feedback_by_conversation ON feedback(conversation_id, seq)",
    )
    if sqlite:
        return (
            *shared,
            "CREATE VIRTUAL TABLE turns_words USING fts5(content, content='turns', content_rowid='seq', "
            "tokenize='unicode61 remove_diacritics 2')",
        )
    return (*shared, "ALTER TABLE turns ADD COLUMN words tsvector", "CREATE INDEX turns_words ON turns USING gin(words)")


def _outbox(dialect: str) -> Sequence[str]:
    sqlite = dialect == "sqlite"
    seq = "INTEGER PRIMARY KEY AUTOINCREMENT" if sqlite else "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    real, blob = ("REAL", "BLOB") if sqlite else ("DOUBLE PRECISION", "BYTEA")
    return (
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        f"""CREATE TABLE outbox (
            seq {seq}, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, conversation_id TEXT NOT NULL, cost BIGINT NOT NULL,
            state TEXT NOT NULL, attempts INTEGER NOT NULL, due_at {real} NOT NULL, reason TEXT, created_at {real} NOT NULL)""",
        "CREATE INDEX outbox_by_due ON outbox(state, due_at)",
        "CREATE INDEX outbox_by_conversation ON outbox(conversation_id)",
        f"CREATE TABLE outbox_bodies (seq {'INTEGER' if sqlite else 'BIGINT'} PRIMARY KEY, frame {blob} NOT NULL)",
    )


def _tokens(dialect: str) -> Sequence[str]:
    """An index of tokens instead of one of the text; WordIndex.add_left_open fills it from the turns."""
    if dialect == "sqlite":
        return (
            "DROP TABLE turns_words",
            "CREATE VIRTUAL TABLE turns_words USING fts5(content, content='', tokenize='unicode61 remove_diacritics 2')",
            "UPDATE turns SET indexed = 0",
        )
    return ("UPDATE turns SET indexed = 0",)


OUTBOX_MIGRATIONS = (Migration(1, "outbox", _outbox),)
"""For an outbox in a file of its own."""
MIGRATIONS = (
    *OUTBOX_MIGRATIONS,
    Migration(2, "conversations", _first),
    Migration(3, "an index of tokens", _tokens),
)


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring a database up to date inside the caller's transaction; -> its version.

    HistoryError where a newer program has changed it already.
    """
    dialect = connection.dialect.name
    if dialect == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
    real = "REAL" if dialect == "sqlite" else "DOUBLE PRECISION"
    connection.exec_driver_sql(
        f"CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at {real} NOT NULL)"
    )
    done = connection.exec_driver_sql("SELECT max(number) FROM migrations").scalar() or 0
    newest = migrations[-1].number
    if done > newest:
        raise HistoryError(
            f"the history has been changed by a newer version of this program (step {done}; this one knows {newest}): update it"
        )
    for migration in migrations:
        if migration.number <= done:
            continue
        for statement in migration.statements(dialect):
            connection.exec_driver_sql(statement)
        mark = "?" if dialect == "sqlite" else "%s"
        connection.exec_driver_sql(
            f"INSERT INTO migrations VALUES ({mark}, {mark}, {mark})", (migration.number, migration.name, time.time())
        )
    return newest
