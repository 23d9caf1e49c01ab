"""Builds the records for a receiver: the payload in the configured version, redacted, as the bytes to post.

Scope: values to bytes. Knows no queue and no HTTP.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from qlora_chat.delivery.payload import EMPTY_V1, feedback_v2, payload_v1, payload_v2, tombstone_v2
from qlora_chat.delivery.redaction import Redact
from qlora_chat.history import Feedback, OutboxRecord, TurnRecord
from qlora_chat.messages import new_id

logger = logging.getLogger(__name__)


class LogRecorder:
    """A history.Recorder. A record whose redaction fails is dropped and counted in `failures`."""

    def __init__(self, version: int = 1, redact: Redact | None = None, count_dropped: Callable[[], None] | None = None) -> None:
        self.failures: Counter[str] = Counter()
        """Failed redactions by exception class."""
        self._version, self._redact, self._count_dropped = version, redact, count_dropped

    def turn(self, record: TurnRecord) -> OutboxRecord | None:
        """Record of a finished turn."""
        record_id = new_id()
        payload = payload_v1(record) if self._version == 1 else payload_v2(record, record_id)
        return self._redacted("turn", record.conversation.id, record_id, payload)

    def feedback(self, conversation_id: str, feedback: Feedback) -> OutboxRecord | None:
        """Record of a user's feedback; None in version 1, which has none."""
        if self._version == 1:
            return None
        record_id = new_id()
        return self._redacted("feedback", conversation_id, record_id, feedback_v2(conversation_id, feedback, record_id))

    def tombstone(self, conversation_id: str) -> OutboxRecord:
        """Record that a conversation is to be erased. Version 1 adds its own fields, empty, for receivers that require them."""
        record_id = new_id()
        payload = tombstone_v2(conversation_id, record_id)
        if self._version == 1:
            payload = {**EMPTY_V1, **payload}
        return _encoded("tombstone", conversation_id, record_id, payload)

    def _redacted(self, kind: str, conversation_id: str, record_id: str, payload: dict[str, Any]) -> OutboxRecord | None:
        try:
            if self._redact:
                payload = self._redact(payload)
            return _encoded(kind, conversation_id, record_id, payload)
        except Exception as problem:  # its message may quote the conversation
            self.failures[type(problem).__name__] += 1
            logger.error("a record was dropped: its redaction failed with %s", type(problem).__name__)
            if self._count_dropped:
                self._count_dropped()
            return None


def _encoded(kind: str, conversation_id: str, record_id: str, payload: dict[str, Any]) -> OutboxRecord:
    """Record with the bytes that requests.post(url, json=payload) would send."""
    body = json.dumps(payload, allow_nan=False).encode()
    return OutboxRecord(kind, conversation_id, body, record_id)
