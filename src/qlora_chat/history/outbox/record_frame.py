"""A record as it lies in a file: self-describing and checked, so that it can be found in a file that is otherwise broken.

Scope: bytes. MAGIC, length and CRC-32 of what follows, then (sealed or not) a JSON heading, a line break and the body.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass

from qlora_chat.history import HistoryError, OutboxRecord
from qlora_chat.history.storage.encryption import Cipher

MAGIC = b"\x93QLCrec\x01"
_LEAD = struct.Struct(">8sII")
LEAD_BYTES = _LEAD.size
LARGEST = 64 * 2**20
"""A length beyond this is not believed."""


class DamagedRecord(ValueError):
    """Bytes that are not, or no longer, a record."""


@dataclass(frozen=True)
class Lead:
    """What a frame says of itself before it can be read."""

    length: int
    """Of what follows, in bytes."""
    checksum: int


def frame(outgoing: OutboxRecord, created_at: float, seal: Cipher) -> bytes:
    """A record as bytes."""
    heading = json.dumps(
        {"id": outgoing.id, "kind": outgoing.kind, "conversation_id": outgoing.conversation_id, "created_at": created_at}
    )
    payload = seal.close(heading.encode() + b"\n" + outgoing.body)
    return _LEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def lead(data: bytes) -> Lead:
    """The lead of a frame that begins here. DamagedRecord where none does."""
    if len(data) < LEAD_BYTES:
        raise DamagedRecord("cut off")
    magic, length, checksum = _LEAD.unpack_from(data)
    if magic != MAGIC or length > LARGEST:
        raise DamagedRecord("no record begins here")
    return Lead(length, checksum)


def unframe(data: bytes, seal: Cipher) -> tuple[OutboxRecord, float]:
    """The record and when it was made (Unix seconds). DamagedRecord where a bit differs from what was written."""
    began = lead(data)
    payload = data[LEAD_BYTES : LEAD_BYTES + began.length]
    if len(payload) != began.length or zlib.crc32(payload) != began.checksum:
        raise DamagedRecord("its checksum is wrong")
    heading, _, body = seal.open(payload).partition(b"\n")
    try:
        told = json.loads(heading)
    except ValueError:  # what was written is whole, so it was written with a key
        raise HistoryError("a record was sealed with a key, which is not given") from None
    return OutboxRecord(told["kind"], told["conversation_id"], body, told["id"]), told["created_at"]
