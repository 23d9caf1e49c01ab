"""One conversation as a log of JSON lines: appending all lines of a change or none, and replaying them.

Scope: one file. Knows no folder and no lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from qlora_chat.history import ConversationInfo, Feedback, StoredConversation, StoredTurn, Vote
from qlora_chat.history.json_codec import (
    assembled,
    feedback_from_json,
    feedback_to_json,
    heading_to_json,
    turn_from_json,
    turn_to_json,
    vote_from_json,
    vote_to_json,
)


def append(file: IO[bytes], lines: Sequence[Mapping[str, Any]]) -> None:
    """Append all lines, which are on disk on return. OSError, with none of them written, if the disk is full."""
    size = file.seek(0, os.SEEK_END)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace")
    try:
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            text = b"\n" + text  # a crash cut off the line before this one
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise


def changes(before: StoredConversation | None, after: StoredConversation, info: ConversationInfo) -> list[dict[str, Any]]:
    """Lines that turn the stored conversation into the changed one; a new one has the owner and the name's key of `info`."""
    new, updated = after.summary, {"updated_at": after.summary.updated_at.isoformat()}
    old = before.summary if before else new
    known = {turn.message.id: turn for turn in before.turns} if before else {}
    added = [turn for turn in after.turns if turn.message.id not in known]
    ended = [turn for turn in after.turns if known.get(turn.message.id, turn) != turn]
    labels = {"owner": info.owner} | ({"name_key": info.name_key} if info.name_key else {})
    lines: list[dict[str, Any]] = [] if before else [{"type": "conversation", **labels, **heading_to_json(after)}]
    lines += [{"type": "turn", **turn_to_json(turn)} for turn in added]
    lines += [{"type": "answer", **turn_to_json(replace(turn, parent_id=None)), **updated} for turn in ended]
    lines += [
        {"type": "feedback", **feedback_to_json(each)} for each in after.feedback[len(before.feedback) if before else 0 :]
    ]
    lines += [{"type": "vote", **vote_to_json(each)} for each in after.votes[len(before.votes) if before else 0 :]]
    if before is None or added or (new.updated_at != old.updated_at and not ended):
        settings = {"settings": dict(after.settings), "model": new.model, "adapter": new.adapter} if after.settings else {}
        lines.append({"type": "head", "head_id": after.head_id, "system": after.system, **settings, **updated})
    if (old.title, old.tags) != (new.title, new.tags):
        lines.append({"type": "change", "title": new.title, "tags": [*new.tags]})
    if old.hidden_at != new.hidden_at:
        lines.append({"type": "hidden", "at": new.hidden_at and new.hidden_at.isoformat()})
    return lines


def read(lines: Iterable[bytes]) -> tuple[StoredConversation, ConversationInfo] | None:
    """(conversation, its owner and its name's key) of the lines; None if they hold none. Broken lines are ignored."""
    heading: dict[str, Any] | None = None
    turns: dict[str, StoredTurn] = {}
    feedback: list[Feedback] = []
    votes: list[Vote] = []
    hidden_at: datetime | None = None
    for line in filter(None, map(_parsed, lines)):
        kind = line.get("type")
        with suppress(ValueError, KeyError):
            if kind == "conversation":
                heading = line
            elif kind in ("head", "change") and heading is not None:
                heading |= {name: value for name, value in line.items() if name != "type"}
            elif kind == "hidden":
                hidden_at = datetime.fromisoformat(line["at"]) if line["at"] else None
            elif kind == "turn":
                turn = turn_from_json(line)
                turns.setdefault(turn.message.id, turn)
            elif kind == "answer":
                turn = turn_from_json(line)
                turns[turn.message.id] = replace(turns[turn.message.id], message=turn.message, details=turn.details)
                if heading is not None:
                    heading["updated_at"] = line["updated_at"]
            elif kind == "feedback":
                feedback.append(feedback_from_json(line))
            elif kind == "vote":
                votes.append(vote_from_json(line))
    if heading is None:
        return None
    try:
        info = ConversationInfo(owner=heading.get("owner"), name_key=heading.get("name_key"))
        conversation = assembled(heading, [*turns.values()], feedback, votes)
        return replace(conversation, summary=replace(conversation.summary, hidden_at=hidden_at)), info
    except ValueError:
        return None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def with_partial(conversation: StoredConversation, file: Path) -> StoredConversation:
    """Conversation whose open answer has the text of the partial-answer file, if there is one."""
    try:
        partial = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return conversation
    turns = tuple(
        replace(turn, message=replace(turn.message, content=partial["content"]))
        if turn.message.id == partial["id"] and turn.message.finish_reason == "partial"
        else turn
        for turn in conversation.turns
    )
    return replace(conversation, turns=turns)
