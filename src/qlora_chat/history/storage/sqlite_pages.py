"""Pages and rows of a damaged SQLite file.

Scope: as much of the file format (https://sqlite.org/fileformat2.html) as it takes to read rows from table leaves: the newest
version of each page, overflow chains, records. The tree above a leaf and the file header may be damaged. Knows no table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE_BYTES = 4096
"""SQLite's default page size, which this program leaves as it is."""
WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
SUFFIXES = ("", "-wal", "-shm")
FILE_HEADER_BYTES = 100
LEAF = 0x0D
MAX_PAYLOAD_BYTES = 2**30


class DamagedPage(ValueError):
    """Bytes that are no row, or that continue on a lost page."""


class Pages:
    """Newest version of each page, and the older versions that are still in the log."""

    def __init__(self, newest: Mapping[int, bytes], all_versions: list[bytes]) -> None:
        self._newest, self._all = newest, all_versions

    @property
    def cut_short(self) -> bool:
        """True if the file header counts more pages than there are."""
        page_count = self._newest.get(1, b"")[28:32]  # section 1.3.8 of the format
        return (
            int.from_bytes(page_count, "big") > max(self._newest, default=0) or 0 < len(self._newest.get(1, b"")) < PAGE_BYTES
        )

    def versions(self) -> Iterator[bytes]:
        """All versions of all pages."""
        yield from self._all

    def payload(self, page: bytes, at: int, size: int, before: int = 0) -> bytes:
        """`size` bytes of a row's payload from offset `at` of the page on, through its overflow pages.

        `before` is the number of payload bytes in front of them. DamagedPage if an overflow page is lost.
        """
        local = _local_bytes(before + size) - before
        data = bytearray(page[at : at + min(local, size)])
        following = page[at + local : at + local + 4]
        while len(data) < size:
            overflow = self._newest.get(int.from_bytes(following, "big")) if len(following) == 4 else None
            if not overflow:
                raise DamagedPage("its overflow page is lost")
            following = overflow[:4]
            data += overflow[4 : 4 + size - len(data)]
        return bytes(data)

    def rows(self) -> Iterator[tuple[int, list[Any]] | None]:
        """(row id, columns) of every row in the newest leaves; None for each unreadable row."""
        for number, page in sorted(self._newest.items()):
            header = FILE_HEADER_BYTES if number == 1 else 0
            if len(page) < PAGE_BYTES or page[header] != LEAF:
                continue
            (cells,) = struct.unpack_from(">H", page, header + 3)
            for index in range(min(cells, PAGE_BYTES // 4)):
                (at,) = struct.unpack_from(">H", page, header + 8 + 2 * index)
                try:
                    yield self._row(page, at)
                except (ValueError, IndexError, struct.error):
                    yield None

    def _row(self, page: bytes, at: int) -> tuple[int, list[Any]]:
        size, at = _varint(page, at)
        row_id, at = _varint(page, at)
        if size > MAX_PAYLOAD_BYTES:
            raise DamagedPage("no row is that long")
        return row_id, _columns(self.payload(page, at, size))


def read_pages(path: Path, *, committed: bool) -> Pages:
    """Pages of a database file and its write-ahead log.

    `committed` ignores log frames that were not committed; otherwise all are read, and the caller verifies what it finds.
    """
    whole = path.read_bytes() if path.exists() else b""
    newest = {1 + at // PAGE_BYTES: whole[at : at + PAGE_BYTES] for at in range(0, len(whole), PAGE_BYTES)}
    versions = list(newest.values())
    wal = Path(f"{path}-wal")
    log = wal.read_bytes() if wal.exists() else b""
    step, salts = FRAME_HEADER_BYTES + PAGE_BYTES, (log[16:24], log[WAL_HEADER_BYTES + 8 : WAL_HEADER_BYTES + 16])
    uncommitted: dict[int, bytes] = {}
    for at in range(WAL_HEADER_BYTES, len(log) - FRAME_HEADER_BYTES, step):
        number, commit = struct.unpack_from(">II", log, at)
        page = log[at + FRAME_HEADER_BYTES : at + step]
        versions.append(page)
        if committed and log[at + 8 : at + 16] not in salts:
            continue  # from before the last checkpoint: the file has this version or a newer one
        uncommitted[number] = page
        if commit or not committed:
            newest |= uncommitted
            uncommitted = {}
    return Pages(newest, versions)


def varint_bytes(value: int) -> int:
    """Length in bytes of SQLite's variable-length integer."""
    return max(1, (value.bit_length() + 6) // 7)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(integer at this offset, offset behind it)."""
    value = 0
    for index in range(8):
        byte = data[at + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    return value << 8 | data[at + 8], at + 9


_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _columns(record: bytes) -> list[Any]:
    """Values of a record (section 2.1 of the format). ValueError if it is none."""
    head_bytes, at = _varint(record, 0)
    kinds: list[int] = []
    while at < head_bytes:
        kind, at = _varint(record, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        value, at = _value(record, kind, at)
        values.append(value)
    if at != len(record):
        raise DamagedPage("its length differs from that of its columns")
    return values


def _value(record: bytes, kind: int, at: int) -> tuple[Any, int]:
    if kind in (0, 8, 9):
        return (None, 0, 1)[max(0, kind - 7)], at
    if kind == 7:
        return struct.unpack_from(">d", record, at)[0], at + 8
    size = _INTEGER_BYTES.get(kind) or (kind - 12) // 2
    data = record[at : at + size]
    if kind in (10, 11) or len(data) != size:
        raise DamagedPage("no such column")
    if kind in _INTEGER_BYTES:
        return int.from_bytes(data, "big", signed=True), at + size
    return (data if kind % 2 == 0 else data.decode()), at + size


def _local_bytes(payload: int) -> int:
    """Bytes of a row's payload in its leaf page (sections 1.6 and 2.3.3.1 of the format)."""
    usable = PAGE_BYTES
    if payload <= usable - 35:
        return payload
    least = (usable - 12) * 32 // 255 - 23
    local = least + (payload - least) % (usable - 4)
    return local if local <= usable - 35 else least
