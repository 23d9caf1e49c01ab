"""Dialogue files: OpenAI's `messages`, ShareGPT's `conversations`, questions with answers, Guanaco's texts, preference pairs.

Scope: one record of them, with what a chat holds beyond training data: tools, images, empty turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_chat.dialogue_formats.dialogue import parse_dialogue
from qlora_chat.dialogue_formats.formats import LIST_KEYS, pair_name
from qlora_chat.dialogue_formats.turns import turn_keys
from qlora_chat.history.importing import BadExport
from qlora_chat.history.importing.content import TOOLS, list_at, list_of, object_of, text_of, time_of
from qlora_chat.history.importing.draft import Draft, DraftTurn, linear


def recognises_messages(record: Any) -> bool:
    """True for an object with `messages`, and for a list of messages."""
    messages = record.get("messages") if isinstance(record, dict) else record
    return isinstance(messages, list) and (isinstance(record, dict) or (bool(record) and all(map(_is_message, record))))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value and ("content" in value or "tool_calls" in value)


def read_messages(record: Any) -> Draft:
    """Draft of OpenAI's messages, whose contents may be lists of parts."""
    about = record if isinstance(record, dict) else {}
    messages = record if isinstance(record, list) else list_at(about, "messages")
    return _draft(about, messages, "messages")


def recognises_sharegpt(record: Any) -> bool:
    """True for an object with ShareGPT's `conversations`, or another name of them."""
    return isinstance(record, dict) and _list_name(record) is not None


def read_sharegpt(record: Mapping[str, Any]) -> Draft:
    """Draft of ShareGPT's turns."""
    name = _list_name(record) or "conversations"
    return _draft(record, list_at(record, name), name)


def _list_name(record: Mapping[str, Any]) -> str | None:
    names = (name for name, kind in LIST_KEYS.items() if kind == "sharegpt")
    return next((name for name in names if isinstance(record.get(name), list)), None)


def recognises_alpaca(record: Any) -> bool:
    """True for an instruction with its output."""
    return isinstance(record, dict) and pair_name(record) == "alpaca"


def recognises_pair(record: Any) -> bool:
    """True for a prompt or a question with its answer."""
    return isinstance(record, dict) and pair_name(record) is not None


def recognises_guanaco(record: Any) -> bool:
    """True for a text with role markers."""
    return isinstance(record, dict) and "text" in record and "chosen" not in record


def recognises_preference(record: Any) -> bool:
    """True for a prompt with a chosen answer."""
    return isinstance(record, dict) and {"prompt", "chosen"} <= record.keys()


def read_parsed(record: Mapping[str, Any]) -> Draft:
    """Draft of a record that training reads, too."""
    conversation = parse_dialogue(record, as_written=True).conversation
    turns = linear((each.role, each.content, None) for each in conversation.messages)
    return Draft(turns, record.get("id"), record.get("title"), conversation.system)


def _draft(record: Mapping[str, Any], messages: list[Any], name: str) -> Draft:
    turns: list[DraftTurn] = []
    for index, each in enumerate(messages):
        message = object_of(each)
        role, text = turn_keys(message, older=name != "messages")
        if not isinstance(message.get(role), str):
            raise BadExport(f"{name}[{index}] has no {role!r} that is a text")
        turns.append(_turn(message, turns, role, text))
    system = record.get("system")
    return Draft(
        turns,
        record.get("id"),
        record.get("title"),
        system if isinstance(system, str) else None,
        record.get("model"),
        created_at=time_of(record.get("created_at")),
    )


def _turn(message: Mapping[str, Any], before: list[DraftTurn], role_key: str, text_key: str) -> DraftTurn:
    text, others = text_of(message.get(text_key) or "")
    parent = before[-1].id if before else None
    role = message[role_key].lower()
    if calls := list_of(message.get("tool_calls")):
        others[TOOLS] += len(calls)
        role = role if text.strip() else "system"  # an empty one, which is not counted again
    moment = time_of(message.get("created_at") or message.get("timestamp"))
    return DraftTurn(str(len(before)), parent, role, text, moment, others)
