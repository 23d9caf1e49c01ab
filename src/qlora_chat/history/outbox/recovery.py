"""Opens an outbox in a file of its own, and brings every intact record out of one that is broken.

Scope: finding the frames of frames.py in the pages of pages.py.
A record's frame is the only column of its row, so where it lies in its page, and where it goes on in overflow pages,
follows from the frame's own length; neither the tree above it nor the page's directory need be whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qlora_chat.history import HistoryError, HistoryUnavailable, OutboxRecord
from qlora_chat.history.outbox.queue import Outbox
from qlora_chat.history.outbox.record_frame import LEAD_BYTES, MAGIC, DamagedRecord, lead, unframe
from qlora_chat.history.storage.database import Database, open_database
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.storage.migrations import OUTBOX_MIGRATIONS
from qlora_chat.history.storage.sqlite_pages import SUFFIXES, DamagedPage, Pages, read_pages, varint_bytes


def open_outbox_file(path: Path, seal: Cipher, cap_bytes: int) -> Outbox:
    """The outbox in that file, made where it is missing. The intact records of a broken one go into a new one."""
    database = _sound(path)
    if database:
        outbox = Outbox(database, seal, cap_bytes)
        outbox.tidy()
        database.keep_reserve()
        return outbox
    records, damaged = salvaged(path, seal)
    fresh = path.with_name(f"{path.name}.new")
    remove_database(fresh)
    database = open_database(f"sqlite:///{fresh}", migrations=OUTBOX_MIGRATIONS)
    rescued = Outbox(database, seal, cap_bytes)
    rescued.take_over(records, damaged)
    rescued.close()
    remove_database(path)  # what it still holds are broken records, which no erasure would reach
    os.replace(fresh, path)
    database = open_database(f"sqlite:///{path}", migrations=OUTBOX_MIGRATIONS)
    database.keep_reserve()
    return Outbox(database, seal, cap_bytes)


def _sound(path: Path) -> Database | None:
    """The database, or None where SQLite finds it broken."""
    try:
        database = open_database(f"sqlite:///{path}", migrations=OUTBOX_MIGRATIONS)
    except HistoryUnavailable as problem:
        if "damaged" in str(problem):
            return None
        raise
    try:
        with database.read() as connection:
            if connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar() == "ok":
                return database
    except HistoryError:
        pass
    database.close()
    return None


def salvaged(path: Path, seal: Cipher) -> tuple[list[OutboxRecord], int]:
    """Every intact record in a broken file and its log, the oldest first, and how many were found damaged: at least one where
    the file is cut short, since what was in the rest of it is gone without a trace.

    HistoryError where they were sealed with another key: then nothing is known to be broken, and nothing is moved.
    """
    pages = read_pages(path, committed=False)
    found: dict[str, tuple[float, OutboxRecord]] = {}
    damaged = 0
    for data in pages.versions():
        for at in _occurrences(data):
            try:
                outgoing, created_at = unframe(_frame_at(pages, data, at), seal)
            except (DamagedRecord, ValueError):
                damaged += 1
                continue
            found[outgoing.id] = (created_at, outgoing)
    damaged = max(damaged, int(pages.cut_short))
    return [outgoing for _, outgoing in sorted(found.values(), key=lambda each: each[0])], damaged


def _frame_at(pages: Pages, page: bytes, at: int) -> bytes:
    """The bytes of the frame whose MAGIC is there. DamagedRecord where some of them are gone."""
    size = LEAD_BYTES + lead(page[at:]).length
    record_head = 2 + varint_bytes(2 * size + 12)  # its own length, the row id's NULL, the blob's length
    try:
        return pages.payload(page, at, size, before=record_head)
    except DamagedPage as problem:
        raise DamagedRecord(str(problem)) from None


def _occurrences(data: bytes) -> Iterator[int]:
    at = data.find(MAGIC)
    while at >= 0:
        yield at
        at = data.find(MAGIC, at + 1)


def remove_database(path: Path) -> None:
    """An SQLite file and what lies beside it."""
    for suffix in SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
