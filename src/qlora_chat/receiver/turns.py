"""Turns as people ask for them: with their words, and with the newest feedback beside them.

Scope: reading a store. Knows no format of output but the record's own JSON.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

from qlora_chat.receiver.store import RecordStore, TurnFilter

Rating = Literal["up", "down", "edited", "commented"]


@dataclass(frozen=True)
class LoggedTurn:
    """A turn that was received."""

    row: dict[str, Any]
    """Columns of the store."""
    data: dict[str, Any]
    """The record as it was sent."""
    feedback: dict[str, Any] | None
    """rating (1, -1 or None), edited and comment, as they were last given; None where nobody said anything."""

    @property
    def question(self) -> str:
        """What was asked."""
        return self.data["history"][-1][0]

    @property
    def answer(self) -> str:
        """What was answered, as it was shown."""
        return self.data["history"][-1][1]

    def record(self) -> dict[str, Any]:
        """The record as it was sent, with its feedback."""
        return {**self.data, "feedback": self.feedback} if self.feedback else self.data


def turns(
    store: RecordStore, wanted: TurnFilter, *, text: str | None = None, rating: Rating | None = None, newest_first: bool = False
) -> Generator[LoggedTurn]:
    """Turns in order of time; `text` keeps those whose question or answer holds it, in any case."""
    said = feedback(store, wanted.conversation_id)
    needle = text.casefold() if text else ""
    for row in store.find(TurnFilter(**{**vars(wanted), "kind": "turn"}), newest_first=newest_first):
        turn = LoggedTurn(row, json.loads(row.pop("body")), said.get(row["turn_id"]))
        if needle and needle not in turn.question.casefold() and needle not in turn.answer.casefold():
            continue
        if rating is None or _has(turn.feedback, rating):
            yield turn


def feedback(store: RecordStore, conversation_id: str | None = None) -> dict[str, dict[str, Any]]:
    """The newest feedback to each turn, by turn id."""
    wanted = TurnFilter(kind="feedback", conversation_id=conversation_id)
    rows = store.columns(("turn_id", "body"), wanted)
    return {row["turn_id"]: json.loads(row["body"])["feedback"] for row in rows}


def _has(feedback: dict[str, Any] | None, rating: Rating) -> bool:
    if feedback is None:
        return False
    return {
        "up": feedback.get("rating") == 1,
        "down": feedback.get("rating") == -1,
        "edited": feedback.get("edited") is not None,
        "commented": bool(feedback.get("comment")),
    }[rating]
