"""Conversations as plain JSON, for the jsonl store, exports and imports.

Scope: values to dicts and back. Times are ISO 8601 with their zone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast, get_args

from qlora_chat.history import ComparedAnswer, Feedback, StoredConversation, StoredTurn, Summary, Verdict, Vote
from qlora_chat.messages import FinishReason, Message

FINISH_REASONS = get_args(FinishReason)
MAX_TOKEN_ID = 1 << 31
YEARS = range(2, 9999)
"""Years that every time zone can express."""


def conversation_to_json(conversation: StoredConversation) -> dict[str, Any]:
    """A whole conversation with every branch."""
    return {
        **heading_to_json(conversation),
        "head_id": conversation.head_id,
        "updated_at": conversation.summary.updated_at.isoformat(),
        "turns": [turn_to_json(turn) for turn in conversation.turns],
        "feedback": [feedback_to_json(each) for each in conversation.feedback],
        **({"votes": [vote_to_json(each) for each in conversation.votes]} if conversation.votes else {}),
    }


def heading_to_json(conversation: StoredConversation) -> dict[str, Any]:
    """Metadata of a conversation, without turns and feedback."""
    summary = conversation.summary
    return {
        "id": summary.id,
        "title": summary.title,
        "tags": list(summary.tags),
        "model": summary.model,
        "adapter": summary.adapter,
        "system": conversation.system,
        "settings": dict(conversation.settings),
        "created_at": summary.created_at.isoformat(),
    }


def turn_to_json(turn: StoredTurn) -> dict[str, Any]:
    """A turn with the id of its parent."""
    return {
        "id": turn.message.id,
        "parent_id": turn.parent_id,
        "role": turn.message.role,
        "content": turn.message.content,
        "token_ids": list(turn.message.ids),
        "finish_reason": turn.message.finish_reason,
        "details": dict(turn.details),
        "created_at": turn.created_at.isoformat(),
    }


def feedback_to_json(feedback: Feedback) -> dict[str, Any]:
    """A user's feedback on an answer."""
    return {**asdict(feedback), "created_at": feedback.created_at.isoformat()}


def vote_to_json(vote: Vote) -> dict[str, Any]:
    """A vote on answers of a comparison, which are in the order shown."""
    return {**asdict(vote), "created_at": vote.created_at.isoformat()}


def conversation_from_json(data: Mapping[str, Any]) -> StoredConversation:
    """A whole conversation. ValueError says what is missing or wrong."""
    turns = [turn_from_json(each) for each in _list(data, "turns")]
    feedback = [feedback_from_json(each) for each in _list(data, "feedback", optional=True)]
    return assembled(data, turns, feedback, [vote_from_json(each) for each in _list(data, "votes", optional=True)])


def assembled(
    heading: Mapping[str, Any], turns: Sequence[StoredTurn], feedback: Sequence[Feedback], votes: Sequence[Vote]
) -> StoredConversation:
    """Conversation from heading_to_json's fields, head_id and updated_at, and its turns, each after its parent.

    ValueError says what is missing or wrong. Feedback and votes on unknown turns are left out.
    """
    known: set[str | None] = {None}
    for turn in turns:
        if turn.parent_id not in known:
            raise ValueError(f"turn {turn.message.id!r} follows {turn.parent_id!r}, which does not come before it")
        if turn.message.id in known:
            raise ValueError(f"turn {turn.message.id!r} comes twice")
        known.add(turn.message.id)
    head = _text_or_none(heading, "head_id")
    if head not in known:
        raise ValueError(f"head_id is {head!r}, which is no turn of the conversation")
    summary, system = _summary_from_json(heading, len(turns)), _text_or_none(heading, "system")
    on_turns = tuple(each for each in feedback if each.turn_id in known)
    voted = tuple(each for each in votes if each.turn_ids <= known)
    conversation = StoredConversation(summary, system, _object(heading, "settings"), head, tuple(turns), on_turns, voted)
    conversation.conversation()  # ValueError if turns do not alternate
    return conversation


def _summary_from_json(data: Mapping[str, Any], turns: int) -> Summary:
    tags = data.get("tags") or ()
    if not isinstance(tags, list | tuple) or not all(isinstance(each, str) for each in tags):
        raise ValueError("tags is not a list of texts")
    created = _time(data, "created_at")
    updated = _time(data, "updated_at") if data.get("updated_at") else created
    name, title = _text(data, "id"), _text_or_none(data, "title") or ""
    model, adapter = _text_or_none(data, "model"), _text_or_none(data, "adapter")
    return Summary(name, title, tuple(tags), model, adapter, turns, created, updated)


def turn_from_json(data: Mapping[str, Any]) -> StoredTurn:
    """A turn with the id of its parent. ValueError says what is missing or wrong."""
    if not isinstance(data, Mapping):
        raise ValueError(f"a turn is {type(data).__name__}, but must be an object")
    role, reason = data.get("role"), data.get("finish_reason")
    if role not in ("user", "assistant"):
        raise ValueError(f"role is {role!r}, but must be user or assistant")
    if reason is not None and reason not in FINISH_REASONS:
        raise ValueError(f"finish_reason is {reason!r}, but must be one of {', '.join(FINISH_REASONS)}")
    ids = data.get("token_ids") or ()
    if not isinstance(ids, list | tuple) or not all(type(each) is int and 0 <= each < MAX_TOKEN_ID for each in ids):
        raise ValueError(f"token_ids is not a list of whole numbers from 0 to {MAX_TOKEN_ID - 1:,}")
    message = Message(role, _text(data, "content"), tuple(ids), reason, _text(data, "id"))
    return StoredTurn(message, _text_or_none(data, "parent_id"), _time(data, "created_at"), _object(data, "details"))


def feedback_from_json(data: Mapping[str, Any]) -> Feedback:
    """A user's feedback on an answer. ValueError says what is missing or wrong."""
    if not isinstance(data, Mapping):
        raise ValueError("feedback is not a list of objects")
    moment, rating = _time(data, "created_at"), data.get("rating")
    if rating is not None and type(rating) is not int:
        raise ValueError(f"rating is {type(rating).__name__}, but must be 1, -1 or null")
    return Feedback(_text(data, "turn_id"), rating, _text_or_none(data, "edited"), _text_or_none(data, "comment"), moment)


def vote_from_json(data: Mapping[str, Any]) -> Vote:
    """A vote on answers of a comparison. ValueError says what is missing or wrong."""
    if not isinstance(data, Mapping):
        raise ValueError("votes is not a list of objects")
    answers, verdict = compared_from_json(data.get("answers")), cast(Verdict, _text(data, "verdict"))
    return Vote(answers, verdict, _text_or_none(data, "chosen"), data.get("blind") is True, _time(data, "created_at"))


def compared_from_json(answers: Any) -> tuple[ComparedAnswer, ...]:
    """The answers of a vote. ValueError says what is missing or wrong."""
    if not isinstance(answers, list) or not all(isinstance(each, Mapping) for each in answers):
        raise ValueError("the answers of a vote are not a list of objects")
    return tuple(ComparedAnswer(_text(each, "turn_id"), _text(each, "name")) for each in answers)


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {'missing' if value is None else f'{type(value).__name__}, but must be text'}")
    return value


def _text_or_none(data: Mapping[str, Any], name: str) -> str | None:
    return None if data.get(name) is None else _text(data, name)


def _list(data: Mapping[str, Any], name: str, *, optional: bool = False) -> list[Any]:
    value = data.get(name)
    if value is None and optional:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def _object(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _time(data: Mapping[str, Any], name: str) -> datetime:
    value = _text(data, name)
    try:
        moment = datetime.fromisoformat(value)
        if moment.year not in YEARS:
            raise OverflowError
        return moment.astimezone()
    except (ValueError, OverflowError):
        raise ValueError(f"{name} is {value[:40]!r}, but must be a time like 2026-11-24T10:00:00+01:00") from None
