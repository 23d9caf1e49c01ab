"""Queue of records for a receiver: each is added in the transaction that adds its turn, and removed once it is acknowledged.

Scope: the queue, its cap, its dead letters and its counters. Knows nothing of payloads or HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Row, Text, cast, delete, func, insert, or_, select, update

from qlora_chat.databases import WAL_LIMIT_BYTES
from qlora_chat.history import HistoryError, HistoryUnavailable, OutboxRecord
from qlora_chat.history.outbox.record_frame import DamagedRecord, frame, unframe
from qlora_chat.history.storage.database import RESERVE_BYTES, Database
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.storage.schema import BODIES, FACTS, OUTBOX
from qlora_chat.history.storage.sqlite_pages import PAGE_BYTES

ROW_BYTES = 512
"""Size of a record in tables and indexes, without its body."""
CLAIM_SECONDS = 120.0
"""Time for which a claimed record is hidden from other senders, unless it is released."""
CLAIM_BYTES = WAL_LIMIT_BYTES // 2
"""Most that is claimed at once: acknowledged records are overwritten with zeros, which goes through the log."""
MAX_DELAY_SECONDS = 7200.0
"""Longest time that a retry or a claim may hide a record. One that is due later was queued with a clock that was ahead."""
DAMAGED = "damaged in the file"
OVERHEAD_BYTES = RESERVE_BYTES + 2 * WAL_LIMIT_BYTES
"""Part of the cap for the file's log and the reserved disk space."""


@dataclass(frozen=True)
class QueuedRecord:
    """A claimed record."""

    seq: int
    """Its number for `ack`."""
    outgoing: OutboxRecord
    attempts: int
    """Attempts so far."""


@dataclass(frozen=True)
class Retry:
    """A claimed record to be sent again."""

    seq: int
    due_at: float
    """Unix seconds."""
    reason: str
    attempted: bool = True
    """False releases a record that was claimed and not sent."""


@dataclass(frozen=True)
class Counts:
    """Number of records in each state."""

    waiting: int
    dead: int
    """Rejected by the receiver; stored until erased."""
    bytes: int
    """Size counted against the cap."""
    sent: int
    dropped: int
    """Never sent: the outbox was full, or the redaction failed."""
    damaged: int
    """Found damaged in the file."""
    elsewhere: int = 0
    """For another LOGGING_URL; part of no other number."""


@dataclass(frozen=True)
class DeadLetter:
    """A record that was set aside, without its body."""

    id: str
    kind: str
    conversation_id: str
    address: str | None
    """LOGGING_URL that it was for."""
    reason: str
    attempts: int
    created_at: float
    """Unix seconds."""


class Outbox:
    """Queue in one database, its own or the history's. Safe to call from several threads and processes.

    Records are for `address`, the LOGGING_URL of this process; those for another wait until it is set again, or `move`.
    """

    def __init__(self, database: Database, cipher: Cipher, cap_bytes: int, address: str | None = None) -> None:
        self.added = threading.Event()
        """Set when this process has added a record."""
        self.database, self._cipher, self._cap, self._address = database, cipher, cap_bytes, address
        self._mine = OUTBOX.c.address == address
        self._unwritten: Counter[str] = Counter()
        """Increments of counters that could not be written to a full disk."""
        self._unwritten_lock, self._flush_lock = threading.Lock(), threading.Lock()
        if address is not None:
            self._adopt(address)

    def put(self, outgoing: OutboxRecord) -> None:
        """Add a record in a transaction of its own; one that cannot be written is counted as dropped."""
        try:
            with self.database.write() as connection:
                self.add(connection, outgoing)
        except HistoryUnavailable:
            self.count_dropped()
        self.added.set()

    def add(self, connection: Connection, outgoing: OutboxRecord) -> None:
        """Add a record in the caller's transaction; one that exceeds the cap is counted as dropped instead."""
        moment = time.time()
        if outgoing.address is None:
            outgoing = replace(outgoing, address=self._address)
        data = frame(outgoing, moment, self._cipher)
        cost = _cost(len(data))
        # twice the cost: the log holds a second copy until the next checkpoint
        if self._value(connection, "bytes") + 2 * cost > self._cap - OVERHEAD_BYTES:
            self._count(connection, "dropped", 1)
            return
        row = {
            "id": outgoing.id, "kind": outgoing.kind, "conversation_id": outgoing.conversation_id, "cost": cost,
            "state": "waiting", "attempts": 0, "due_at": moment, "created_at": moment, "address": outgoing.address,
        }  # fmt: skip
        added = self.database.insert(OUTBOX).values(row)
        seq = connection.execute(added.on_conflict_do_nothing(index_elements=["id"]).returning(OUTBOX.c.seq)).scalar()
        if seq is None:  # a transaction that seemed to fail had been committed
            return
        connection.execute(insert(BODIES).values(seq=seq, frame=data))
        self._count(connection, "bytes", cost)

    def count_dropped(self) -> None:
        """Count a record that cannot be queued; written with the next successful write."""
        with self._unwritten_lock:
            self._unwritten["dropped"] += 1

    def claim(self, limit: int) -> Sequence[QueuedRecord]:
        """Claim due records for CLAIM_SECONDS, the oldest first. Damaged ones are counted and become dead letters."""
        self.database.ensure_reserve()
        moment = time.time()
        is_due = or_(OUTBOX.c.due_at <= moment, OUTBOX.c.due_at > moment + MAX_DELAY_SECONDS)
        due = select(OUTBOX.c.seq).where(OUTBOX.c.state == "waiting", is_due, self._mine).order_by(OUTBOX.c.seq).limit(limit)
        with self.database.read() as connection:
            if connection.execute(due.limit(1)).first() is None:
                return ()
        if not self.database.sqlite:
            due = due.with_for_update(skip_locked=True)
        with self._write() as connection:
            seqs = _within_claim_bytes(connection.execute(due.add_columns(OUTBOX.c.cost)).all())
            columns = (OUTBOX.c.seq, OUTBOX.c.attempts, OUTBOX.c.id, OUTBOX.c.conversation_id, BODIES.c.frame)
            rows = select(*columns).outerjoin(BODIES, BODIES.c.seq == OUTBOX.c.seq)
            claimed_rows = connection.execute(rows.where(OUTBOX.c.seq.in_(seqs)).order_by(OUTBOX.c.seq)).all()
            claimed = [each for each in (self._read(connection, row) for row in claimed_rows) if each]
            connection.execute(update(OUTBOX).where(OUTBOX.c.seq.in_(seqs)).values(due_at=moment + CLAIM_SECONDS))
        return claimed

    def ack(self, sent: Sequence[int] = (), retries: Sequence[Retry] = (), dead: Sequence[tuple[int, str]] = ()) -> None:
        """Record the outcome of claimed records: seqs that have arrived, retries, and (seq, reason) of those rejected."""
        with self._write() as connection:
            if sent:
                self._remove(connection, sent)
                self._count(connection, "sent", len(sent))
            for each in retries:
                values = {"due_at": each.due_at, "reason": each.reason, "attempts": OUTBOX.c.attempts + each.attempted}
                connection.execute(update(OUTBOX).where(OUTBOX.c.seq == each.seq).values(values))
            for seq, reason in dead:
                values = {"state": "dead", "reason": reason, "attempts": OUTBOX.c.attempts + 1}
                connection.execute(update(OUTBOX).where(OUTBOX.c.seq == seq).values(values))

    def counts(self) -> Counts:
        """Number of records in each state; sent, dropped and damaged are totals since the outbox was created."""
        with self.database.read() as connection:
            rows = connection.execute(select(OUTBOX.c.state, func.count()).where(self._mine).group_by(OUTBOX.c.state))
            states = {row[0]: row[1] for row in rows}
            elsewhere = OUTBOX.c.address.is_distinct_from(self._address)
            others = connection.execute(select(func.count()).select_from(OUTBOX).where(elsewhere)).scalar_one()
            totals = {name: self._value(connection, name) for name in ("bytes", "sent", "dropped", "damaged")}
        with self._unwritten_lock:
            totals["dropped"] += self._unwritten["dropped"]
        return Counts(states.get("waiting", 0), states.get("dead", 0), **totals, elsewhere=others)

    def addresses(self) -> Sequence[tuple[str | None, int, int]]:
        """(address, waiting, dead) of each address with records; None for records of earlier versions."""
        waiting, dead = (func.count().filter(OUTBOX.c.state == state) for state in ("waiting", "dead"))
        query = select(OUTBOX.c.address, waiting, dead).group_by(OUTBOX.c.address).order_by(OUTBOX.c.address)
        with self.database.read() as connection:
            return [(row[0], row[1], row[2]) for row in connection.execute(query)]

    def move(self, from_address: str, to_address: str) -> int:
        """Send the records for one address to another, dead letters included. Returns how many."""
        return self._set_address(OUTBOX.c.address == from_address, to_address)

    def _adopt(self, address: str) -> None:
        """Take over records of an earlier version, which noted no address."""
        unmarked = OUTBOX.c.address.is_(None)
        with self.database.read() as connection:
            found = connection.execute(select(OUTBOX.c.seq).where(unmarked).limit(1)).first()
        if found:
            self._set_address(unmarked, address)

    def _set_address(self, condition: ColumnElement[bool], address: str) -> int:
        with self.database.write() as connection:
            query = select(OUTBOX.c.seq, BODIES.c.frame).join(BODIES, BODIES.c.seq == OUTBOX.c.seq).where(condition)
            for seq, data in connection.execute(query).all():
                with suppress(DamagedRecord, HistoryError):  # a broken record is found when it is claimed
                    record, created_at = unframe(data, self._cipher)
                    moved = frame(replace(record, address=address), created_at, self._cipher)
                    connection.execute(update(BODIES).where(BODIES.c.seq == seq).values(frame=moved))
            moved_rows = connection.execute(update(OUTBOX).where(condition).values(address=address, due_at=time.time()))
        self.added.set()
        return moved_rows.rowcount

    def dead_letters(self) -> Sequence[DeadLetter]:
        """Dead letters of every address, the oldest first."""
        columns = [OUTBOX.c[each.name] for each in fields(DeadLetter)]
        with self.database.read() as connection:
            rows = connection.execute(select(*columns).where(OUTBOX.c.state == "dead").order_by(OUTBOX.c.seq))
            return [DeadLetter(**{**row._mapping, "reason": row.reason or ""}) for row in rows]

    def requeue_dead_letters(self, ids: Sequence[str] | None = None) -> int:
        """Queue dead letters again, all or those with these ids; damaged ones stay. Returns how many."""
        chosen = [OUTBOX.c.state == "dead", OUTBOX.c.reason.is_distinct_from(DAMAGED)]
        if ids is not None:
            chosen.append(OUTBOX.c.id.in_(ids))
        with self.database.write() as connection:
            values = {"state": "waiting", "due_at": time.time(), "attempts": 0}
            requeued = connection.execute(update(OUTBOX).where(*chosen).values(values))
        self.added.set()
        return requeued.rowcount

    def repair_counters(self) -> None:
        """Recompute attempts, costs and the byte count, which a flipped bit may have changed without any index noticing."""
        with self.database.write() as connection:
            invalid = func.typeof(OUTBOX.c.attempts) != "integer"
            connection.execute(update(OUTBOX).where(invalid).values(attempts=0))
            costs = connection.execute(
                select(OUTBOX.c.seq, func.length(BODIES.c.frame)).join(BODIES, BODIES.c.seq == OUTBOX.c.seq)
            )
            total = 0
            for seq, size in costs.all():
                total += _cost(size)
                connection.execute(
                    update(OUTBOX).where(OUTBOX.c.seq == seq, OUTBOX.c.cost != _cost(size)).values(cost=_cost(size))
                )
            connection.execute(delete(FACTS).where(FACTS.c.name == "outbox bytes"))
            self._count(connection, "bytes", total)

    def import_recovered(self, records: Sequence[OutboxRecord], damaged: int) -> None:
        """Add the records of a damaged file, and count those that were lost."""
        with self.database.write() as connection:
            for outgoing in records:
                self.add(connection, outgoing)
            if damaged:
                self._count(connection, "damaged", damaged)
        self.added.set()

    def delete_for(self, connection: Connection, conversation_ids: Sequence[str]) -> None:
        """Delete the records of these conversations, dead letters included, in the caller's transaction."""
        rows = connection.execute(select(OUTBOX.c.seq).where(OUTBOX.c.conversation_id.in_(conversation_ids)))
        self._remove(connection, list(rows.scalars()))

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord]) -> None:
        """Delete the records of conversations and queue their tombstones, for an outbox in a file of its own."""
        with self.database.write() as connection:
            self.delete_for(connection, conversation_ids)
            for tombstone in tombstones:
                self.add(connection, tombstone)
        self.database.purge_old_pages()
        self.added.set()

    def close(self) -> None:
        """Write pending counters and close the file."""
        if self._unwritten:
            with suppress(HistoryUnavailable), self._write():
                pass
        self.database.close()

    def _read(self, connection: Connection, row: Row[*tuple[Any, ...]]) -> QueuedRecord | None:
        try:
            outgoing, _ = unframe(row.frame or b"", self._cipher)
        except DamagedRecord:
            self._count(connection, "damaged", 1)
            reason = DAMAGED
        except HistoryError:
            reason = "encrypted with another key"
        else:
            if not self._cipher.encrypts or (outgoing.id, outgoing.conversation_id) == (row.id, row.conversation_id):
                return QueuedRecord(row.seq, outgoing, row.attempts)
            reason = "moved from another record"  # an erasure, which finds records by their rows, would miss it
        connection.execute(update(OUTBOX).where(OUTBOX.c.seq == row.seq).values(state="dead", reason=reason))
        return None

    def _remove(self, connection: Connection, seqs: Sequence[int]) -> None:
        for seq in seqs:
            cost = connection.execute(delete(OUTBOX).where(OUTBOX.c.seq == seq).returning(OUTBOX.c.cost)).scalar()
            if cost is not None:
                connection.execute(delete(BODIES).where(BODIES.c.seq == seq))
                self._count(connection, "bytes", -cost)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that also writes pending counters.

        If the disk is full it fails and frees the reserved space, so that the next one succeeds.
        """
        try:
            with self._write_once() as connection:
                yield connection
        except HistoryUnavailable:
            with suppress(HistoryUnavailable):
                self.database.free_reserve()
            raise

    @contextmanager
    def _write_once(self) -> Iterator[Connection]:
        with self._flush_lock:
            with self.database.write() as connection:
                with self._unwritten_lock:
                    counts = Counter(self._unwritten)
                for name, count in counts.items():
                    self._count(connection, name, count)
                yield connection
            with self._unwritten_lock:
                self._unwritten -= counts

    @staticmethod
    def _value(connection: Connection, name: str) -> int:
        value = str(connection.execute(select(FACTS.c.value).where(FACTS.c.name == f"outbox {name}")).scalar() or 0)
        return int(value) if value.lstrip("-").isdecimal() else 0

    def _count(self, connection: Connection, name: str, count: int) -> None:
        """Add to a counter."""
        total = cast(cast(FACTS.c.value, BigInteger) + count, Text)
        added = self.database.insert(FACTS).values(name=f"outbox {name}", value=str(count))
        connection.execute(added.on_conflict_do_update(index_elements=["name"], set_={"value": total}))


def _within_claim_bytes(rows: Sequence[Row[*tuple[Any, ...]]]) -> list[int]:
    """Seqs of the first (seq, cost) rows, at least one, up to a total cost of CLAIM_BYTES."""
    seqs, total = [], 0
    for seq, cost in rows:
        total += cost
        if seqs and total > CLAIM_BYTES:
            break
        seqs.append(seq)
    return seqs


def _cost(size: int) -> int:
    """Upper bound of a record's bytes on disk: whole pages for the body, plus its rows."""
    return (size // PAGE_BYTES + 1) * PAGE_BYTES + ROW_BYTES
