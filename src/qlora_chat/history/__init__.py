"""Where conversations are kept, and what is recorded of a turn.

Scope: the protocol that every store answers to (store.py), and the values that cross it. Turns are only ever added: each names
the one it follows, so that an edit or a retry is a branch, and a conversation has a head, the newest turn of the branch that is
shown. Knows nothing of engines, pages or what a receiver is sent.
"""

from __future__ import annotations

from qlora_chat.history.errors import HistoryError, HistoryUnavailable, StaleConversation
from qlora_chat.history.protocols import HistoryStore, Queue, Recorder
from qlora_chat.history.records import ModelUsed, OutboxRecord, SettingsChange, TurnRecord, Usage, now
from qlora_chat.history.types import ConversationInfo, Feedback, SearchHit, StoredConversation, StoredTurn, Summary

__all__ = [
    "ConversationInfo",
    "Feedback",
    "HistoryError",
    "HistoryStore",
    "HistoryUnavailable",
    "ModelUsed",
    "OutboxRecord",
    "Queue",
    "Recorder",
    "SearchHit",
    "SettingsChange",
    "StaleConversation",
    "StoredConversation",
    "StoredTurn",
    "Summary",
    "TurnRecord",
    "Usage",
    "now",
]
