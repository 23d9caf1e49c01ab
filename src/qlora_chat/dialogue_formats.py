"""One record of a dialogue file -> one conversation.

Scope: five formats, recognised by their keys: `messages`, ShareGPT's `conversations`, Alpaca's `instruction`/`input`/`output`,
Guanaco's `text`, and preference pairs, of which the chosen answer is read. Knows no files and no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from qlora_chat.messages import Conversation, Message, Role

ROLES: Mapping[str, str] = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
}
"""Names of the three roles in the files of several projects."""
_GUANACO_MARKER = re.compile(r"### (Human|Assistant):")

Turns = Iterable[tuple[str, str, str]]
"""(position in the record, role, text) of each turn, in order."""


class BadRecord(ValueError):
    """A record that cannot be used; the message says what is wrong with it."""


def parse_dialogue(record: Any, *, as_written: bool = False) -> tuple[str, Conversation]:
    """The format's name and the conversation, which may end with a question. BadRecord says what is wrong.

    By default every text must hold words, which are stripped of surrounding space, and roles must alternate from the user
    on, as training needs it. `as_written` keeps texts unchanged and accepts what chat exports hold: an assistant's greeting
    at the beginning is left out, consecutive texts of one role become one message, and there may be no message at all.
    """
    if not isinstance(record, dict):
        raise BadRecord(f"is {kind_of(record)}, but must be an object")
    name, turns, system = _recognised(record)
    build = _repaired if as_written else _strict
    return name, build(turns, _checked_system(system))


def kind_of(value: Any) -> str:
    """JSON type of a value in words, for error messages."""
    if value is None:
        return "null"
    if isinstance(value, list | dict) and not value:
        return "empty"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


# --- formats ---------------------------------------------------------------------------------------------------------


def _recognised(record: Mapping[str, Any]) -> tuple[str, Turns, Any]:
    """(format, turns, system text) of a record."""
    system = record.get("system")
    if "messages" in record:
        return "messages", _turns(record["messages"], "messages", "role", "content"), None
    for name in ("conversations", "items"):
        if name in record:
            return "sharegpt", _turns(record[name], name, "from", "value"), system
    if "instruction" in record and "output" in record:
        return "alpaca", _alpaca(record), system
    if "prompt" in record and "chosen" in record:
        return "preference", _preferred(record), None
    if "text" in record:
        before, turns = _guanaco(record["text"])
        return "guanaco", turns, before
    has = ", ".join(repr(name) for name in list(record)[:6]) or "nothing"
    expected = "'messages', 'conversations', 'instruction' and 'output', 'prompt' and 'chosen', or 'text'"
    raise BadRecord(f"has {has}, but must have {expected}")


def _turns(turns: Any, name: str, role_key: str, text_key: str) -> Turns:
    if not isinstance(turns, list):
        raise BadRecord(f"{name!r} is {kind_of(turns)}, but must be a list of turns")
    for index, turn in enumerate(turns):
        position = f"{name}[{index}]"
        role, text = _role_and_text(turn, position, role_key, text_key)
        if role == "system" and index:
            raise BadRecord(f"{position} is a system text, which can only come first")
        yield position, role, text


def _role_and_text(turn: Any, position: str, role_key: str, text_key: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise BadRecord(f"{position} is {kind_of(turn)}, but must be an object with {role_key!r} and {text_key!r}")
    for key in (role_key, text_key):
        if not isinstance(turn.get(key), str):
            what = kind_of(turn[key]) if key in turn else "missing"
            raise BadRecord(f"{position}: {key!r} is {what}, but must be a text")
    role = ROLES.get(turn[role_key])
    if role is None:
        raise BadRecord(f"{position}: {role_key!r} is {turn[role_key]!r}, but must be one of {', '.join(ROLES)}")
    return role, turn[text_key]


def _preferred(record: Mapping[str, Any]) -> Turns:
    for name in ("prompt", "chosen"):
        if not isinstance(record[name], list):
            raise BadRecord(f"{name!r} is {kind_of(record[name])}, but must be a list of messages")
    return _turns([*record["prompt"], *record["chosen"]], "prompt and chosen", "role", "content")


def _alpaca(record: Mapping[str, Any]) -> Turns:
    for key in ("instruction", "input", "output"):
        value = record.get(key, "" if key == "input" else None)
        if not isinstance(value, str) and not (key == "input" and value is None):
            raise BadRecord(f"{key!r} is {kind_of(value)}, but must be a text")
    question = "\n\n".join(part.strip() for part in (record["instruction"], record.get("input") or "") if part.strip())
    return (("'instruction'", "user", question), ("'output'", "assistant", record["output"]))


def _guanaco(text: Any) -> tuple[str | None, Turns]:
    """(text before the first marker, turns)."""
    if not isinstance(text, str):
        raise BadRecord(f"'text' is {kind_of(text)}, but must be a text")
    before, *parts = _GUANACO_MARKER.split(text)
    if not parts:
        raise BadRecord("'text' holds no '### Human:' and '### Assistant:'")
    turns = [(ROLES[marker.lower()], content.strip()) for marker, content in zip(parts[::2], parts[1::2], strict=True)]
    if not turns[-1][1]:
        turns.pop()  # an empty marker closes many of these texts
    return before.strip() or None, [(f"turn {number} of 'text'", *turn) for number, turn in enumerate(turns, start=1)]


# --- conversations -----------------------------------------------------------------------------------------------------


def _checked_system(system: Any) -> str | None:
    if system is not None and not isinstance(system, str):
        raise BadRecord(f"'system' is {kind_of(system)}, but must be a text")
    return system


def _strict(turns: Turns, system: str | None) -> Conversation:
    messages: list[Message] = []
    for position, role, text in turns:
        if role == "system":
            system = text
            continue
        expected: Role = "user" if len(messages) % 2 == 0 else "assistant"
        if role != expected:
            rule = "turns alternate" if messages else "a dialogue begins with the user"
            raise BadRecord(f"{position} is the {role}'s, but must be the {expected}'s: {rule}")
        if not text.strip():
            raise BadRecord(f"{position}: the {role}'s text is empty")
        messages.append(Message(expected, text.strip()))
    if not messages:
        raise BadRecord("holds no turn of a user")
    return Conversation(messages=tuple(messages), system=system)


def _repaired(turns: Turns, system: str | None) -> Conversation:
    texts: list[str] = []  # user, assistant, user, ...
    for _, role, text in turns:
        if role == "system":
            system = text
        elif role == ("user" if len(texts) % 2 == 0 else "assistant"):
            texts.append(text)
        elif texts:
            texts[-1] += f"\n\n{text}"
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = tuple(Message(roles[index % 2], text) for index, text in enumerate(texts))
    return Conversation(messages=messages, system=system)
