"""Claude's conversations.json: `chat_messages`, with parents in newer exports.

Scope: this format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_chat.history.importing.content import ATTACHMENTS, list_at, list_of, object_of, text_of, text_or_none, time_of
from qlora_chat.history.importing.draft import Draft, DraftTurn


def recognises(record: Any) -> bool:
    """True for a conversation of Claude."""
    return isinstance(record, dict) and isinstance(record.get("chat_messages"), list)


def read(record: Mapping[str, Any]) -> Draft:
    """Draft with every branch. BadExport where there are no messages."""
    turns: list[DraftTurn] = []
    for index, each in enumerate(list_at(record, "chat_messages")):
        turns.append(_turn(object_of(each), index, turns[-1].id if turns else None))
    return Draft(
        turns,
        record.get("uuid"),
        record.get("name"),
        model=record.get("model"),
        head_id=text_or_none(record.get("current_leaf_message_uuid")),
        created_at=time_of(record.get("created_at")),
        updated_at=time_of(record.get("updated_at")),
    )


def _turn(message: Mapping[str, Any], index: int, before: str | None) -> DraftTurn:
    text, others = text_of(message.get("content") or "")
    if not text.strip():
        text, _ = text_of(message.get("text") or "")
    others[ATTACHMENTS] += sum(len(list_of(message.get(name))) for name in ("attachments", "files"))
    parent = text_or_none(message["parent_message_uuid"]) if "parent_message_uuid" in message else before
    return DraftTurn(
        text_or_none(message.get("uuid")) or f"message {index}",
        parent,
        str(message.get("sender")),
        text,
        time_of(message.get("created_at")),
        others,
    )
