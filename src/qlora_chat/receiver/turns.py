"""Received turns with their newest feedback, by text and by rating.

Scope: reading a store. Knows no output format but the record's own JSON.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Literal

from qlora_chat.receiver.store import RecordFilter, RecordStore

Rating = Literal["up", "down", "edited", "commented"]


@dataclass(frozen=True)
class LoggedTurn:
    """A turn in a receiver's store."""

    row: dict[str, Any]
    """Columns of the store."""
    data: dict[str, Any]
    """The record as it was sent."""
    feedback: dict[str, Any] | None
    """Newest rating (1, -1 or None), edited and comment; None without feedback."""

    @property
    def question(self) -> str:
        """The last user message."""
        return self.data["history"][-1][0]

    @property
    def answer(self) -> str:
        """Its answer, as it was shown."""
        return self.data["history"][-1][1]

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
    """Turns in order of time; with `text`, only those whose question or answer contains it, in any case."""
    feedback_by_turn = feedback(store, where.conversation_id)
    needle = text.casefold() if text else ""
    for row in store.rows(replace(where, kind="turn"), newest_first=newest_first):
        turn = LoggedTurn(row, json.loads(row.pop("body")), feedback_by_turn.get(row["turn_id"]))
        if needle and needle not in turn.question.casefold() and needle not in turn.answer.casefold():
            continue
        if rating is None or _matches(turn.feedback, rating):
            yield turn


def feedback(store: RecordStore, conversation_id: str | None = None) -> dict[str, dict[str, Any]]:
    """The newest feedback to each turn, by turn id."""
    rows = store.rows(RecordFilter(kind="feedback", conversation_id=conversation_id), ("turn_id", "body"))
    return {row["turn_id"]: json.loads(row["body"])["feedback"] for row in rows}


def _matches(feedback: dict[str, Any] | None, rating: Rating) -> bool:
    if feedback is None:
        return False
    return {
        "up": feedback.get("rating") == 1,
        "down": feedback.get("rating") == -1,
        "edited": feedback.get("edited") is not None,
        "commented": bool(feedback.get("comment")),
    }[rating]
