"""Received turns with their newest feedback, by text and by rating.

Scope: reading a store. Knows no output format but the record's own JSON.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from qlora_chat.receiver.records import last_exchange, read_feedback
from qlora_chat.receiver.store import RecordFilter, RecordStore

Rating = Literal["up", "down", "edited", "commented"]
TurnKey: TypeAlias = tuple[str, str | None]
"""Sender and turn id; None for a turn of version 1."""


@dataclass(frozen=True)
class LoggedTurn:
    """A turn in a receiver's store."""

    row: dict[str, Any]
    """Columns of the store."""
    data: dict[str, Any]
    """The record as it was sent."""
    feedback: dict[str, Any] | None
    """Newest rating (1, -1 or None), edited and comment; None without feedback."""
    question: str
    """The last user message."""
    answer: str
    """Its answer, as it was shown."""

    @property
    def key(self) -> TurnKey:
        """Sender and turn id."""
        return self.row["sender"], self.row["turn_id"]

    @property
    def parent_key(self) -> TurnKey:
        """Sender and id of the turn that this one follows."""
        parent = self.data.get("parent_id")
        return self.row["sender"], parent if isinstance(parent, str) else None

    def record(self) -> dict[str, Any]:
        """The record as it was sent, with its feedback."""
        return {**self.data, "feedback": self.feedback} if self.feedback else self.data


def turns(
    store: RecordStore,
    where: RecordFilter,
    *,
    text: str | None = None,
    rating: Rating | None = None,
    newest_first: bool = False,
) -> Generator[LoggedTurn]:
    """Turns in order of time; with `text`, only those whose question or answer contains it, in any case.

    What cannot be read is skipped; `unreadable` counts it.
    """
    feedback_by_turn = feedback(store, where.conversation_id)
    needle = text.casefold() if text else ""
    for row in store.rows(replace(where, kind="turn"), newest_first=newest_first):
        try:
            data = json.loads(row.pop("body"))
            question, answer = last_exchange(data)
        except (ValueError, RecursionError):
            continue
        if needle and needle not in question.casefold() and needle not in answer.casefold():
            continue
        opinion = feedback_by_turn.get((row["sender"], row["turn_id"]))
        if rating is None or _matches(opinion, rating):
            yield LoggedTurn(row, data, opinion, question, answer)


def feedback(store: RecordStore, conversation_id: str | None = None) -> dict[TurnKey, dict[str, Any]]:
    """The newest readable feedback to each turn."""
    rows = store.rows(RecordFilter(kind="feedback", conversation_id=conversation_id), ("sender", "turn_id", "body"))
    found: dict[TurnKey, dict[str, Any]] = {}
    for row in rows:
        with suppress(ValueError, RecursionError):
            found[row["sender"], row["turn_id"]] = read_feedback(json.loads(row["body"]))
    return found


def unreadable(store: RecordStore) -> int:
    """Number of stored records that `turns` and `feedback` skip."""
    count = store.unreadable_rows()
    for row in store.rows(RecordFilter(), ("kind", "body")):
        try:
            (last_exchange if row["kind"] == "turn" else read_feedback)(json.loads(row["body"]))
        except (ValueError, RecursionError):
            count += 1
    return count


def _matches(feedback: dict[str, Any] | None, rating: Rating) -> bool:
    if feedback is None:
        return False
    return {
        "up": feedback.get("rating") == 1,
        "down": feedback.get("rating") == -1,
        "edited": feedback.get("edited") is not None,
        "commented": bool(feedback.get("comment")),
    }[rating]
