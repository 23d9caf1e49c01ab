"""A record as bytes in a file: self-describing and checksummed, so that it can be found in a damaged file.

Scope: bytes. MAGIC, length and CRC-32 of the payload; then the payload, encrypted or not: JSON heading, line feed, body.
"""

from __future__ import annotations

import json
import struct
import zlib

from qlora_chat.history import HistoryError, OutboxRecord
from qlora_chat.history.storage.encryption import Binding, Cipher

MAGIC = b"\x93QLCrec\x01"
BINDING = Binding("outbox_bodies", "frame")
"""Without ids, so that a frame can be read where its row is lost; the heading has them, under the same encryption."""
_HEADER = struct.Struct(">8sII")
HEADER_BYTES = _HEADER.size
MAX_PAYLOAD_BYTES = 64 * 2**20
"""A header with a greater length is damaged."""


class DamagedRecord(ValueError):
    """Bytes that are no intact record."""


def frame(outgoing: OutboxRecord, created_at: float, cipher: Cipher) -> bytes:
    """A record as bytes; `created_at` in Unix seconds."""
    names = ("id", "kind", "conversation_id", "address")
    heading = json.dumps({**{name: getattr(outgoing, name) for name in names}, "created_at": created_at})
    payload = cipher.encrypt(heading.encode() + b"\n" + outgoing.body, BINDING)
    return _framed(payload)


def read_header(data: bytes) -> tuple[int, int]:
    """(length, checksum) of the payload behind the header that `data` begin with. DamagedRecord if there is none."""
    if len(data) < HEADER_BYTES:
        raise DamagedRecord("the header is cut off")
    magic, length, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC or length > MAX_PAYLOAD_BYTES:
        raise DamagedRecord("no record begins here")
    return length, checksum


def unframe(data: bytes, cipher: Cipher) -> tuple[OutboxRecord, float]:
    """The record and its creation time (Unix seconds). DamagedRecord if any bit has changed; HistoryError for another key."""
    heading, _, body = cipher.decrypt(_payload(data), BINDING).partition(b"\n")
    try:
        fields = json.loads(heading)
    except ValueError:  # the payload is intact, so it is encrypted
        raise HistoryError("a record is encrypted: set QLORA_CHAT_HISTORY_KEY to its key") from None
    record = OutboxRecord(fields["kind"], fields["conversation_id"], body, fields["id"], fields.get("address"))
    return record, fields["created_at"]


def renewed_frame(data: bytes, cipher: Cipher) -> bytes | None:
    """The record encrypted anew with the present key, as large as before; None if it has that key. Raises as `unframe` does."""
    payload = cipher.renewed(_payload(data), BINDING)
    return None if payload is None else _framed(payload)


def _framed(payload: bytes) -> bytes:
    return _HEADER.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def _payload(data: bytes) -> bytes:
    length, checksum = read_header(data)
    payload = data[HEADER_BYTES : HEADER_BYTES + length]
    if len(payload) != length or zlib.crc32(payload) != checksum:
        raise DamagedRecord("the checksum is wrong")
    return payload
