"""text-generation-webui's chats: `internal` pairs of a question and an answer, and earlier versions of answers.

Scope: this format. `visible` holds the same texts as HTML and is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from qlora_chat.history.importing import BadExport
from qlora_chat.history.importing.content import list_at, list_of, object_of, text_of, time_of
from qlora_chat.history.importing.draft import Draft, DraftTurn

GREETING = "<|BEGIN-VISIBLE-CHAT|>"
"""Stands in place of a question before the character's greeting."""


def recognises(record: Any) -> bool:
    """True for a chat of text-generation-webui, of the older form, too."""
    return isinstance(record, dict) and any(
        isinstance(record.get(name), list) and visible in record
        for name, visible in (("internal", "visible"), ("data", "data_visible"))
    )


def read(record: Mapping[str, Any]) -> Draft:
    """Draft with every version of an answer as a branch. BadExport where there are no pairs."""
    metadata = object_of(record.get("metadata"))
    turns: list[DraftTurn] = []
    before: str | None = None
    for index, (question, answer) in enumerate(_pairs(record)):
        user, assistant = f"user_{index}", f"assistant_{index}"
        if question != GREETING:
            turns.append(DraftTurn(user, before, "user", question, _time(metadata, user)))
            before = user
        turns += _versions(object_of(metadata.get(assistant)), assistant, before, answer)
        if answer.strip():
            turns.append(DraftTurn(assistant, before, "assistant", answer, _time(metadata, assistant)))
            before = assistant
    return Draft(turns, head_id=before)


def _pairs(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = "internal" if "internal" in record else "data"
    for index, pair in enumerate(list_at(record, name)):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadExport(f"{name}[{index}] is no pair of a question and an answer")
        yield text_of(pair[0] or "")[0], text_of(pair[1] or "")[0]


def _time(metadata: Mapping[str, Any], name: str) -> datetime | None:
    return time_of(object_of(metadata.get(name)).get("timestamp"))


def _versions(about: Mapping[str, Any], name: str, parent: str | None, shown: str) -> list[DraftTurn]:
    """Other versions of an answer than the one that is shown."""
    found = map(object_of, list_of(about.get("versions")))
    texts = [(text_of(each.get("content") or "")[0], time_of(each.get("timestamp"))) for each in found]
    return [
        DraftTurn(f"{name}/{number}", parent, "assistant", text, moment)
        for number, (text, moment) in enumerate(texts)
        if text != shown and text.strip()
    ]
