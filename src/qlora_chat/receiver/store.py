"""Keeps each record once, for good, until its conversation is erased.

Scope: the tables, writing, erasing and reading. Knows no HTTP and no statistics. Methods block, and may be called from
several threads and processes.
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
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from qlora_chat.databases import READS_ONLY, Migration
from qlora_chat.receiver.database import BUSY_SECONDS, StoreError, migrate, open_database, unusable
from qlora_chat.receiver.records import LONGEST_NAME, Record

Outcome = Literal["stored", "duplicate", "erased"]
"""erased: the conversation has been erased; nothing of the record was kept."""
ROWS_AT_ONCE = 500
CHECKPOINT_MS = 2000
"""How long an erasure waits for readers to let go of what is erased."""

_metadata = MetaData()
records = Table(
    "records", _metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(LONGEST_NAME), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("version", SmallInteger, nullable=False),
    Column("conversation_id", String(LONGEST_NAME), nullable=False, index=True),
    Column("turn_id", String(LONGEST_NAME), index=True),
    Column("at", Double, nullable=False),
    Column("day", String(10), nullable=False),
    Column("received_at", Double, nullable=False),
    Column("model", String(LONGEST_NAME)),
    Column("base", String(LONGEST_NAME)),
    Column("adapter", String(LONGEST_NAME)),
    Column("precision", String(LONGEST_NAME)),
    Column("device", String(LONGEST_NAME)),
    Column("finish_reason", String(LONGEST_NAME)),
    Column("temperature", Double),
    Column("top_p", Double),
    Column("top_k", Double),
    Column("repetition_penalty", Double),
    Column("prompt_tokens", Double),
    Column("cached_tokens", Double),
    Column("completion_tokens", Double),
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
"""One row a turn or feedback. Double: seconds since 1970, or a figure as it was sent. body: exactly what was sent."""
erased = Table(
    "erased", _metadata,
    Column("conversation_id", String(LONGEST_NAME), primary_key=True),
    Column("record_id", String(LONGEST_NAME), nullable=False),
    Column("at", Double, nullable=False),
)  # fmt: skip
"""Conversations that must not come back with a record that was under way."""

MIGRATIONS = (Migration(1, "records", _metadata.create_all),)


@dataclass(frozen=True)
class TurnFilter:
    """Which records to read; None is any."""

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
        """StoreError where the store cannot be opened, or is not there and may not be made."""
        self._engine = open_database(address, create=create)
        try:
            if create:
                migrate(self._engine, MIGRATIONS)
            else:
                self._check()
        except BaseException:
            self._engine.dispose()
            raise
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        self._insert = dialect.insert(records).on_conflict_do_nothing(index_elements=["id"]).returning(records.c.number)

    def keep(self, arrived: Sequence[Record]) -> list[Outcome]:
        """Keep each record once, erase what tombstones name, in order; on disk when this returns. StoreError if not."""
        outcomes: list[Outcome] = []
        try:
            for is_tombstone, group in groupby(arrived, key=lambda record: record.kind == "tombstone"):
                alike = list(group)
                outcomes.extend([self._erase(each) for each in alike] if is_tombstone else self._add(alike))
        except DBAPIError as problem:
            raise unusable(problem) from problem
        return outcomes

    def find(self, wanted: TurnFilter, *, newest_first: bool = False) -> Iterator[dict[str, Any]]:
        """Rows in the order of `at`, as dicts of the columns of `records`."""
        yield from self.columns(tuple(column.name for column in records.columns), wanted, newest_first=newest_first)

    def columns(self, names: Sequence[str], wanted: TurnFilter, *, newest_first: bool = False) -> Iterator[dict[str, Any]]:
        """The same, of some columns only."""
        order = (records.c.at, records.c.number)
        query = select(*(records.c[name] for name in names)).where(*_conditions(wanted))
        query = query.order_by(*(each.desc() for each in order) if newest_first else order)
        try:
            with self._reading() as connection:
                for row in connection.execute(query.execution_options(yield_per=ROWS_AT_ONCE)):
                    yield dict(row._mapping)
        except DBAPIError as problem:
            raise unusable(problem) from problem

    def erased_conversations(self) -> int:
        """How many conversations have been erased."""
        with self._reading() as connection:
            return len(connection.execute(select(erased.c.conversation_id)).all())

    def close(self) -> None:
        """Let the database go."""
        self._engine.dispose()

    def _check(self) -> None:
        try:
            with self._reading() as connection:
                connection.execute(select(records.c.number).limit(1)).all()
        except (DBAPIError, sqlite3.Error) as problem:
            raise StoreError(
                f"{unusable(problem)}; is it the URL that `qlora-chat logs serve --store` was started with?"
            ) from problem

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._engine.connect().execution_options(**{READS_ONLY: True})

    def _add(self, arrived: Sequence[Record]) -> list[Outcome]:
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                # Until this commits no other process erases, so no record slips in behind a tombstone.
                connection.execute(text("LOCK TABLE erased IN SHARE MODE"))
            names = {record.conversation_id for record in arrived}
            gone = set(
                connection.execute(select(erased.c.conversation_id).where(erased.c.conversation_id.in_(names))).scalars()
            )
            return ["erased" if record.conversation_id in gone else self._add_one(connection, record) for record in arrived]

    def _add_one(self, connection: Connection, record: Record) -> Outcome:
        row = {
            "id": record.id,
            "kind": record.kind,
            "version": record.version,
            "conversation_id": record.conversation_id,
            "turn_id": record.turn_id,
            "at": record.at,
            "day": record.day,
            "received_at": time.time(),
            "body": record.body,
            **record.figures,
        }
        return "duplicate" if connection.execute(self._insert, row).first() is None else "stored"

    def _erase(self, tombstone: Record) -> Outcome:
        """Delete the conversation's records and remember its id. A repeated tombstone erases again: the first may have
        been answered with an error because a reader kept the old pages in use."""
        name = tombstone.conversation_id
        with self._engine.begin() as connection:
            known = connection.execute(select(erased.c.record_id).where(erased.c.conversation_id == name)).first()
            if known is None:
                connection.execute(insert(erased).values(conversation_id=name, record_id=tombstone.id, at=tombstone.at))
            connection.execute(delete(records).where(records.c.conversation_id == name))
        self._leave_no_trace()
        return "stored" if known is None else "duplicate"

    def _leave_no_trace(self) -> None:
        """What was deleted goes from the files, too: SQLite's WAL is emptied, PostgreSQL's dead rows are vacuumed."""
        if self._engine.dialect.name == "postgresql":
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM records"))
        elif not self._wal_emptied():
            raise StoreError("a reader keeps erased pages in use; the tombstone has to be sent again")

    def _wal_emptied(self) -> bool:
        connection = self._engine.raw_connection()
        cursor = connection.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout={CHECKPOINT_MS}")
            busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
            return not busy
        finally:
            cursor.close()
            connection.close()


def _conditions(wanted: TurnFilter) -> list[Any]:
    equal = ("kind", "conversation_id", "turn_id", "adapter", "finish_reason")
    found: list[Any] = [records.c[name] == value for name in equal if (value := getattr(wanted, name)) is not None]
    if wanted.since is not None:
        found.append(records.c.at >= wanted.since)
    if wanted.until is not None:
        found.append(records.c.at < wanted.until)
    return found
