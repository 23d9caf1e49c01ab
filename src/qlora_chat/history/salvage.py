"""Opens an outbox in a file of its own, and brings every intact record out of one that is broken.

Scope: SQLite's file format, as far as finding the frames of frames.py in pages takes (https://sqlite.org/fileformat2.html).
A record's frame is the only column of its row, so where it lies in its page, and where it goes on in overflow pages,
follows from the frame's own length; neither the tree above it nor the page's directory need be whole.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from qlora_chat.history import HistoryError, HistoryUnavailable, Outgoing
from qlora_chat.history.database import Database, open_database
from qlora_chat.history.frames import LEAD_BYTES, MAGIC, DamagedRecord, lead, unframe
from qlora_chat.history.migrations import OUTBOX_MIGRATIONS
from qlora_chat.history.outbox import Outbox
from qlora_chat.history.sealing import Seal

PAGE_BYTES = 4096
"""What SQLite takes where nothing else is asked of it, and nothing is."""
WAL_HEAD_BYTES, WAL_FRAME_HEAD_BYTES = 32, 24
SUFFIXES = ("", "-wal", "-shm")


def open_outbox_file(path: Path, seal: Seal, cap_bytes: int) -> Outbox:
    """The outbox in that file, made where it is missing. The intact records of a broken one go into a new one."""
    database = _sound(path)
    if database:
        outbox = Outbox(database, seal, cap_bytes)
        outbox.tidy()
        database.keep_reserve()
        return outbox
    records, damaged = salvaged(path, seal)
    fresh = path.with_name(f"{path.name}.new")
    _remove(fresh)
    database = open_database(f"sqlite:///{fresh}", migrations=OUTBOX_MIGRATIONS)
    rescued = Outbox(database, seal, cap_bytes)
    rescued.take_over(records, damaged)
    rescued.close()
    _remove(path)  # what it still holds are broken records, which no erasure would reach
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


def salvaged(path: Path, seal: Seal) -> tuple[list[Outgoing], int]:
    """Every intact record in a broken file and its log, the oldest first, and how many were found damaged.

    HistoryError where they were sealed with another key: then nothing is known to be broken, and nothing is moved.
    """
    pages = _pages(path)
    found: dict[str, tuple[float, Outgoing]] = {}
    damaged = 0
    for data in pages.versions():
        for at in _occurrences(data):
            try:
                outgoing, created_at = unframe(pages.frame_at(data, at), seal)
            except (DamagedRecord, ValueError):
                damaged += 1
                continue
            found[outgoing.id] = (created_at, outgoing)
    return [outgoing for _, outgoing in sorted(found.values(), key=lambda each: each[0])], damaged


class _Pages:
    """The pages of a file, the newest version of each, and older versions that the log still holds."""

    def __init__(self, newest: Mapping[int, bytes], all_versions: list[bytes]) -> None:
        self._newest, self._all = newest, all_versions

    def versions(self) -> Iterator[bytes]:
        """Every page in every version."""
        yield from self._all

    def frame_at(self, page: bytes, at: int) -> bytes:
        """The bytes of the frame whose MAGIC is there, its overflow pages followed. DamagedRecord where they are gone."""
        size = LEAD_BYTES + lead(page[at:]).length
        record_head = 2 + _varint_bytes(2 * size + 12)  # its own length, the row id's NULL, the blob's length
        local = _local_bytes(record_head + size) - record_head
        data = bytearray(page[at : at + min(local, size)])
        if len(data) >= size:
            return bytes(data)
        following = page[at + local : at + local + 4]
        while len(data) < size:
            overflow = self._newest.get(int.from_bytes(following, "big")) if len(following) == 4 else None
            if overflow is None:
                raise DamagedRecord("its next page is gone")
            following = overflow[:4]
            data += overflow[4 : 4 + size - len(data)]
        return bytes(data)


def _pages(path: Path) -> _Pages:
    whole = path.read_bytes() if path.exists() else b""
    numbered = {1 + at // PAGE_BYTES: whole[at : at + PAGE_BYTES] for at in range(0, len(whole), PAGE_BYTES)}
    versions = list(numbered.values())
    wal = Path(f"{path}-wal")
    log = wal.read_bytes() if wal.exists() else b""
    step = WAL_FRAME_HEAD_BYTES + PAGE_BYTES
    for at in range(WAL_HEAD_BYTES, len(log) - WAL_FRAME_HEAD_BYTES, step):
        (number,) = struct.unpack_from(">I", log, at)
        page = log[at + WAL_FRAME_HEAD_BYTES : at + step]
        numbered[number] = page
        versions.append(page)
    return _Pages(numbered, versions)


def _occurrences(data: bytes) -> Iterator[int]:
    at = data.find(MAGIC)
    while at >= 0:
        yield at
        at = data.find(MAGIC, at + 1)


def _varint_bytes(value: int) -> int:
    """Bytes of SQLite's variable-length integer."""
    return max(1, (value.bit_length() + 6) // 7)


def _local_bytes(payload: int) -> int:
    """How much of a row's payload lies in its leaf page: sections 1.6 and 2.3.3.1 of the format."""
    usable = PAGE_BYTES
    if payload <= usable - 35:
        return payload
    least = (usable - 12) * 32 // 255 - 23
    local = least + (payload - least) % (usable - 4)
    return local if local <= usable - 35 else least


def _remove(path: Path) -> None:
    for suffix in SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
