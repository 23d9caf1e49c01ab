"""Turns -> a conversation that alternates, and the list of what was changed for that.

Scope: one record. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from qlora_chat.dialogue_formats import BadRecord, kind_of
from qlora_chat.dialogue_formats.formats import TEXT, is_learned, recognise
from qlora_chat.dialogue_formats.turns import Turn
from qlora_chat.messages import Conversation, Message, Role
from qlora_chat.text import replace_surrogates

WHITE_SPACE = "lost white space around a text"
SURROGATES = "had a lone surrogate (half a character), now '?'"
UNANSWERED = "lost a last question without an answer"
WITHOUT_LOSS = "have answers that are context only (weight 0, or part of a prompt)"
"""Changes, as a summary writes them after the number of dialogues."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation to learn from."""

    format: str
    conversation: Conversation
    without_loss: frozenset[int] = frozenset()
    """Indices of the answers that are not learned."""
    changes: tuple[str, ...] = ()
    """Everything in which it differs from its record."""
    text: str | None = None
    """The record's own, if it is one `text`: in the model's template it means more than its Guanaco markers."""
    where: str = ""
    """File and line, for reports."""

    @property
    def learned(self) -> bool:
        """True if an answer of it is learned."""
        return any(index not in self.without_loss for index in range(1, len(self.conversation.messages), 2))


def parse_dialogue(record: Any, *, as_written: bool = False) -> Dialogue:
    """The dialogue of a record, which may end with a question. BadRecord says what is wrong.

    By default every text must hold words, which are stripped of surrounding space, and roles must alternate from the user
    on, as training needs it; a `text` without Guanaco's markers has no messages. `as_written` keeps texts unchanged and
    accepts what chat exports hold: an assistant's greeting at the beginning is left out, consecutive texts of one role
    become one message, and there may be no message at all.
    """
    if not isinstance(record, dict):
        raise BadRecord(f"is {kind_of(record)}, but must be an object")
    found = recognise(record)
    if as_written:
        if found.format == TEXT:
            raise BadRecord("'text' holds no '### Human:' and '### Assistant:'")
        return Dialogue(found.format, _repaired(found.turns, found.system), changes=found.changes)
    text, learned = record["text"] if found.format in (TEXT, "guanaco") else None, is_learned(record)
    if found.format == TEXT:
        if not learned:
            raise BadRecord("is marked as not to be learned, which a 'text' in the model's template cannot be; leave it out")
        return Dialogue(TEXT, Conversation(), text=text)
    dialogue = strict_dialogue(found.format, found.turns, found.system)
    if not learned:
        text, dialogue = None, replace(dialogue, without_loss=frozenset(range(1, len(dialogue.conversation.messages), 2)))
    return replace(dialogue, changes=tuple(dict.fromkeys((*found.changes, *dialogue.changes))), text=text)


def strict_dialogue(format: str, turns: Iterable[Turn], system: str | None) -> Dialogue:
    """A dialogue whose roles alternate. BadRecord for another order, an empty text, and two system texts that differ."""
    messages: list[Message] = []
    without_loss: set[int] = set()
    changes: list[str] = []
    system, led = _whole(system, changes), False
    for turn in turns:
        changes += turn.changes
        if turn.role == "system":
            if messages or led:
                raise BadRecord(f"{turn.position} is a system text, which can only come first")
            led, system = True, _one_system(system, _whole(turn.text, changes))
            continue
        role = _expected_role(turn, len(messages))
        if not turn.has_loss and role == "assistant":
            without_loss.add(len(messages))
        messages.append(Message(role, _cleaned(turn.text, changes)))
    if not messages:
        raise BadRecord("holds no turn of a user")
    if messages[-1].role == "user":
        messages.pop()
        changes.append(UNANSWERED)
    if without_loss:
        changes.append(WITHOUT_LOSS)
    conversation = Conversation(messages=tuple(messages), system=system)
    return Dialogue(format, conversation, frozenset(without_loss), tuple(dict.fromkeys(changes)))


def _expected_role(turn: Turn, index: int) -> Role:
    expected: Role = "user" if index % 2 == 0 else "assistant"
    if turn.role != expected:
        rule = "turns alternate" if index else "a dialogue begins with the user"
        raise BadRecord(f"{turn.position} is the {turn.role}'s, but must be the {expected}'s: {rule}")
    if not turn.text.strip():
        raise BadRecord(f"{turn.position}: the {turn.role}'s text is empty")
    return expected


def _cleaned(text: str, changes: list[str]) -> str:
    """The text without surrounding space and half characters; each change is noted."""
    stripped = text.strip()
    if stripped != text:
        changes.append(WHITE_SPACE)
    return _whole(stripped, changes) or ""


def _whole(text: str | None, changes: list[str]) -> str | None:
    """The text without half characters."""
    whole = None if text is None else replace_surrogates(text)
    if whole != text:
        changes.append(SURROGATES)
    return whole


def _one_system(beside: str | None, first: str | None) -> str:
    if beside and first and beside != first:
        raise BadRecord("has a 'system' text and a system turn that differ; leave one of them")
    return first or beside or ""


def _repaired(turns: Iterable[Turn], system: str | None) -> Conversation:
    texts: list[str] = []  # user, assistant, user, ...
    for turn in turns:
        if turn.role == "system":
            system = turn.text
        elif turn.role == ("user" if len(texts) % 2 == 0 else "assistant"):
            texts.append(turn.text)
        elif texts:
            texts[-1] += f"\n\n{turn.text}"
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = tuple(Message(roles[index % 2], text) for index, text in enumerate(texts))
    return Conversation(messages=messages, system=system)
