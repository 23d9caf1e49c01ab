"""Formats that can be imported, and which of them a record has.

Scope: names and recognition. Each tool's module knows its format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_chat.dialogue_formats import kind_of
from qlora_chat.history import HistoryError, StoredConversation
from qlora_chat.history.importing import (
    BadExport,
    chatgpt,
    claude,
    dialogues,
    librechat,
    open_webui,
    own,
    silly_tavern,
    text_generation_webui,
)
from qlora_chat.history.importing.draft import Draft, conversation_of


@dataclass(frozen=True)
class ImportFormat:
    """A format: `recognises` a record, and `read` turns one into a draft, or into a conversation of our own."""

    recognises: Callable[[Any], bool]
    read: Callable[[Any], Draft | StoredConversation]


FORMATS: Mapping[str, ImportFormat] = {
    "qlora-chat": ImportFormat(own.recognises, own.read),
    "chatgpt": ImportFormat(chatgpt.recognises, chatgpt.read),
    "claude": ImportFormat(claude.recognises, claude.read),
    "open-webui": ImportFormat(open_webui.recognises, open_webui.read),
    "text-generation-webui": ImportFormat(text_generation_webui.recognises, text_generation_webui.read),
    "sillytavern": ImportFormat(silly_tavern.recognises, silly_tavern.read),
    "librechat": ImportFormat(librechat.recognises, librechat.read),
    "messages": ImportFormat(dialogues.recognises_messages, dialogues.read_messages),
    "sharegpt": ImportFormat(dialogues.recognises_sharegpt, dialogues.read_sharegpt),
    "alpaca": ImportFormat(dialogues.recognises_alpaca, dialogues.read_parsed),
    "preference": ImportFormat(dialogues.recognises_preference, dialogues.read_parsed),
    "question-answer": ImportFormat(dialogues.recognises_pair, dialogues.read_parsed),
    "guanaco": ImportFormat(dialogues.recognises_guanaco, dialogues.read_parsed),
}
"""By name, the first that recognises a record first."""

_FIELDS: Mapping[str, tuple[type, str]] = {
    "mapping": (dict, "an object"),
    "chat": (dict, "an object"),
    "chat_messages": (list, "a list"),
    "messages": (list, "a list"),
    "conversations": (list, "a list"),
}
"""Fields by which records are recognised, with the type of their values."""
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
"""Errors that a record of unexpected types causes somewhere inside its reader."""


def check_format(name: str | None) -> None:
    """HistoryError for a name that is not known."""
    if name is not None and name not in FORMATS:
        raise HistoryError(f"--format is {name!r}, but must be one of {', '.join(FORMATS)}")


def conversation_from(record: Any, name: str | None = None) -> tuple[str, StoredConversation, Counter[str]]:
    """(format, conversation, what it lacks) of a record, in the named format or else in the first that recognises it.

    BadExport says what is wrong with the record.
    """
    name = name or _recognised(record)
    try:
        read = FORMATS[name].read(record)
        if isinstance(read, StoredConversation):
            return name, read, Counter()
        return name, *conversation_of(read)
    except BadExport:
        raise
    except _UNREADABLE as problem:
        said = str(problem) if type(problem).__module__ != "builtins" or type(problem) is ValueError else ""
        raise BadExport(said or f"is no conversation as {name} writes it") from None


def _recognised(record: Any) -> str:
    for name, each in FORMATS.items():
        if each.recognises(record):
            return name
    if not isinstance(record, dict):
        raise BadExport(f"is {kind_of(record)}, but must be an object")
    for field, (kind, expected) in _FIELDS.items():
        if field in record and not isinstance(record[field], kind):
            raise BadExport(f"{field!r} is {kind_of(record[field])}, but must be {expected}")
    has = ", ".join(repr(str(name)[:40]) for name in list(record)[:6]) or "nothing"
    raise BadExport(f"has {has}, which is none of the known formats; --format may be one of {', '.join(FORMATS)}")
