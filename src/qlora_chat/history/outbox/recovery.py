"""Opens an outbox in a file of its own, and recovers every intact record of a damaged one.

Scope: the frames of record_frame.py in the pages of sqlite_pages.py. A record's frame is the only column of its row, so its
offset and its overflow pages follow from its length, even if the tree above and the page's cell pointers are damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qlora_chat.history import HistoryError, OutboxRecord
from qlora_chat.history.outbox.queue import Outbox
from qlora_chat.history.outbox.record_frame import HEADER_BYTES, MAGIC, read_header, unframe
from qlora_chat.history.storage.database import Database, open_database
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.storage.migrations import OUTBOX_MIGRATIONS
from qlora_chat.history.storage.sqlite_pages import SUFFIXES, Pages, read_pages, varint_bytes
from qlora_chat.history.types import HistoryDamaged


def open_outbox_file(path: Path, cipher: Cipher, cap_bytes: int, address: str | None = None) -> Outbox:
    """Outbox in that file, created if it is missing. If it is damaged, its intact records go into a new file."""
    database = _intact(path)
    if database is None:
        _replace_damaged(path, cipher, cap_bytes)
        database = _open(path)
    outbox = Outbox(database, cipher, cap_bytes, address)
    outbox.repair_counters()
    database.ensure_reserve()
    return outbox


def _open(path: Path) -> Database:
    return open_database(f"sqlite:///{path}", migrations=OUTBOX_MIGRATIONS, what="outbox (LOGGING_OUTBOX)")


def _intact(path: Path) -> Database | None:
    """The database; None if SQLite finds it damaged."""
    try:
        database = _open(path)
    except HistoryDamaged:
        return None
    try:
        with database.read() as connection:
            if connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar() == "ok":
                return database
    except HistoryError:
        pass
    database.close()
    return None


def _replace_damaged(path: Path, cipher: Cipher, cap_bytes: int) -> None:
    """Replace a damaged file, broken records included, which no erasure would reach. One without any may be somebody else's,
    so it is renamed."""
    records, damaged = recover_records(path, cipher)
    new = path.with_name(f"{path.name}.new")
    remove_database(new)
    recovered = Outbox(_open(new), cipher, cap_bytes)
    recovered.import_recovered(records, damaged)
    recovered.close()
    if _holds_a_record(path):
        remove_database(path)
    else:
        _rename_aside(path)
    os.replace(new, path)


def _holds_a_record(path: Path) -> bool:
    """True if a record of ours, whole or broken, begins somewhere in the file or its logs."""
    files = (Path(f"{path}{suffix}") for suffix in SUFFIXES)
    return any(MAGIC in file.read_bytes() for file in files if file.exists())


def _rename_aside(path: Path) -> None:
    """Rename a file and its logs to NAME.unreadable, NAME.unreadable-2 and so on."""
    names = (Path(f"{path}.unreadable{number}") for number in ("", *(f"-{each}" for each in range(2, 1000))))
    rename_database(path, next(name for name in names if not name.exists()))


def recover_records(path: Path, cipher: Cipher) -> tuple[list[OutboxRecord], int]:
    """(intact records, oldest first; number of damaged ones) of a damaged file and its log.

    At least one is counted as damaged if the file is cut short. HistoryError if records have another key.
    """
    pages = read_pages(path, committed=False)
    found: dict[str, tuple[float, OutboxRecord]] = {}
    damaged = 0
    for page in pages.versions():
        for offset in _frame_offsets(page):
            try:
                outgoing, created_at = unframe(_frame_at(pages, page, offset), cipher)
            except ValueError:
                damaged += 1
                continue
            found[outgoing.id] = (created_at, outgoing)
    damaged = max(damaged, int(pages.cut_short))
    return [outgoing for _, outgoing in sorted(found.values(), key=lambda each: each[0])], damaged


def _frame_at(pages: Pages, page: bytes, offset: int) -> bytes:
    """Frame at an offset of a page, through its overflow pages. ValueError if part of it is lost."""
    size = HEADER_BYTES + read_header(page[offset:])[0]
    record_header = 2 + varint_bytes(2 * size + 12)  # its own length, the row id's NULL, the blob's length
    return pages.payload(page, offset, size, before=record_header)


def _frame_offsets(page: bytes) -> Iterator[int]:
    offset = page.find(MAGIC)
    while offset >= 0:
        yield offset
        offset = page.find(MAGIC, offset + 1)


def rename_database(path: Path, name: Path) -> None:
    """Rename an SQLite file and its log files."""
    for suffix in SUFFIXES:
        if Path(f"{path}{suffix}").exists():
            os.replace(f"{path}{suffix}", f"{name}{suffix}")


def remove_database(path: Path) -> None:
    """Delete an SQLite file and its log files."""
    for suffix in SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
