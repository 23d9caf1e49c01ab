"""Export of conversations as Markdown, JSON, JSON lines or Guanaco text.

Scope: file formats. Our JSON and JSON lines hold every branch and are restored unchanged; the others hold the active branch.
history/importing/ reads them again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from qlora_chat.history import HistoryError, StoredConversation
from qlora_chat.history.json_codec import conversation_to_json

_ROLE_MARKER = re.compile("### (Human|Assistant)(?=:)")
"""Begins a turn wherever it stands, so in a message it gets spaces, as in prompts."""


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
    texts = (_ROLE_MARKER.sub(r"# # # \1", message.content) for message in messages)
    roles = ("Human" if message.role == "user" else "Assistant" for message in messages)
    text = "".join(f"### {role}: {content}" for role, content in zip(roles, texts, strict=True))
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
