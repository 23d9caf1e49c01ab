"""Conversations out of a store and into one: Markdown, JSON, JSON lines, the Guanaco text form; our own and ShareGPT's in.

Scope: formats. Our JSON and JSON lines carry every branch and come back as they were; the others carry the branch shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_chat.history import HistoryError, HistoryStore, StoredConversation, StoredTurn, Summary, now
from qlora_chat.history.json_codec import conversation_from_json, conversation_to_json
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation, Message

HUMAN = frozenset({"human", "user", "prompter"})
MODEL = frozenset({"gpt", "assistant", "chatgpt", "bard", "bing", "model", "bot"})


def markdown(kept: StoredConversation) -> str:
    """A conversation to be read."""
    summary = kept.summary
    lines = [f"# {summary.title or 'Conversation'}", ""]
    facts = {"model": summary.model, "adapter": summary.adapter, "tags": ", ".join(summary.tags), "id": summary.id}
    lines += [f"- {name}: {value}" for name, value in facts.items() if value]
    lines += [f"- begun: {summary.created_at.astimezone():%Y-%m-%d %H:%M}", ""]
    if kept.system:
        lines += ["## System", "", kept.system, ""]
    for message in kept.conversation().messages:
        mark = f" ({message.finish_reason})" if message.finish_reason not in (None, "stop") else ""
        lines += [f"## {'You' if message.role == 'user' else 'Assistant'}{mark}", "", message.content, ""]
    return "\n".join(lines)


def guanaco(kept: StoredConversation) -> str:
    """{"text": "### Human: ...### Assistant: ..."}, as the original's training data has it; "" where nothing was answered."""
    told = [message for message in kept.conversation().messages if message.content]
    text = "".join(f"### {'Human' if message.role == 'user' else 'Assistant'}: {message.content}" for message in told)
    return json.dumps({"text": text}, ensure_ascii=False) if any(each.role == "assistant" for each in told) else ""


def _json_line(kept: StoredConversation) -> str:
    return json.dumps(conversation_to_json(kept), ensure_ascii=False)


FORMATS: Mapping[str, Callable[[StoredConversation], str]] = {"markdown": markdown, "jsonl": _json_line, "guanaco": guanaco}


def export(conversations: Iterable[StoredConversation], form: str) -> Iterator[str]:
    """The conversations as text, piece by piece. HistoryError for an unknown format."""
    if form == "json":
        yield json.dumps([conversation_to_json(kept) for kept in conversations], ensure_ascii=False, indent=1) + "\n"
        return
    if form not in FORMATS:
        raise HistoryError(f"--format is {form!r}, but must be one of json, {', '.join(FORMATS)}")
    for kept in conversations:
        if text := FORMATS[form](kept):
            yield text + "\n"


def import_into(store: HistoryStore, path: Path) -> tuple[int, int]:
    """Add a file's conversations; -> (added, there already). HistoryError names the file and the line that is wrong.

    Everything is read before anything is added, so that a bad record changes nothing.
    """
    added = [store.restore(kept) for kept in read_conversations(path)]
    return sum(added), len(added) - sum(added)


def read_conversations(path: Path) -> list[StoredConversation]:
    """Conversations of a JSON array, a JSON object or JSON lines, each ours or ShareGPT's. HistoryError says what is wrong."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise HistoryError(f"{path} cannot be read ({getattr(problem, 'strerror', None) or 'it is not UTF-8'})") from None
    found: list[StoredConversation] = []
    for place, data in _records(path, text):
        try:
            found.append(_conversation(data))
        except ValueError as problem:
            raise HistoryError(f"{place}: {problem}") from None
    return found


def _records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        yield from ((f"{path}, record {index}", each) for index, each in enumerate(whole, 1))
        return
    if isinstance(whole, dict):
        yield f"{path}", whole
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except (ValueError, RecursionError):
            raise HistoryError(f"{path}, line {number}: this is not JSON") from None


def _conversation(data: Any) -> StoredConversation:
    if not isinstance(data, dict):
        raise ValueError(f"a record is {type(data).__name__}, but must be an object")
    if "turns" in data:
        return conversation_from_json(data)
    turns = data.get("conversations", data.get("items"))
    if not isinstance(turns, list):
        raise ValueError('neither "turns" (our export) nor "conversations" (ShareGPT) is there')
    return _sharegpt(data, turns)


def _sharegpt(data: Mapping[str, Any], turns: list[Any]) -> StoredConversation:
    """{"id", "conversations": [{"from": "human" | "gpt" | "system", "value"}, ...]}; its turns get ids of their own."""
    system: str | None = None
    spoken: list[tuple[str, str]] = []
    for index, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
            raise ValueError(f'turn {index} must be an object with the texts "from" and "value"')
        if turn["from"] == "system" and not spoken:
            system = turn["value"]
            continue
        role = "user" if turn["from"] in HUMAN else "assistant" if turn["from"] in MODEL else None
        if role is None:
            raise ValueError(f"turn {index} is from {turn['from']!r}, but must be from human, gpt or system")
        if spoken and spoken[-1][0] == role:  # some exports split what one side said
            spoken[-1] = (role, f"{spoken[-1][1]}\n\n{turn['value']}")
        else:
            spoken.append((role, turn["value"]))
    if spoken and spoken[0][0] == "assistant":
        spoken = spoken[1:]  # a greeting: a conversation begins with a question
    return _told(str(data.get("id") or _fingerprint(turns)), system, spoken)


def _told(conversation_id: str, system: str | None, spoken: list[tuple[str, str]]) -> StoredConversation:
    moment = now()
    messages = tuple(
        Message(role, text, finish_reason="stop" if role == "assistant" else None)  # type: ignore[arg-type]
        for role, text in spoken
    )
    parents = [None, *(message.id for message in messages)]
    turns = tuple(StoredTurn(message, parent, moment) for message, parent in zip(messages, parents, strict=False))
    title = title_of(Conversation(messages=messages))
    summary = Summary(conversation_id, title, ("imported",), None, None, len(turns), moment, moment)
    return StoredConversation(summary, system, {}, messages[-1].id if messages else None, turns)


def _fingerprint(turns: list[Any]) -> str:
    """An id for a conversation without one, the same whenever the file is imported again."""
    return hashlib.sha256(json.dumps(turns, sort_keys=True).encode()).hexdigest()[:32]
