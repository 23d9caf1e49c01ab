"""Stored conversations: the protocol of every store, and the values that cross it.

Scope: turns are only ever added. Each names its parent, so that an edit or a retry is a branch, and a conversation has a head,
the newest turn of the active branch. Knows no engine, no page and no payload.
"""

from __future__ import annotations

from qlora_chat.history.protocols import HistoryStore, Queue, Recorder
from qlora_chat.history.types import (
    ComparedAnswer,
    ContinuedAnswer,
    ConversationInfo,
    Feedback,
    HistoryError,
    HistoryUnavailable,
    ModelUsed,
    OutboxRecord,
    SearchHit,
    SettingsChange,
    StaleConversation,
    StoredConversation,
    StoredTurn,
    Summary,
    TurnRecord,
    Usage,
    Verdict,
    Vote,
    now,
)
