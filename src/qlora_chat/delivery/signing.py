"""Signatures of posted records: HMAC-SHA256 over id, timestamp and the exact bytes.

Scope: headers of sender and receiver. Knows no HTTP library and no payload.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping

from qlora_chat.errors import UserError

ID_HEADER = "X-QLoRA-Chat-Id"
TIMESTAMP_HEADER = "X-QLoRA-Chat-Timestamp"
SIGNATURE_HEADER = "X-QLoRA-Chat-Signature"
IDEMPOTENCY_HEADER = "Idempotency-Key"
TOLERANCE_SECONDS = 300
"""Greatest difference between the clocks of sender and receiver; an older request may be a replay attack."""


class BadSignature(UserError, ValueError):
    """Request with a missing, wrong or old signature; the message says which."""


def signature(secret: str, record_id: str, timestamp: int, body: bytes) -> str:
    """ "sha256=" and the hex HMAC-SHA256 over `id.timestamp.body`; timestamp in Unix seconds."""
    signed = f"{record_id}.{timestamp}.".encode() + body
    return "sha256=" + hmac.new(secret.encode(), signed, "sha256").hexdigest()


def sign(secret: str, record_id: str, body: bytes, timestamp: int | None = None) -> dict[str, str]:
    """Signature headers of `body`; timestamp in Unix seconds, None for now."""
    moment = int(time.time()) if timestamp is None else timestamp
    return {
        ID_HEADER: record_id,
        TIMESTAMP_HEADER: str(moment),
        SIGNATURE_HEADER: signature(secret, record_id, moment, body),
    }


def verify(
    secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None, tolerance: float = TOLERANCE_SECONDS
) -> str:
    """Signed id of a request. BadSignature if a header is missing or wrong, or the request is older than `tolerance` seconds.

    Header names are case-insensitive; the signature is compared in constant time.
    """
    values = {name.lower(): value for name, value in headers.items()}
    try:
        record_id, stamp, proof = (values[name.lower()] for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER))
    except KeyError as missing:
        raise BadSignature(f"the request is not signed: the header {missing} is missing") from None
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
        raise BadSignature(f"{TIMESTAMP_HEADER} is not a number of Unix seconds")
    if not hmac.compare_digest(proof.encode(), signature(secret, record_id, int(stamp), body).encode()):
        raise BadSignature("the signature does not belong to these bytes, this id and this timestamp, or the secrets differ")
    age = (time.time() if now is None else now) - int(stamp)
    if abs(age) > tolerance:
        raise BadSignature(f"the request was signed {age:,.0f} s ago, and at most {tolerance:,.0f} s are allowed")
    return record_id
