"""Open WebUI's export: a list of chats, each with a tree under `history.messages`, or a plain list of messages.

Scope: this format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_chat.history.importing.content import files_of, list_at, list_of, object_of, text_of, text_or_none, time_of
from qlora_chat.history.importing.draft import Draft, DraftTurn


def recognises(record: Any) -> bool:
    """True for a chat of Open WebUI, with or without what surrounds it in an export."""
    if not isinstance(record, dict):
        return False
    chat = record.get("chat", record)
    return isinstance(chat, dict) and (
        isinstance(object_of(chat.get("history")).get("messages"), dict) or ("chat" in record and "messages" in chat)
    )


def read(record: Mapping[str, Any]) -> Draft:
    """Draft with every branch. BadExport where there are no messages."""
    chat = object_of(record.get("chat")) or record
    history = object_of(chat.get("history"))
    if isinstance(history.get("messages"), dict):
        turns = [_turn(str(name), object_of(each)) for name, each in history["messages"].items()]
    else:
        turns = []
        for index, each in enumerate(list_at(chat, "messages")):
            message = {"parentId": turns[-1].id if turns else None, **object_of(each)}
            turns.append(_turn(text_or_none(message.get("id")) or f"message {index}", message))
    models = list_of(chat.get("models"))
    system = object_of(chat.get("params")).get("system")
    return Draft(
        turns,
        record.get("id") or chat.get("id"),
        record.get("title") or chat.get("title"),
        system if isinstance(system, str) and system.strip() else None,
        models[0] if models else None,
        text_or_none(history.get("currentId")),
        time_of(record.get("created_at")) or time_of(chat.get("timestamp")),
        time_of(record.get("updated_at")),
    )


def _turn(name: str, message: Mapping[str, Any]) -> DraftTurn:
    text, others = text_of(message.get("content") or "")
    return DraftTurn(
        name,
        text_or_none(message.get("parentId")),
        str(message.get("role")),
        text,
        time_of(message.get("timestamp")),
        others + files_of(message),
    )
