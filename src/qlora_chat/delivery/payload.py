"""Payloads for a receiver: version 1, with exactly the fields of the original demo, and version 2, which adds to them.

Scope: records to JSON objects. Knows nothing of sending.
"""

from __future__ import annotations

from typing import Any

from qlora_chat.history import Feedback, TurnRecord, now
from qlora_chat.history.answer_metadata import answer_metadata, generate_kwargs
from qlora_chat.history.pinned_turns import visible_tags

TIMESTAMP = "%Y-%m-%dT%H:%M:%S"
"""Local time in seconds without a zone, as in the original; version 2 adds finished_at."""

EMPTY_V1: dict[str, Any] = {"history": [], "messages": "", "generate_kwargs": {}}


def payload_v1(turn: TurnRecord) -> dict[str, Any]:
    """conversation_id, timestamp, history, messages (the prompt's text), generate_kwargs (at the first token)."""
    return {
        "conversation_id": turn.conversation.id,
        "timestamp": turn.finished_at.strftime(TIMESTAMP),
        "history": turn.conversation.pairs(),
        "messages": turn.prompt_text,
        "generate_kwargs": generate_kwargs(turn.sampling),
    }


def payload_v2(turn: TurnRecord, record_id: str) -> dict[str, Any]:
    """Fields of version 1, and all that it takes to replay the answer."""
    return {
        **payload_v1(turn),
        "version": 2,
        "id": record_id,
        "kind": "turn",
        "turn_id": turn.answer.id,
        "parent_id": turn.parent_id,
        "user_turn_id": turn.question.id,
        "finished_at": turn.finished_at.isoformat(),
        "prompt_ids": list(turn.prompt_ids),
        "answer": turn.answer.content,
        "tags": list(visible_tags(turn.conversation.tags)),
        **answer_metadata(turn),
    }


def feedback_v2(conversation_id: str, feedback: Feedback, record_id: str) -> dict[str, Any]:
    """A user's feedback on an answer."""
    return {
        **_heading(conversation_id, record_id, "feedback"),
        "turn_id": feedback.turn_id,
        "feedback": {"rating": feedback.rating, "edited": feedback.edited, "comment": feedback.comment},
    }


def tombstone_v2(conversation_id: str, record_id: str) -> dict[str, Any]:
    """Request to erase all records of a conversation."""
    return _heading(conversation_id, record_id, "tombstone")


def _heading(conversation_id: str, record_id: str, kind: str) -> dict[str, Any]:
    moment = now()
    return {
        "conversation_id": conversation_id,
        "timestamp": moment.strftime(TIMESTAMP),
        "version": 2,
        "id": record_id,
        "kind": kind,
        "finished_at": moment.isoformat(),
    }
