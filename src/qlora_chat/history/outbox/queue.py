"""Records on their way to a receiver: added in the transaction that adds the turn, taken out when they have arrived.

Scope: the queue, its cap, its dead letters and its counts. Knows nothing of payloads or HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Text, cast, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from qlora_chat.databases import WAL_LIMIT_BYTES
from qlora_chat.history import HistoryError, HistoryUnavailable, OutboxRecord
from qlora_chat.history.outbox.record_frame import DamagedRecord, frame, unframe
from qlora_chat.history.storage.database import RESERVE_BYTES, Database
from qlora_chat.history.storage.encryption import Cipher, PlainCipher
from qlora_chat.history.storage.schema import BODIES, FACTS, OUTBOX

PAGE = 4096
ROW_BYTES = 512
"""What a record takes in the tables and indexes beside its body."""
CLAIM_SECONDS = 120.0
"""A record handed to one sender is not handed to another for this long, unless it is given back."""
CLAIM_BYTES = WAL_LIMIT_BYTES // 2
"""Most that is claimed at once: striking records off overwrites them with zeros, by way of the log."""
OVERHEAD_BYTES = RESERVE_BYTES + 2 * WAL_LIMIT_BYTES
"""Of the cap: what the file's log and the room kept for emptying a full disk take."""
DEFAULT_CAP_BYTES = 50_000_000


@dataclass(frozen=True)
class QueuedRecord:
    """A record that is due."""

    seq: int
    """What `settle` knows it by."""
    outgoing: OutboxRecord
    attempts: int
    """Tries so far."""


@dataclass(frozen=True)
class Later:
    """A record that is to be tried again."""

    seq: int
    due_at: float
    """Unix seconds."""
    reason: str
    tried: bool = True
    """False gives a record back that there was no time for."""


@dataclass(frozen=True)
class Counts:
    """Where every record that was ever made is now."""

    waiting: int
    dead: int
    """Refused by the receiver for good; kept until erased."""
    bytes: int
    """Counted against the cap."""
    sent: int
    dropped: int
    """For want of room or because a redaction failed; never sent."""
    damaged: int
    """Found broken in the file."""


class Outbox:
    """The queue over one database, its own or the history's. Safe to call from several threads and processes."""

    def __init__(self, database: Database, seal: Cipher | None = None, cap_bytes: int = DEFAULT_CAP_BYTES) -> None:
        self.added = threading.Event()
        """Set when a record of this process is there to be sent."""
        self._database, self._seal, self._cap = database, seal or PlainCipher(), cap_bytes
        self._unwritten: Counter[str] = Counter()
        """Counts that could not be written yet, because the disk is full."""
        self._lock, self._counting = threading.Lock(), threading.Lock()

    def put(self, outgoing: OutboxRecord) -> None:
        """Queue a record in a transaction of its own; one that cannot be written is counted as dropped."""
        try:
            with self._database.write() as connection:
                self.add(connection, outgoing)
        except HistoryUnavailable:
            self.dropped()
        self.added.set()

    def add(self, connection: Connection, outgoing: OutboxRecord) -> None:
        """Queue a record in the caller's transaction; beyond the cap it is counted as dropped instead."""
        moment = time.time()
        data = frame(outgoing, moment, self._seal)
        cost = _cost(len(data))
        # the log holds a record once more, for a while
        if self._value(connection, "bytes") + 2 * cost > self._cap - OVERHEAD_BYTES:
            self._count(connection, "dropped", 1)
            return
        row = {
            "id": outgoing.id, "kind": outgoing.kind, "conversation_id": outgoing.conversation_id, "cost": cost,
            "state": "waiting", "attempts": 0, "due_at": moment, "created_at": moment,
        }  # fmt: skip
        seq = connection.execute(insert(OUTBOX).values(row).returning(OUTBOX.c.seq)).scalar_one()
        connection.execute(insert(BODIES).values(seq=seq, frame=data))
        self._count(connection, "bytes", cost)

    def dropped(self, count: int = 1) -> None:
        """Count records that were made and cannot be kept; written when something can be written again."""
        with self._lock:
            self._unwritten["dropped"] += count

    def claim(self, limit: int) -> Sequence[QueuedRecord]:
        """Take records that are due, the oldest first, for CLAIM_SECONDS; broken ones are counted and put aside."""
        self._database.keep_reserve()
        moment = time.time()
        due = (
            select(OUTBOX.c.seq)
            .where(OUTBOX.c.state == "waiting", OUTBOX.c.due_at <= moment)
            .order_by(OUTBOX.c.seq)
            .limit(limit)
        )
        with self._database.read() as connection:
            if connection.execute(due.limit(1)).first() is None:
                return ()
        if not self._database.sqlite:
            due = due.with_for_update(skip_locked=True)
        with self._write() as connection:
            seqs = _first_few(connection.execute(due.add_columns(OUTBOX.c.cost)).all())
            rows = select(OUTBOX.c.seq, OUTBOX.c.attempts, BODIES.c.frame).outerjoin(BODIES, BODIES.c.seq == OUTBOX.c.seq)
            found = connection.execute(rows.where(OUTBOX.c.seq.in_(seqs)).order_by(OUTBOX.c.seq)).all()
            claimed = [each for each in (self._read(connection, *row) for row in found) if each]
            connection.execute(update(OUTBOX).where(OUTBOX.c.seq.in_(seqs)).values(due_at=moment + CLAIM_SECONDS))
        return claimed

    def settle(self, sent: Sequence[int] = (), later: Sequence[Later] = (), dead: Sequence[tuple[int, str]] = ()) -> None:
        """What became of claimed records: arrived; to be tried again; refused for good, and why."""
        with self._write() as connection:
            if sent:
                self._remove(connection, sent)
                self._count(connection, "sent", len(sent))
            for each in later:
                tried = {"due_at": each.due_at, "reason": each.reason, "attempts": OUTBOX.c.attempts + each.tried}
                connection.execute(update(OUTBOX).where(OUTBOX.c.seq == each.seq).values(tried))
            for seq, reason in dead:
                buried = {"state": "dead", "reason": reason, "attempts": OUTBOX.c.attempts + 1}
                connection.execute(update(OUTBOX).where(OUTBOX.c.seq == seq).values(buried))

    def counts(self) -> Counts:
        """Where every record is; sent, dropped and damaged count from the beginning."""
        with self._database.read() as connection:
            rows = connection.execute(select(OUTBOX.c.state, func.count()).group_by(OUTBOX.c.state))
            states = {row[0]: row[1] for row in rows}
            facts = {name: self._value(connection, name) for name in ("bytes", "sent", "dropped", "damaged")}
        with self._lock:
            facts["dropped"] += self._unwritten["dropped"]
        return Counts(states.get("waiting", 0), states.get("dead", 0), **facts)

    def dead_letters(self) -> Sequence[tuple[str, str]]:
        """(id, why) of records that the receiver refused for good."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(OUTBOX.c.id, OUTBOX.c.reason).where(OUTBOX.c.state == "dead").order_by(OUTBOX.c.seq)
            )
            return [(row.id, row.reason or "") for row in rows]

    def release(self) -> None:
        """Give back what a sender that is no more had claimed. For a program that is alone with its outbox."""
        claimed = (OUTBOX.c.state == "waiting", OUTBOX.c.due_at > time.time(), OUTBOX.c.attempts == 0)
        with self._database.write() as connection:
            connection.execute(update(OUTBOX).where(*claimed).values(due_at=time.time()))
        self.added.set()

    def revive(self) -> int:
        """Try dead letters again; -> how many there were."""
        with self._database.write() as connection:
            alive = {"state": "waiting", "due_at": time.time(), "attempts": 0}
            done = connection.execute(update(OUTBOX).where(OUTBOX.c.state == "dead").values(alive))
        self.added.set()
        return done.rowcount

    def tidy(self) -> None:
        """Put right what a flipped bit may have left in numbers that no index checks."""
        with self._database.write() as connection:
            odd = func.typeof(OUTBOX.c.attempts) != "integer"
            connection.execute(update(OUTBOX).where(odd).values(attempts=0))
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

    def take_over(self, records: Sequence[OutboxRecord], damaged: int) -> None:
        """Queue what was brought out of a broken file, and count what was not."""
        with self._database.write() as connection:
            for outgoing in records:
                self.add(connection, outgoing)
            if damaged:
                self._count(connection, "damaged", damaged)
        self.added.set()

    def forget(self, connection: Connection, conversation_ids: Sequence[str]) -> None:
        """Remove what waits, and the dead letters, of conversations that are being erased."""
        rows = connection.execute(select(OUTBOX.c.seq).where(OUTBOX.c.conversation_id.in_(conversation_ids)))
        self._remove(connection, list(rows.scalars()))

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord]) -> None:
        """For an outbox in a file of its own: forget conversations, queue their tombstones, leave no old page."""
        with self._database.write() as connection:
            self.forget(connection, conversation_ids)
            for tombstone in tombstones:
                self.add(connection, tombstone)
        self._database.leave_no_old_page()
        self.added.set()

    def close(self) -> None:
        """Write counts that are still in memory, and let go of the file."""
        if self._unwritten:
            with suppress(HistoryUnavailable), self._write():
                pass
        self._database.close()

    def _read(self, connection: Connection, seq: int, attempts: int, data: bytes | None) -> QueuedRecord | None:
        try:
            outgoing, _ = unframe(data or b"", self._seal)
        except DamagedRecord:
            self._count(connection, "damaged", 1)
            reason = "damaged in the file"
        except HistoryError:
            reason = "sealed with another key"
        else:
            return QueuedRecord(seq, outgoing, attempts)
        connection.execute(update(OUTBOX).where(OUTBOX.c.seq == seq).values(state="dead", reason=reason))
        return None

    def _remove(self, connection: Connection, seqs: Sequence[int]) -> None:
        for seq in seqs:
            cost = connection.execute(delete(OUTBOX).where(OUTBOX.c.seq == seq).returning(OUTBOX.c.cost)).scalar()
            if cost is not None:
                connection.execute(delete(BODIES).where(BODIES.c.seq == seq))
                self._count(connection, "bytes", -cost)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that also writes the counts which are still in memory.

        The first that a full disk refuses frees the room that was kept for it; the next then goes through.
        """
        try:
            with self._write_once() as connection:
                yield connection
        except HistoryUnavailable:
            with suppress(HistoryUnavailable):
                self._database.free_reserve()
            raise

    @contextmanager
    def _write_once(self) -> Iterator[Connection]:
        with self._counting:
            with self._database.write() as connection:
                with self._lock:
                    counts = Counter(self._unwritten)
                for name, count in counts.items():
                    self._count(connection, name, count)
                yield connection
            with self._lock:
                self._unwritten -= counts

    @staticmethod
    def _value(connection: Connection, name: str) -> int:
        value = str(connection.execute(select(FACTS.c.value).where(FACTS.c.name == f"outbox {name}")).scalar() or 0)
        return int(value) if value.lstrip("-").isdecimal() else 0

    def _count(self, connection: Connection, name: str, count: int) -> None:
        make = sqlite.insert if self._database.sqlite else postgresql.insert
        summed = cast(cast(FACTS.c.value, BigInteger) + count, Text)
        added = make(FACTS).values(name=f"outbox {name}", value=str(count))
        connection.execute(added.on_conflict_do_update(index_elements=["name"], set_={"value": summed}))


def _first_few(rows: Sequence[Row[*tuple[Any, ...]]]) -> list[int]:
    """The seq of each row up to CLAIM_BYTES of cost, and of one at least."""
    taken, total = [], 0
    for seq, cost in rows:
        total += cost
        if taken and total > CLAIM_BYTES:
            break
        taken.append(seq)
    return taken


def _cost(size: int) -> int:
    """Bytes on disk, counted high: whole pages for the body, a row's share of tables and indexes."""
    return (size // PAGE + 1) * PAGE + ROW_BYTES
