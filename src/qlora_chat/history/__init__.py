"""Where conversations are kept, and what is recorded of a turn.

Scope: the protocol that every store answers to (store.py), and the values that cross it. Turns are only ever added: each names
the one it follows, so that an edit or a retry is a branch, and a conversation has a head, the newest turn of the branch that is
shown. Knows nothing of engines, pages or what a receiver is sent.
"""

from __future__ import annotations

from qlora_chat.history.errors import HistoryError, HistoryUnavailable, StaleConversation
from qlora_chat.history.protocols import HistoryStore, Queue, Recorder
from qlora_chat.history.records import ModelUsed, Outgoing, SettingsChange, Spent, TurnRecord, now
from qlora_chat.history.types import About, Feedback, Hit, Kept, StoredTurn, Summary

__all__ = [
    "About",
    "Feedback",
    "HistoryError",
    "HistoryStore",
    "HistoryUnavailable",
    "Hit",
    "Kept",
    "ModelUsed",
    "Outgoing",
    "Queue",
    "Recorder",
    "SettingsChange",
    "Spent",
    "StaleConversation",
    "StoredTurn",
    "Summary",
    "TurnRecord",
    "now",
]
