"""The form of a record, and its turns.

Scope: recognition by keys, and each form's own fields. turns.py reads lists of turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_chat.dialogue_formats import ROLES, BadRecord, kind_of
from qlora_chat.dialogue_formats.turns import Turn, read_text, read_turns

TOOLS = "lost their definitions of tools, which are not learned"
"""A change, as a summary writes it after the number of dialogues."""

LIST_KEYS: Mapping[str, str] = {
    "messages": "messages",
    "conversations": "sharegpt",
    "conversation": "sharegpt",
    "items": "sharegpt",
}
"""Names of lists of turns, and the format of each."""


@dataclass(frozen=True)
class _PairFormat:
    """A question and an answer under names of their own."""

    name: str
    question: str
    answers: tuple[str, ...]
    """Names of the answer, the likeliest first."""
    contexts: tuple[str, ...]
    """Names of a text that follows the question."""


_PAIRS = (
    _PairFormat("alpaca", "instruction", ("output", "response", "completion", "answer"), ("input", "context")),
    _PairFormat("prompt-completion", "prompt", ("completion", "response", "output", "answer"), ("context",)),
    _PairFormat("question-answer", "question", ("answer", "response", "output"), ("context",)),
    _PairFormat("question-answer", "query", ("response", "answer", "output"), ("context",)),
)
TEXT = "text"
"""Format of a text without Guanaco's markers, which only the model's own template can read."""
COLUMNS = frozenset(
    (
        *LIST_KEYS, *(each.question for each in _PAIRS), *(name for each in _PAIRS for name in (*each.answers, *each.contexts)),
        "chosen", "rejected", "text", "history", "system", "system_prompt", "system_message", "tools", "functions",
        "image", "images", "audio", "audios", "video", "videos",
    )
)  # fmt: skip
"""Every name that means something here."""
_SYSTEM_KEYS = ("system", "system_prompt", "system_message")
_MEDIA_KEYS = ("image", "images", "audio", "audios", "video", "videos")
_GUANACO_MARKER = re.compile(r"### (Human|Assistant):")


@dataclass(frozen=True)
class Recognised:
    """A record's form and contents."""

    format: str
    turns: Iterable[Turn]
    """Read while they are iterated, so BadRecord may come then."""
    system: str | None = None
    """System text beside the turns."""
    changes: tuple[str, ...] = ()


def recognise(record: Mapping[str, Any]) -> Recognised:
    """Form and contents of a record. BadRecord names the keys that it has and those that are known."""
    if media := next((each for each in _MEDIA_KEYS if record.get(each)), None):
        raise BadRecord(f"has {media!r}, and only text is learned")
    system, changes = _system(record)
    if record.get("tools") or record.get("functions"):
        changes = (*changes, TOOLS)
    if name := _only(record, LIST_KEYS):
        return Recognised(LIST_KEYS[name], read_turns(record[name], name), system, changes)
    if record.get("chosen") is not None:
        return Recognised("preference", _preferred(record), system, changes)
    if pair := _pair_format(record):
        return Recognised(pair.name, [*_history(record), *_pair(record, pair)], system, changes)
    if record.get("text") is not None:
        return _of_text(record["text"])
    if name := next((each for each in LIST_KEYS if record.get(each) == []), None):
        return Recognised(LIST_KEYS[name], (), system, changes)
    raise BadRecord(_unknown(record))


def pair_name(record: Mapping[str, Any]) -> str | None:
    """Format of a record of a question and an answer; None for another."""
    pair = _pair_format(record)
    return pair.name if pair else None


def guanaco_turns(text: str) -> tuple[str | None, list[Turn]] | None:
    """(text before the first marker, turns); None without markers."""
    before, *parts = _GUANACO_MARKER.split(text)
    if not parts:
        return None
    contents = [each.removeprefix(" ") for each in parts[1::2]]  # the space belongs to the marker
    turns = [(ROLES[marker.lower()], each) for marker, each in zip(parts[::2], contents, strict=True)]
    if not turns[-1][1].strip():
        turns.pop()  # an empty marker closes many of these texts
    return before.strip() or None, [Turn(f"turn {number} of 'text'", *turn) for number, turn in enumerate(turns, start=1)]


def _pair_format(record: Mapping[str, Any]) -> _PairFormat | None:
    return next((each for each in _PAIRS if record.get(each.question) is not None and _first(record, each.answers)), None)


def _first(record: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of the names that holds something; or that is there and holds null or nothing."""
    there = [each for each in names if each in record]
    return next((each for each in there if record[each]), there[0] if there else None)


def _system(record: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    name = _only(record, _SYSTEM_KEYS)
    return read_text(record[name], repr(name)) if name else (None, ())


def _only(record: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The one of these names that holds something. BadRecord for two that hold different things."""
    held = [each for each in names if record.get(each)]
    if len(held) > 1 and record[held[0]] != record[held[1]]:
        raise BadRecord(f"has both {held[0]!r} and {held[1]!r}; leave one of them")
    return held[0] if held else None


def is_learned(record: Mapping[str, Any]) -> bool:
    """False for a whole record that is marked as not to be learned, or, in KTO's data, as a bad answer."""
    marked = [record[each] for each in ("weight", "train") if isinstance(record.get(each), int | float)]
    return 0 not in marked and not (record.get("label") is False and "completion" in record)


def _preferred(record: Mapping[str, Any]) -> list[Turn]:
    """The chosen answer, with everything before it as context."""
    prompt, chosen = record.get("prompt"), record["chosen"]
    turns = _texts(chosen, "chosen", "assistant")
    if len(turns) == 1 and prompt is None:
        raise BadRecord("has 'chosen', but no 'prompt'; give the question as 'prompt', or as the first message of 'chosen'")
    repeats = isinstance(prompt, list) and isinstance(chosen, list) and chosen[: len(prompt)] == prompt
    if len(turns) > 1 and isinstance(prompt, str) and not any(each.text.strip() == prompt.strip() for each in turns[:-1]):
        raise BadRecord("has a 'prompt' that is no message of 'chosen'; leave one of them")
    if prompt is not None and not repeats and not (len(turns) > 1 and isinstance(prompt, str)):
        turns = [*_texts(prompt, "prompt", "user"), *turns]
    return [*map(_context, turns[:-1]), *turns[-1:]]


def _pair(record: Mapping[str, Any], pair: _PairFormat) -> list[Turn]:
    question, answer, context = record[pair.question], _first(record, pair.answers) or "", _only(record, pair.contexts)
    turns = [_context(each) for each in _texts(question, pair.question, "user")]
    if context:
        text, changes = read_text(record[context], repr(context))
        if not isinstance(question, str):
            raise BadRecord(f"has {context!r} beside a list under {pair.question!r}; put it into the last message")
        joined = "\n\n".join(each.strip() for each in (question, text) if each.strip())
        turns = [Turn(turns[0].position, "user", joined, changes=(*turns[0].changes, *changes))]
    return [*turns, *_texts(record[answer], answer, "assistant")]


def _texts(value: Any, name: str, role: str) -> list[Turn]:
    """Turns of a text, or of a list of messages."""
    if isinstance(value, list) and value:
        return list(read_turns(value, name))
    text, changes = read_text(value, repr(name))
    return [Turn(repr(name), role, text, changes=changes)]


def _context(turn: Turn) -> Turn:
    return Turn(turn.position, turn.role, turn.text, False, turn.changes)


def _history(record: Mapping[str, Any]) -> list[Turn]:
    """Alpaca's earlier exchanges: a list of [question, answer], or of messages."""
    history = record.get("history")
    if not history:
        return []
    if isinstance(history, list) and isinstance(history[0], dict):
        return list(read_turns(history, "history"))
    if not isinstance(history, list) or not all(isinstance(each, list) and len(each) == 2 for each in history):
        raise BadRecord(f"'history' is {kind_of(history)}, but must be a list of [question, answer]")
    turns = []
    for index, pair in enumerate(history):
        for side, role in enumerate(("user", "assistant")):
            text, changes = read_text(pair[side], f"history[{index}][{side}]")
            turns.append(Turn(f"history[{index}][{side}]", role, text, changes=changes))
    return turns


def _of_text(text: Any) -> Recognised:
    if not isinstance(text, str):
        raise BadRecord(f"'text' is {kind_of(text)}, but must be a text")
    found = guanaco_turns(text)
    if found is None:
        return Recognised(TEXT, ())
    before, turns = found
    return Recognised("guanaco", turns, before)


def _unknown(record: Mapping[str, Any]) -> str:
    has = ", ".join(repr(str(name)[:40]) for name in list(record)[:6]) or "nothing"
    nested = next(
        (name for name, each in record.items() if isinstance(each, list) and each and isinstance(each[0], dict)), None
    )
    hint = f"; if {str(nested)[:40]!r} is the list of records, let the file hold that list alone" if nested else ""
    expected = (
        "'messages', 'conversations', 'instruction' and 'output', 'prompt' and 'completion', 'question' and 'answer', "
        "'prompt' and 'chosen', or 'text'"
    )
    return f"has {has}, but must have {expected}{hint}"
