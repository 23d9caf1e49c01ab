"""Turns of a record: role, text and weight of each, whatever a tool calls them.

Scope: one list of turns, or one text. Knows no order of turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_chat.dialogue_formats import ROLES, BadRecord, kind_of

JOINED_PARTS = "had a text in several parts, now joined by blank lines"
REASONING = "lost the reasoning beside an answer, which is not learned"
"""Changes, as a summary writes them after the number of dialogues."""

PART_SEPARATOR = "\n\n"
_TOOL_ROLES = frozenset(
    (
        "tool",
        "function",
        "function_call",
        "function_response",
        "tool_call",
        "tool_calls",
        "tool_response",
        "observation",
        "ipython",
    )
)
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value")
_TEXT_PARTS = ("text", "input_text", "output_text")
_OLDER_LISTS = ("conversations", "conversation", "items")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Turn:
    """One turn as a record has it."""

    position: str
    """In the record, for messages."""
    role: str
    """system, user or assistant."""
    text: str
    has_loss: bool = True
    """False for an answer that is context only."""
    changes: tuple[str, ...] = ()


def read_turns(turns: Any, name: str) -> Iterator[Turn]:
    """Turns of the list under `name`, in order. BadRecord for one without a known role or a text."""
    if not isinstance(turns, list):
        raise BadRecord(f"{name!r} is {kind_of(turns)}, but must be a list of turns")
    for index, turn in enumerate(turns):
        yield _turn(turn, f"{name}[{index}]", older=name in _OLDER_LISTS)


def turn_keys(turn: Mapping[str, Any], *, older: bool = False) -> tuple[str, str]:
    """Keys of role and text: those that the turn has, or else ShareGPT's (`older`) or OpenAI's."""
    role, text = (next((each for each in keys if turn.get(each) is not None), keys[older]) for keys in (_ROLE_KEYS, _TEXT_KEYS))
    return role, text


def read_text(value: Any, name: str) -> tuple[str, tuple[str, ...]]:
    """(text, changes) of a content, which may be a list of parts. BadRecord for a part that is no text."""
    if isinstance(value, str):
        return value, ()
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{name} is {kind_of(value)}, but must be a text")
    texts = [_part(part, name) for part in value]
    return PART_SEPARATOR.join(texts), ((JOINED_PARTS,) if len(texts) > 1 else ())


def _turn(turn: Any, position: str, *, older: bool) -> Turn:
    if not isinstance(turn, dict):
        role_name, name = turn_keys({}, older=older)
        raise BadRecord(f"{position} is {kind_of(turn)}, but must be an object with {role_name!r} and {name!r}")
    role_name, name = turn_keys(turn, older=older)
    role = _role(turn, position, role_name)
    if turn.get("tool_calls") or turn.get("function_call"):
        raise BadRecord(f"{position} calls a tool, and dialogues with tools are not learned")
    if name not in turn:
        raise BadRecord(f"{position}: {name!r} is missing, but must be a text")
    text, changes = read_text(turn[name], f"{position}: {name!r}")
    if any(turn.get(each) for each in _REASONING_KEYS):
        changes = (*changes, REASONING)
    return Turn(position, role, text, _has_loss(turn, position), changes)


def _role(turn: Mapping[str, Any], position: str, key: str) -> str:
    name = turn.get(key)
    if not isinstance(name, str):
        what = kind_of(name) if key in turn else "missing"
        raise BadRecord(f"{position}: {key!r} is {what}, but must be a text")
    lower = name.strip().lower()
    if lower in _TOOL_ROLES:
        raise BadRecord(f"{position} is a tool's turn ({key!r} is {name!r}), and dialogues with tools are not learned")
    if lower not in ROLES:
        raise BadRecord(f"{position}: {key!r} is {name[:40]!r}, but must be one of {', '.join(ROLES)}")
    return ROLES[lower]


def _has_loss(turn: Mapping[str, Any], position: str) -> bool:
    """False for `weight: 0`, as OpenAI and Mistral have it, and for Axolotl's `train: false`."""
    for key in ("weight", "train"):
        value = turn.get(key)
        if value is not None and value not in (0, 1):
            raise BadRecord(f"{position}: {key!r} is {str(value)[:40]!r}, but must be 0 (not learned) or 1")
    return turn.get("weight") != 0 and turn.get("train") != 0


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadRecord(f"{name} has a part that is {kind_of(part)}, but must be a text, or an object with 'text'")
    kind = part.get("type", "text")
    if kind not in _TEXT_PARTS:
        raise BadRecord(f"{name} has a part of type {str(kind)[:40]!r}, and only text is learned")
    if not isinstance(part.get("text"), str):
        raise BadRecord(f"{name} has a part without a 'text' that is a text")
    return part["text"]
