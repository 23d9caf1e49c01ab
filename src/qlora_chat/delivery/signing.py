"""Signs what is posted, and verifies what was received: HMAC-SHA256 over id, timestamp and the exact bytes.

Scope: headers and arithmetic, the same for sender and receiver. Knows no HTTP library and no payload.
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
"""How far a receiver's clock may be from the sender's; an older request may be a recorded one that is played again."""


class BadSignature(UserError, ValueError):
    """A request that the holder of the secret did not sign, or signed too long ago; the message says which."""


def signature(secret: str, record_id: str, timestamp: int, body: bytes) -> str:
    """ "sha256=" and the hex HMAC-SHA256 over `id.timestamp.body`; timestamp in Unix seconds."""
    signed = f"{record_id}.{timestamp}.".encode() + body
    return "sha256=" + hmac.new(secret.encode(), signed, "sha256").hexdigest()


def sign(secret: str, record_id: str, body: bytes, timestamp: int | None = None) -> dict[str, str]:
    """The headers that prove who sent `body`, and when; timestamp None is now."""
    moment = int(time.time()) if timestamp is None else timestamp
    return {
        ID_HEADER: record_id,
        TIMESTAMP_HEADER: str(moment),
        SIGNATURE_HEADER: signature(secret, record_id, moment, body),
    }


def verify(
    secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None, tolerance: float = TOLERANCE_SECONDS
) -> str:
    """The id that was signed. BadSignature where a header is missing or wrong, or the request is older than `tolerance`.

    Header names are compared without regard to case; comparing the signature takes the same time however wrong it is.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        record_id, stamp, proof = (given[name.lower()] for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER))
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
