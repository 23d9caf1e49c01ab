"""A conversation as lines in a file: added at the end, all of a change or none of it, and read back into what they come to.

Scope: one file. Knows no folder and no lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from qlora_chat.history import Feedback, StoredConversation, StoredTurn
from qlora_chat.history.json_codec import (
    conversation_from_json,
    feedback_from_json,
    feedback_to_json,
    turn_from_json,
    turn_to_json,
)


def private(path: str, flags: int) -> int:
    """An opener: for this user alone."""
    return os.open(path, flags, 0o600)


def append(file: IO[bytes], lines: Sequence[Mapping[str, Any]]) -> None:
    """Write all of them or, where the disk is full, none; on the disk when it returns."""
    size = file.seek(0, os.SEEK_END)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace")
    try:
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            text = b"\n" + text  # a crash cut the line before this one off
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise


def read(lines: Iterable[bytes]) -> tuple[StoredConversation, str | None] | None:
    """The conversation that lines come to, and its owner; None where there is none. Broken lines are passed over."""
    return _folded(line for line in map(_parsed, lines) if line)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _folded(lines: Iterable[dict[str, Any]]) -> tuple[StoredConversation, str | None] | None:
    """What the lines of a file come to. Lines that make no sense are passed over."""
    heading: dict[str, Any] | None = None
    turns: dict[str, StoredTurn] = {}
    said: list[Feedback] = []
    for line in lines:
        kind = line.get("type")
        with suppress(ValueError, KeyError):
            if kind == "conversation":
                heading = line
            elif kind in ("head", "change") and heading is not None:
                heading |= {name: value for name, value in line.items() if name != "type"}
            elif kind == "turn":
                turn = turn_from_json(line)
                turns.setdefault(turn.message.id, turn)
            elif kind == "answer":
                turn = turn_from_json(line)
                turns[turn.message.id] = replace(turns[turn.message.id], message=turn.message, details=turn.details)
                if heading is not None:
                    heading["updated_at"] = line["updated_at"]
            elif kind == "feedback":
                said.append(feedback_from_json(line))
    if heading is None:
        return None
    heading["turns"] = [turn_to_json(turn) for turn in turns.values()]
    heading["feedback"] = [feedback_to_json(each) for each in said]
    try:
        return conversation_from_json(heading), heading.get("owner")
    except ValueError:
        return None


def with_partial(kept: StoredConversation, partial: Path) -> StoredConversation:
    """The conversation with as much of its open answer as was written."""
    try:
        grown = json.loads(partial.read_bytes())
    except (OSError, ValueError):
        return kept
    turns = tuple(
        replace(turn, message=replace(turn.message, content=grown["content"]))
        if turn.message.id == grown["id"] and turn.message.finish_reason == "partial"
        else turn
        for turn in kept.turns
    )
    return replace(kept, turns=turns)
