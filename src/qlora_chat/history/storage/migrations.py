"""Migrations of a history's database and of an outbox in a file of its own.

Scope: DDL for SQLite and PostgreSQL. The applied migrations are listed in the table `migrations`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from qlora_chat import databases
from qlora_chat.databases import Migration

ADVISORY_LOCK = 7_860_001


def migrate(connection: Connection, migrations: Sequence[Migration]) -> None:
    """Apply the missing migrations in the caller's transaction. DatabaseError if a newer program has migrated the database."""
    real = _column_types(connection.dialect.name)[1]
    columns = f"number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at {real} NOT NULL"
    databases.migrate(connection, migrations, table="migrations", columns=columns, lock=ADVISORY_LOCK)


def _executing(statements: Callable[[str], Sequence[str]]) -> Callable[[Connection], None]:
    """Step that executes the statements for the connection's dialect."""

    def apply(connection: Connection) -> None:
        for statement in statements(connection.dialect.name):
            connection.exec_driver_sql(statement)

    return apply


def _column_types(dialect: str) -> tuple[str, str, str]:
    """(growing integer key, double, bytes)."""
    if dialect == "sqlite":
        return "INTEGER PRIMARY KEY AUTOINCREMENT", "REAL", "BLOB"
    return "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "DOUBLE PRECISION", "BYTEA"


def _conversations(dialect: str) -> Sequence[str]:
    seq, real, _ = _column_types(dialect)
    conversation = "TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE"
    tables = (
        f"""CREATE TABLE conversations (
            id TEXT PRIMARY KEY, owner TEXT, title TEXT NOT NULL, tags TEXT NOT NULL, model TEXT, adapter TEXT, system TEXT,
            settings TEXT NOT NULL, head_id TEXT, turns INTEGER NOT NULL, created_at {real} NOT NULL,
            updated_at {real} NOT NULL)""",
        "CREATE INDEX conversations_by_change ON conversations(updated_at)",
        f"""CREATE TABLE turns (
            seq {seq}, id TEXT NOT NULL UNIQUE, conversation_id {conversation}, parent_id TEXT, role TEXT NOT NULL,
            content TEXT NOT NULL, token_ids TEXT NOT NULL, finish_reason TEXT, details TEXT NOT NULL,
            indexed INTEGER NOT NULL, created_at {real} NOT NULL)""",
        "CREATE INDEX turns_by_conversation ON turns(conversation_id, seq)",
        f"""CREATE TABLE feedback (
            seq {seq}, conversation_id {conversation}, turn_id TEXT NOT NULL, rating INTEGER, edited TEXT, comment TEXT,
            created_at {real} NOT NULL)""",
        "CREATE INDEX feedback_by_conversation ON feedback(conversation_id, seq)",
    )
    if dialect == "sqlite":
        return (
            *tables,
            "CREATE VIRTUAL TABLE turns_words USING fts5(content, content='turns', content_rowid='seq', "
            "tokenize='unicode61 remove_diacritics 2')",
        )
    return (*tables, "ALTER TABLE turns ADD COLUMN words tsvector", "CREATE INDEX turns_words ON turns USING gin(words)")


def _outbox(dialect: str) -> Sequence[str]:
    seq, real, blob = _column_types(dialect)
    return (
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        f"""CREATE TABLE outbox (
            seq {seq}, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, conversation_id TEXT NOT NULL, cost BIGINT NOT NULL,
            state TEXT NOT NULL, attempts INTEGER NOT NULL, due_at {real} NOT NULL, reason TEXT, created_at {real} NOT NULL)""",
        "CREATE INDEX outbox_by_due ON outbox(state, due_at)",
        "CREATE INDEX outbox_by_conversation ON outbox(conversation_id)",
        f"CREATE TABLE outbox_bodies (seq {'INTEGER' if dialect == 'sqlite' else 'BIGINT'} PRIMARY KEY, frame {blob} NOT NULL)",
    )


def _token_index(dialect: str) -> Sequence[str]:
    """Replace the index of the text with one of tokens, which WordIndex.add_missing fills from the turns."""
    if dialect == "sqlite":
        return (
            "DROP TABLE turns_words",
            "CREATE VIRTUAL TABLE turns_words USING fts5(content, content='', tokenize='unicode61 remove_diacritics 2')",
            "UPDATE turns SET indexed = 0",
        )
    return ("UPDATE turns SET indexed = 0",)


def _addresses(_: str) -> Sequence[str]:
    return ("ALTER TABLE outbox ADD COLUMN address TEXT",)


def _names_and_sessions(dialect: str) -> Sequence[str]:
    real = _column_types(dialect)[1]
    return (
        "CREATE TABLE names (name_key TEXT PRIMARY KEY, "
        "conversation_id TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE)",
        "CREATE INDEX names_by_conversation ON names(conversation_id)",
        f"CREATE TABLE ended_sessions (name TEXT PRIMARY KEY, ends_at {real} NOT NULL)",
    )


def _hidden(dialect: str) -> Sequence[str]:
    conversation = "conversation_id TEXT PRIMARY KEY REFERENCES conversations(id) ON DELETE CASCADE"
    return (f"CREATE TABLE hidden ({conversation}, since {_column_types(dialect)[1]} NOT NULL)",)


def _votes(dialect: str) -> Sequence[str]:
    seq, real, _ = _column_types(dialect)
    conversation = "TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE"
    return (
        f"""CREATE TABLE votes (
            seq {seq}, conversation_id {conversation}, answers TEXT NOT NULL, verdict TEXT NOT NULL, chosen TEXT,
            blind INTEGER NOT NULL, created_at {real} NOT NULL)""",
        "CREATE INDEX votes_by_conversation ON votes(conversation_id, seq)",
    )


OUTBOX_MIGRATIONS = (Migration(1, "outbox", _executing(_outbox)), Migration(2, "addresses", _executing(_addresses)))
"""For an outbox in a file of its own."""
MIGRATIONS = (
    OUTBOX_MIGRATIONS[0],
    Migration(2, "conversations", _executing(_conversations)),
    Migration(3, "an index of tokens", _executing(_token_index)),
    Migration(4, "addresses", _executing(_addresses)),
    Migration(5, "names and ended sessions", _executing(_names_and_sessions)),
    Migration(6, "hidden conversations", _executing(_hidden)),
    Migration(7, "votes on compared answers", _executing(_votes)),
)
