"""LibreChat's exports: messages with parents in a list, or each with its `children`.

Scope: this format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from qlora_chat.history.importing.content import files_of, list_at, list_of, object_of, text_of, text_or_none, time_of
from qlora_chat.history.importing.draft import Draft, DraftTurn

NO_PARENT = "00000000-0000-0000-0000-000000000000"


def recognises(record: Any) -> bool:
    """True for a conversation of LibreChat."""
    return isinstance(record, dict) and isinstance(record.get("messages"), list) and "conversationId" in record


def read(record: Mapping[str, Any]) -> Draft:
    """Draft with every branch. BadExport where there are no messages."""
    turns = [_turn(name, parent, message) for name, parent, message in _messages(list_at(record, "messages"))]
    options = object_of(record.get("options"))
    system = options.get("promptPrefix") or options.get("system")
    return Draft(
        turns,
        record.get("conversationId"),
        record.get("title"),
        system if isinstance(system, str) else None,
        options.get("model"),
        created_at=time_of(record.get("createdAt")),
        updated_at=time_of(record.get("updatedAt")),
    )


def _messages(messages: list[Any]) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """(id, parent, message) of every message at any depth; one whose parent is not named follows the one before it."""
    waiting: list[tuple[Any, str | None]] = [(each, None) for each in reversed(messages)]
    before: str | None = None
    number = 0
    while waiting:
        value, above = waiting.pop()
        message = object_of(value)
        number += 1
        name = text_or_none(message.get("messageId")) or f"message {number}"
        named = text_or_none(message.get("parentMessageId"))
        yield name, above or (before if named is None else None if named == NO_PARENT else named), message
        before = name
        waiting += [(each, name) for each in reversed(list_of(message.get("children")))]


def _turn(name: str, parent: str | None, message: Mapping[str, Any]) -> DraftTurn:
    text = message.get("text")
    text, others = (text, Counter[str]()) if isinstance(text, str) and text.strip() else text_of(message.get("content") or "")
    by_user = message.get("isCreatedByUser")
    role = ("user" if by_user else "assistant") if isinstance(by_user, bool) else str(message.get("sender")).lower()
    return DraftTurn(name, parent, role, text_of(text)[0], time_of(message.get("createdAt")), others + files_of(message))
