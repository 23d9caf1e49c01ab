"""Durable store of records: each once, until its conversation is erased.

Scope: tables, writing, erasing and reading. Each sender has ids and conversations of its own. Methods block, and may be called
from several threads and processes. Knows no HTTP and no statistics.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
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
    Row,
    Select,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    delete,
    func,
    insert,
    inspect,
    not_,
    or_,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from qlora_chat.databases import READS_ONLY, Migration, file_identity
from qlora_chat.receiver.database import BUSY_S, StoreError, migrate, open_database, unusable
from qlora_chat.receiver.records import EARLIEST, LATEST, MAX_NAME_LENGTH, MAX_NUMBER, USAGE, Record
from qlora_chat.settings import LOGITS_PROCESSORS

Outcome = Literal["stored", "duplicate", "erased", "conflict"]
"""erased: the conversation was erased before; nothing of the record is stored. conflict: its id is that of another record."""
MAX_SENDER_LENGTH = 64
ROWS_PER_FETCH = 500
CHECKPOINT_MS = 2000
"""Longest time that an erasure waits for readers of erased pages."""

_metadata = MetaData()
records = Table(
    "records", _metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("sender", String(MAX_SENDER_LENGTH), nullable=False),
    Column("id", String(MAX_NAME_LENGTH), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("version", SmallInteger, nullable=False),
    Column("conversation_id", String(MAX_NAME_LENGTH), nullable=False, index=True),
    Column("turn_id", String(MAX_NAME_LENGTH), index=True),
    Column("at", Double, nullable=False),
    Column("day", String(10), nullable=False),
    Column("received_at", Double, nullable=False),
    *(Column(name, String(MAX_NAME_LENGTH)) for name in ("model", "base", "adapter", "precision", "device", "finish_reason")),
    *(Column(name, Double) for name in LOGITS_PROCESSORS),
    *(Column(name, Double) for name in USAGE),
    Column("question_chars", Integer),
    Column("answer_chars", Integer),
    Column("rating", SmallInteger),
    Column("edited", Boolean),
    Column("commented", Boolean),
    Column("body", Text, nullable=False),
    Index("records_kind_at", "kind", "at"),
    UniqueConstraint("sender", "id", name="records_sender_id_key"),
)  # fmt: skip
"""One row per turn or feedback. Double: seconds since 1970, or a number as it was sent. body: exactly what was sent."""
erased = Table(
    "erased", _metadata,
    Column("sender", String(MAX_SENDER_LENGTH), primary_key=True),
    Column("conversation_id", String(MAX_NAME_LENGTH), primary_key=True),
    Column("record_id", String(MAX_NAME_LENGTH), nullable=False),
    Column("at", Double, nullable=False),
)  # fmt: skip
"""Conversations that must not come back with a late record of the sender that erased them."""

_RECORD_FIELDS = ("sender", "id", "kind", "version", "conversation_id", "turn_id", "at", "day", "body")

_COUNTED = (*LOGITS_PROCESSORS, *USAGE)
READABLE = and_(
    records.c.at.between(EARLIEST, LATEST),
    *(or_(records.c[name].is_(None), records.c[name].between(-MAX_NUMBER, MAX_NUMBER)) for name in _COUNTED),
)
"""Condition of rows that can be counted and printed. Earlier versions stored others, too."""


def _add_senders(connection: Connection) -> None:
    """Key records and erasures by their sender; those that are there have the unnamed one."""
    if "sender" in _columns_of(connection, "records"):
        return  # a new store
    if connection.dialect.name == "postgresql":
        for table in ("records", "erased"):
            connection.execute(text(f"ALTER TABLE {table} ADD COLUMN sender VARCHAR({MAX_SENDER_LENGTH}) NOT NULL DEFAULT ''"))
        connection.execute(text("ALTER TABLE records DROP CONSTRAINT records_id_key"))
        connection.execute(text("ALTER TABLE records ADD CONSTRAINT records_sender_id_key UNIQUE (sender, id)"))
        connection.execute(text("ALTER TABLE erased DROP CONSTRAINT erased_pkey, ADD PRIMARY KEY (sender, conversation_id)"))
        return
    for index in records.indexes:
        connection.execute(text(f"DROP INDEX IF EXISTS {index.name}"))
    for table in (records, erased):
        names = ", ".join(_columns_of(connection, table.name))
        connection.execute(text(f"ALTER TABLE {table.name} RENAME TO old_{table.name}"))
        table.create(connection)
        connection.execute(text(f"INSERT INTO {table.name} (sender, {names}) SELECT '', {names} FROM old_{table.name}"))
        connection.execute(text(f"DROP TABLE old_{table.name}"))


MIGRATIONS = (Migration(1, "records", _metadata.create_all), Migration(2, "senders", _add_senders))


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
            if not create:
                self._check()
            if create or self._is_older():
                migrate(self._engine, MIGRATIONS)
            self._add_missing_columns()
        except BaseException:
            self._engine.dispose()
            raise
        self._identity = file_identity(self._engine.url.database)
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        self._insert = (
            dialect.insert(records).on_conflict_do_nothing(index_elements=["sender", "id"]).returning(records.c.number)
        )

    def add(self, arrived: Sequence[Record]) -> list[Outcome]:
        """Store each record once, erase what tombstones name, in order; on disk when this returns. StoreError if not."""
        if self._engine.dialect.name == "sqlite" and file_identity(self._engine.url.database) != self._identity:
            raise StoreError("the store's file was removed or replaced while it was open: restart the receiver")
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
        """Rows in the order of `at`, as dicts of these columns of `records`; None is all. Unreadable rows are skipped."""
        order = (records.c.at, records.c.number)
        query = select(*(records.c[name] for name in columns or records.c.keys())).where(READABLE, *_conditions(where))
        query = query.order_by(*(each.desc() for each in order) if newest_first else order)
        with closing(self.counted(query)) as found:
            for row in found:
                yield dict(row._mapping)

    def counted(self, query: Select[*tuple[Any, ...]]) -> Generator[Row[*tuple[Any, ...]]]:
        """Rows of a query about records, a few at a time. StoreError if it fails."""
        try:
            with self._reading() as connection, connection.execute(query.execution_options(yield_per=ROWS_PER_FETCH)) as found:
                yield from found
        except DBAPIError as problem:
            raise unusable(problem) from problem

    def unreadable_rows(self) -> int:
        """Number of rows that `rows` skips: their numbers or times are out of bounds."""
        with self._reading() as connection:
            return connection.execute(select(func.count()).select_from(records).where(not_(READABLE))).scalar_one()

    def erased_conversations(self) -> int:
        """Number of conversations that have been erased."""
        with self._reading() as connection:
            return connection.execute(select(func.count()).select_from(erased)).scalar_one()

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

    def _is_older(self) -> bool:
        with self._reading() as connection:
            return "sender" not in _columns_of(connection, "records")

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
            ids = {name for record in arrived for name in (record.conversation_id, record.id)}
            query = select(erased).where(or_(erased.c.conversation_id.in_(ids), erased.c.record_id.in_(ids)))
            graves = connection.execute(query).all()
            gone = {(row.sender, row.conversation_id) for row in graves}
            tombstones = {(row.sender, row.record_id) for row in graves}
            return [
                "erased" if (each.sender, each.conversation_id) in gone
                else "conflict" if (each.sender, each.id) in tombstones
                else self._insert_one(connection, each)
                for each in arrived
            ]  # fmt: skip

    def _insert_one(self, connection: Connection, record: Record) -> Outcome:
        row = {
            **{name: getattr(record, name) for name in _RECORD_FIELDS},
            **record.columns,
            "received_at": time.time(),
        }
        if connection.execute(self._insert, row).first() is not None:
            return "stored"
        return "duplicate" if connection.execute(_body_of(record)).scalar() == record.body else "conflict"

    def _erase(self, tombstone: Record) -> Outcome:
        """Delete the sender's records of the conversation and remember its id. A repeated tombstone erases again: the first
        may have been answered with an error because a reader held the old pages."""
        name, mine = tombstone.conversation_id, erased.c.sender == tombstone.sender
        with self._engine.begin() as connection:
            known = connection.execute(select(erased.c.record_id).where(mine, erased.c.conversation_id == name)).first()
            other = select(erased.c.record_id).where(mine, erased.c.record_id == tombstone.id, erased.c.conversation_id != name)
            if connection.execute(other).first() or connection.execute(_body_of(tombstone)).first():
                return "conflict"
            if known is None:
                values = {"sender": tombstone.sender, "conversation_id": name, "record_id": tombstone.id, "at": tombstone.at}
                connection.execute(insert(erased).values(values))
            gone = (records.c.sender == tombstone.sender, records.c.conversation_id == name)
            connection.execute(delete(records).where(*gone))
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
        with closing(self._engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(f"PRAGMA busy_timeout={CHECKPOINT_MS}")
            busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            cursor.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")
            return not busy


def _body_of(record: Record) -> Select[tuple[str]]:
    """Query of the body that is stored under the record's sender and id."""
    return select(records.c.body).where(records.c.sender == record.sender, records.c.id == record.id)


def _columns_of(connection: Connection, table: str) -> list[str]:
    return [each["name"] for each in inspect(connection).get_columns(table)]


def _missing_columns(connection: Connection) -> list[str]:
    present = _columns_of(connection, "records")
    return [name for name in LOGITS_PROCESSORS if name not in present]


def _conditions(where: RecordFilter) -> list[Any]:
    equal = ("kind", "conversation_id", "turn_id", "adapter", "finish_reason")
    conditions: list[Any] = [records.c[name] == value for name in equal if (value := getattr(where, name)) is not None]
    if where.since is not None:
        conditions.append(records.c.at >= where.since)
    if where.until is not None:
        conditions.append(records.c.at < where.until)
    return conditions
