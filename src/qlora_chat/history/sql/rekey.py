"""Changes the key of an encrypted database: every value is encrypted anew, in batches, while both keys can be read.

Scope: which values there are, and one transaction for each batch. A value that has the new key already is left as it is, so a
run that was cut off is continued by the next one. Knows no command line and no settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, Connection, Row, Select, select, update

from qlora_chat.history import HistoryError
from qlora_chat.history.outbox.record_frame import DamagedRecord, renewed_frame
from qlora_chat.history.sql.row_mapping import FEEDBACK_COLUMNS, HEADING_COLUMNS, TURN_COLUMNS, EncryptedColumns
from qlora_chat.history.storage.database import Database
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.storage.key_check import finish_key_change
from qlora_chat.history.storage.schema import BODIES, CONVERSATIONS, FEEDBACK, OUTBOX, TURNS

BATCH_ROWS = 500
"""Rows in one transaction: about 0.1 s, for which other writers wait."""


@dataclass
class Rekeyed:
    """Number of rows by table."""

    changed: Counter[str] = field(default_factory=Counter)
    """Have the new key from this run on."""
    before: Counter[str] = field(default_factory=Counter)
    """Had the new key already."""
    unreadable: list[str] = field(default_factory=list)
    """Reasons for values that neither key decrypts; they were left as they were."""
    log_emptied: bool = True
    """False if SQLite's log could not be emptied, because another program reads it. It may hold values with the old key."""


def rekey(database: Database, cipher: Cipher, notify: Callable[[str], None], *, only_outbox: bool = False) -> Rekeyed:
    """Encrypt every value with the cipher's present key, and bind those of earlier versions. Safe to end at any moment.

    `only_outbox` for an outbox in a file of its own, which has no check value.
    """
    done = Rekeyed()
    if not only_outbox:
        _rekey_table(database, _Texts(HEADING_COLUMNS, CONVERSATIONS.c.id, cipher), done, notify)
        _rekey_table(database, _Texts(TURN_COLUMNS, TURNS.c.seq, cipher), done, notify)
        _rekey_table(database, _Texts(FEEDBACK_COLUMNS, FEEDBACK.c.seq, cipher), done, notify)
    _rekey_table(database, _Frames(cipher), done, notify)
    if not only_outbox:
        finish_key_change(database, cipher)
    done.log_emptied = database.checkpoint()
    database.vacuum(["outbox_bodies"] if only_outbox else ["conversations", "turns", "feedback", "outbox_bodies", "facts"])
    return done


class _Texts:
    """The encrypted text columns of a table."""

    def __init__(self, encrypted: EncryptedColumns, key: Column[Any], cipher: Cipher) -> None:
        self.table, self.key = encrypted.table, key
        self._encrypted, self._cipher = encrypted, cipher

    def query(self) -> Select[*tuple[Any, ...]]:
        """Rows, locked so that no other program changes them meanwhile."""
        return select(self.table).with_for_update()

    def renewed(self, row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
        """Columns to be changed. HistoryError if one cannot be decrypted."""
        values = {name: getattr(row, name) for name in self._encrypted.columns}
        renewed = {
            name: self._cipher.renewed_text(value, self._encrypted.binding_in(row, name))
            for name, value in values.items()
            if value is not None
        }
        return {name: value for name, value in renewed.items() if value is not None}


class _Frames:
    """The records of the outbox, dead letters included."""

    table, key = BODIES, BODIES.c.seq

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    def query(self) -> Select[*tuple[Any, ...]]:
        """Rows, locked so that no other program changes them meanwhile."""
        joined = select(BODIES.c.seq, BODIES.c.frame, OUTBOX.c.id).outerjoin(OUTBOX, OUTBOX.c.seq == BODIES.c.seq)
        return joined.with_for_update(of=BODIES)

    def renewed(self, row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
        """The new frame, if the record has another key. HistoryError if it cannot be decrypted."""
        try:
            frame = renewed_frame(row.frame, self._cipher)
        except (DamagedRecord, HistoryError) as problem:
            raise HistoryError(f"record {row.id} of the outbox: {problem}") from None
        return {} if frame is None else {"frame": frame}


def _rekey_table(database: Database, values: _Texts | _Frames, done: Rekeyed, notify: Callable[[str], None]) -> None:
    name, last = values.table.name, None
    while True:
        with database.write() as connection:
            query = values.query().order_by(values.key).limit(BATCH_ROWS)
            rows = connection.execute(query if last is None else query.where(values.key > last)).all()
            batch = _rekey_rows(connection, values, rows)
        if not rows:
            return
        done.changed += batch.changed
        done.before += batch.before
        done.unreadable += batch.unreadable
        last = getattr(rows[-1], values.key.name)
        if len(rows) == BATCH_ROWS:
            notify(f"{name}: {done.changed[name] + done.before[name]:,} rows so far")


def _rekey_rows(connection: Connection, values: _Texts | _Frames, rows: Sequence[Row[*tuple[Any, ...]]]) -> Rekeyed:
    batch = Rekeyed()
    for row in rows:
        try:
            renewed = values.renewed(row)
        except HistoryError as problem:
            batch.unreadable.append(str(problem))
            continue
        if renewed:
            connection.execute(update(values.table).where(values.key == getattr(row, values.key.name)).values(renewed))
        (batch.changed if renewed else batch.before)[values.table.name] += 1
    return batch
