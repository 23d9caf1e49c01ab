"""SillyTavern's chats: a file of JSON lines, of which the first is about the chat and each other one is a message.

Scope: this format. Swipes, the other versions of a message, become branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_chat.history.importing import BadExport
from qlora_chat.history.importing.content import list_of, object_of, text_of, time_of
from qlora_chat.history.importing.draft import Draft, DraftTurn


def is_header(record: Any) -> bool:
    """True for the first line of a chat."""
    return isinstance(record, dict) and "mes" not in record and {"user_name", "character_name"} & record.keys() != set()


def begins_chat(record: Any) -> bool:
    """True for the first line of a chat, and for a message, which is first where the line about the chat is lost."""
    return is_header(record) or (isinstance(record, dict) and {"mes", "is_user"} <= record.keys())


def recognises(record: Any) -> bool:
    """True for the lines of a chat."""
    return isinstance(record, list) and bool(record) and begins_chat(record[0])


def read(record: Sequence[Any]) -> Draft:
    """Draft of the lines of a chat. BadExport where the first is none."""
    if not recognises(record):
        raise BadExport("its first line has neither 'user_name' nor 'mes': it is no chat of SillyTavern")
    lines = [object_of(each) for each in record]
    header = lines.pop(0) if is_header(lines[0]) else {}
    turns: list[DraftTurn] = []
    before: str | None = None
    for index, line in enumerate(lines):
        shown = DraftTurn(str(index), before, _role_of(line), _text(line.get("mes")), time_of(line.get("send_date")))
        turns += [*_swipes(line, shown), shown]
        before = shown.id
    character = header.get("character_name")
    title = f"Chat with {character}" if isinstance(character, str) and character not in ("", "unused") else None
    return Draft(turns, title=title, head_id=before, created_at=time_of(header.get("create_date")))


def _role_of(line: Mapping[str, Any]) -> str:
    if line.get("is_system"):
        return "system"
    return "user" if line.get("is_user") else "assistant"


def _swipes(line: Mapping[str, Any], shown: DraftTurn) -> list[DraftTurn]:
    about = list_of(line.get("swipe_info"))
    found: list[DraftTurn] = []
    for number, swipe in enumerate(list_of(line.get("swipes"))):
        text = _text(swipe)
        moment = time_of(object_of(about[number]).get("send_date")) if number < len(about) else shown.created_at
        if text.strip() and text != shown.text:
            found.append(DraftTurn(f"{shown.id}/{number}", shown.parent_id, shown.role, text, moment))
    return found


def _text(value: Any) -> str:
    return text_of(value)[0] if isinstance(value, str) else ""
