"""Export of conversations as Markdown, JSON, JSON lines or Guanaco text; import of our JSON and of other projects' dialogues.

Scope: file formats. Our JSON and JSON lines hold every branch and are restored unchanged; the others hold the active branch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_chat.dialogue_formats import parse_dialogue
from qlora_chat.history import HistoryError, HistoryStore, StoredConversation, StoredTurn, Summary, now
from qlora_chat.history.json_codec import conversation_from_json, conversation_to_json
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation
from qlora_chat.text import json_records


def markdown(conversation: StoredConversation) -> str:
    """Active branch as Markdown, with the metadata above it."""
    summary = conversation.summary
    lines = [f"# {summary.title or 'Conversation'}", ""]
    metadata = {"model": summary.model, "adapter": summary.adapter, "tags": ", ".join(summary.tags), "id": summary.id}
    lines += [f"- {name}: {value}" for name, value in metadata.items() if value]
    lines += [f"- begun: {summary.created_at.astimezone():%Y-%m-%d %H:%M}", ""]
    if conversation.system:
        lines += ["## System", "", conversation.system, ""]
    for message in conversation.conversation().messages:
        mark = f" ({message.finish_reason})" if message.finish_reason not in (None, "stop") else ""
        lines += [f"## {'You' if message.role == 'user' else 'Assistant'}{mark}", "", message.content, ""]
    return "\n".join(lines)


def guanaco(conversation: StoredConversation) -> str:
    """{"text": "### Human: ...### Assistant: ..."} as in the original's training data; "" if there is no answer."""
    messages = [message for message in conversation.conversation().messages if message.content]
    text = "".join(f"### {'Human' if message.role == 'user' else 'Assistant'}: {message.content}" for message in messages)
    return json.dumps({"text": text}, ensure_ascii=False) if any(each.role == "assistant" for each in messages) else ""


def _json_line(conversation: StoredConversation) -> str:
    return json.dumps(conversation_to_json(conversation), ensure_ascii=False)


FORMATS: Mapping[str, Callable[[StoredConversation], str]] = {"markdown": markdown, "jsonl": _json_line, "guanaco": guanaco}


def export(conversations: Iterable[StoredConversation], file_format: str) -> Iterator[str]:
    """Text of a file, in pieces. HistoryError for an unknown format."""
    if file_format == "json":
        yield json.dumps([conversation_to_json(each) for each in conversations], ensure_ascii=False, indent=1) + "\n"
        return
    if file_format not in FORMATS:
        raise HistoryError(f"--format is {file_format!r}, but must be one of json, {', '.join(FORMATS)}")
    for each in conversations:
        if text := FORMATS[file_format](each):
            yield text + "\n"


def import_into(store: HistoryStore, path: Path) -> tuple[int, int]:
    """Add the conversations of a file. Returns (added, skipped because their ids exist).

    HistoryError names the file and the bad record; then nothing has been added, since the whole file is read first.
    """
    added = [store.restore(each) for each in read_conversations(path)]
    return sum(added), len(added) - sum(added)


def read_conversations(path: Path) -> list[StoredConversation]:
    """Conversations of a JSON array, a JSON object or JSON lines, in our format or one of dialogue_formats.py.

    HistoryError names the file and the bad record.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise HistoryError(f"{path} cannot be read ({getattr(problem, 'strerror', None) or 'it is not UTF-8'})") from None
    try:
        records = list(json_records(text))
    except ValueError as problem:
        raise HistoryError(f"{path}, {problem}") from None
    return [_parsed(record, f"{path}, {position}" if position else str(path)) for position, record in records]


def _parsed(record: Any, position: str) -> StoredConversation:
    try:
        if isinstance(record, dict) and "turns" in record:
            return conversation_from_json(record)
        name, conversation = parse_dialogue(record, as_written=True)
    except ValueError as problem:
        raise HistoryError(f"{position}: {problem}") from None
    identity = record.get("conversations", record.get("items")) if name == "sharegpt" else record
    return _imported(replace(conversation, id=str(record.get("id") or _fingerprint(identity))))


def _imported(conversation: Conversation) -> StoredConversation:
    moment = now()
    messages = [replace(each, finish_reason="stop" if each.role == "assistant" else None) for each in conversation.messages]
    parents = [None, *(message.id for message in messages)]
    turns = tuple(StoredTurn(message, parent, moment) for message, parent in zip(messages, parents, strict=False))
    summary = Summary(conversation.id, title_of(conversation), ("imported",), None, None, len(turns), moment, moment)
    return StoredConversation(summary, conversation.system, {}, messages[-1].id if messages else None, turns)


def _fingerprint(value: Any) -> str:
    """Id for a conversation without one, the same at every import."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
