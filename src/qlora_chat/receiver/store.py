"""Durable store of records: each once, until its conversation is erased.

Scope: tables, writing, erasing and reading. Knows no HTTP and no statistics. Methods block, and may be called from several
threads and processes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    delete,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from qlora_chat.databases import READS_ONLY, Migration
from qlora_chat.receiver.database import BUSY_S, StoreError, migrate, open_database, unusable
from qlora_chat.receiver.records import MAX_NAME_LENGTH, Record
from qlora_chat.settings import LOGITS_PROCESSORS

Outcome = Literal["stored", "duplicate", "erased"]
"""erased: the conversation was erased before; nothing of the record is stored."""
ROWS_PER_FETCH = 500
CHECKPOINT_MS = 2000
"""Longest time that an erasure waits for readers of erased pages."""

_metadata = MetaData()
records = Table(
    "records", _metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(MAX_NAME_LENGTH), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("version", SmallInteger, nullable=False),
    Column("conversation_id", String(MAX_NAME_LENGTH), nullable=False, index=True),
    Column("turn_id", String(MAX_NAME_LENGTH), index=True),
    Column("at", Double, nullable=False),
    Column("day", String(10), nullable=False),
    Column("received_at", Double, nullable=False),
    *(Column(name, String(MAX_NAME_LENGTH)) for name in ("model", "base", "adapter", "precision", "device", "finish_reason")),
    *(Column(name, Double) for name in LOGITS_PROCESSORS),
    *(Column(name, Double) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")),
    Column("question_chars", Integer),
    Column("answer_chars", Integer),
    Column("ttft_ms", Double),
    Column("tokens_per_s", Double),
    Column("rating", SmallInteger),
    Column("edited", Boolean),
    Column("commented", Boolean),
    Column("body", Text, nullable=False),
    Index("records_kind_at", "kind", "at"),
)  # fmt: skip
"""One row per turn or feedback. Double: seconds since 1970, or a number as it was sent. body: exactly what was sent."""
erased = Table(
    "erased", _metadata,
    Column("conversation_id", String(MAX_NAME_LENGTH), primary_key=True),
    Column("record_id", String(MAX_NAME_LENGTH), nullable=False),
    Column("at", Double, nullable=False),
)  # fmt: skip
"""Conversations that must not come back with a late record."""

_RECORD_FIELDS = ("id", "kind", "version", "conversation_id", "turn_id", "at", "day", "body")

MIGRATIONS = (Migration(1, "records", _metadata.create_all),)


@dataclass(frozen=True)
class RecordFilter:
    """Filter of records; None matches any."""

    kind: str | None = None
    conversation_id: str | None = None
    turn_id: str | None = None
    adapter: str | None = None
    finish_reason: str | None = None
    since: float | None = None
    until: float | None = None
    """Seconds since 1970; since is included, until is not."""


class RecordStore:
    """Records in SQLite or PostgreSQL."""

    def __init__(self, address: str, *, create: bool = False) -> None:
        """StoreError if the store cannot be opened, or does not exist and `create` is false."""
        self._engine = open_database(address, create=create)
        try:
            if create:
                migrate(self._engine, MIGRATIONS)
            else:
                self._check()
            self._add_missing_columns()
        except BaseException:
            self._engine.dispose()
            raise
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        self._insert = dialect.insert(records).on_conflict_do_nothing(index_elements=["id"]).returning(records.c.number)

    def add(self, arrived: Sequence[Record]) -> list[Outcome]:
        """Store each record once, erase what tombstones name, in order; on disk when this returns. StoreError if not."""
        outcomes: list[Outcome] = []
        try:
            for is_tombstone, group in groupby(arrived, key=lambda record: record.kind == "tombstone"):
                batch = list(group)
                outcomes.extend([self._erase(each) for each in batch] if is_tombstone else self._insert_all(batch))
        except DBAPIError as problem:
            raise unusable(problem) from problem
        return outcomes

    def rows(
        self, where: RecordFilter, columns: Sequence[str] | None = None, *, newest_first: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Rows in the order of `at`, as dicts of these columns of `records`; None is all of them."""
        order = (records.c.at, records.c.number)
        query = select(*(records.c[name] for name in columns or records.c.keys())).where(*_conditions(where))
        query = query.order_by(*(each.desc() for each in order) if newest_first else order)
        try:
            with self._reading() as connection:
                for row in connection.execute(query.execution_options(yield_per=ROWS_PER_FETCH)):
                    yield dict(row._mapping)
        except DBAPIError as problem:
            raise unusable(problem) from problem

    def erased_conversations(self) -> int:
        """Number of conversations that have been erased."""
        with self._reading() as connection:
            return len(connection.execute(select(erased.c.conversation_id)).all())

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    def _check(self) -> None:
        try:
            with self._reading() as connection:
                connection.execute(select(records.c.number).limit(1)).all()
        except (DBAPIError, sqlite3.Error) as problem:
            raise StoreError(
                f"{unusable(problem)}; is it the URL that `qlora-chat logs serve --store` was started with?"
            ) from problem

    def _add_missing_columns(self) -> None:
        """Add the columns of sampling settings that are newer than the store. StoreError where they cannot be added."""
        with self._reading() as connection:
            if not _missing_columns(connection):
                return
        try:
            with self._engine.begin() as connection:
                for name in _missing_columns(connection):
                    guard = "IF NOT EXISTS " if self._engine.dialect.name == "postgresql" else ""
                    connection.execute(text(f"ALTER TABLE records ADD COLUMN {guard}{name} DOUBLE PRECISION"))
        except DBAPIError as problem:
            raise StoreError(
                f"{unusable(problem)}; start `qlora-chat logs serve` once, which brings the store up to date"
            ) from problem

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._engine.connect().execution_options(**{READS_ONLY: True})

    def _insert_all(self, arrived: Sequence[Record]) -> list[Outcome]:
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                # No other process erases before this commits, so no record is inserted after its tombstone.
                connection.execute(text("LOCK TABLE erased IN SHARE MODE"))
            names = {record.conversation_id for record in arrived}
            query = select(erased.c.conversation_id).where(erased.c.conversation_id.in_(names))
            gone = set(connection.execute(query).scalars())
            return ["erased" if each.conversation_id in gone else self._insert_one(connection, each) for each in arrived]

    def _insert_one(self, connection: Connection, record: Record) -> Outcome:
        row = {
            **{name: getattr(record, name) for name in _RECORD_FIELDS},
            **record.columns,
            "received_at": time.time(),
        }
        return "duplicate" if connection.execute(self._insert, row).first() is None else "stored"

    def _erase(self, tombstone: Record) -> Outcome:
        """Delete the conversation's records and remember its id. A repeated tombstone erases again: the first may have
        been answered with an error because a reader held the old pages."""
        name = tombstone.conversation_id
        with self._engine.begin() as connection:
            known = connection.execute(select(erased.c.record_id).where(erased.c.conversation_id == name)).first()
            if known is None:
                connection.execute(insert(erased).values(conversation_id=name, record_id=tombstone.id, at=tombstone.at))
            connection.execute(delete(records).where(records.c.conversation_id == name))
        self._purge_files()
        return "stored" if known is None else "duplicate"

    def _purge_files(self) -> None:
        """Remove deleted rows from the files, too: empty SQLite's WAL, vacuum PostgreSQL's dead rows."""
        if self._engine.dialect.name == "postgresql":
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM records"))
        elif not self._empty_wal():
            raise StoreError("a reader holds erased pages; the tombstone has to be sent again")

    def _empty_wal(self) -> bool:
        """True if SQLite's write-ahead log could be emptied."""
        connection = self._engine.raw_connection()
        cursor = connection.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout={CHECKPOINT_MS}")
            busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            cursor.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")
            return not busy
        finally:
            cursor.close()
            connection.close()


def _missing_columns(connection: Connection) -> list[str]:
    present = {each["name"] for each in inspect(connection).get_columns("records")}
    return [name for name in LOGITS_PROCESSORS if name not in present]


def _conditions(where: RecordFilter) -> list[Any]:
    equal = ("kind", "conversation_id", "turn_id", "adapter", "finish_reason")
    conditions: list[Any] = [records.c[name] == value for name in equal if (value := getattr(where, name)) is not None]
    if where.since is not None:
        conditions.append(records.c.at >= where.since)
    if where.until is not None:
        conditions.append(records.c.at < where.until)
    return conditions
