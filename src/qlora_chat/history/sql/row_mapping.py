"""Conversations, turns and feedback as rows of the tables, and back; what people said sealed where the history is.

Scope: values. Knows no connection and no order of writing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from qlora_chat.history import ConversationInfo, Feedback, StoredConversation, StoredTurn, Summary, TurnRecord
from qlora_chat.history.answer_metadata import answer_metadata
from qlora_chat.history.storage.encryption import Cipher, decrypt_text, encrypt_text
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation, Message

Row: TypeAlias = Any
"""A row of one of the tables, its columns as attributes."""


class Rows:
    """Both ways, under one seal."""

    def __init__(self, seal: Cipher) -> None:
        self._seal = seal

    # --- to rows ---------------------------------------------------------------------------------------------------

    def new_conversation(self, conversation: Conversation, about: ConversationInfo) -> dict[str, Any]:
        """One that begins now, without its turns."""
        moment = time.time()
        return {
            "id": conversation.id, "owner": about.owner, "title": self.closed(title_of(conversation)),
            "tags": self.closed("[]"), "model": about.model, "adapter": about.adapter, "system": None,
            "settings": json.dumps(dict(about.settings)), "head_id": None, "turns": 0, "created_at": moment,
            "updated_at": moment,
        }  # fmt: skip

    def restored(self, kept: StoredConversation) -> dict[str, Any]:
        """One that was kept before, without its turns."""
        summary = kept.summary
        return {
            "id": summary.id, "owner": None, "title": self.closed(summary.title),
            "tags": self.tags(summary.tags), "model": summary.model, "adapter": summary.adapter,
            "system": self.closed_or_none(kept.system), "settings": json.dumps(dict(kept.settings)),
            "head_id": kept.head_id, "turns": len(kept.turns), "created_at": summary.created_at.timestamp(),
            "updated_at": summary.updated_at.timestamp(),
        }  # fmt: skip

    def turn_values(self, conversation_id: str, turn: StoredTurn) -> dict[str, Any]:
        """A turn that is added."""
        message = turn.message
        return {
            "id": message.id, "conversation_id": conversation_id, "parent_id": turn.parent_id, "role": message.role,
            "content": self.closed(message.content), "token_ids": self.closed(" ".join(map(str, message.ids))),
            "finish_reason": message.finish_reason, "details": self.closed(json.dumps(dict(turn.details))),
            "indexed": 0, "created_at": turn.created_at.timestamp(),
        }  # fmt: skip

    def answer_values(self, record: TurnRecord) -> dict[str, Any]:
        """What an open answer becomes when it ends."""
        answer = record.answer
        return {
            "content": self.closed(answer.content), "token_ids": self.closed(" ".join(map(str, answer.ids))),
            "finish_reason": answer.finish_reason, "details": self.closed(json.dumps(answer_metadata(record))),
        }  # fmt: skip

    def feedback_values(self, conversation_id: str, said: Feedback) -> dict[str, Any]:
        """What a person thought of an answer."""
        return {
            "conversation_id": conversation_id, "turn_id": said.turn_id, "rating": said.rating,
            "edited": self.closed_or_none(said.edited), "comment": self.closed_or_none(said.comment),
            "created_at": said.created_at.timestamp(),
        }  # fmt: skip

    def tags(self, tags: Sequence[str]) -> str:
        """As a JSON list."""
        return self.closed(json.dumps(list(tags)))

    def closed(self, text: str) -> str:
        """Text as it is written."""
        return encrypt_text(self._seal, storable(text))

    def closed_or_none(self, text: str | None) -> str | None:
        """The same, for a column that may be empty."""
        return None if text is None else self.closed(text)

    # --- from rows -------------------------------------------------------------------------------------------------

    def kept(self, conversation: Row, turns: Sequence[Row], feedback: Sequence[Row]) -> StoredConversation:
        """A whole conversation."""
        row, settings = conversation, json.loads(conversation.settings)
        summary = self.line(row.id, row.title, row.tags, row.model, row.adapter, row.turns, row.created_at, row.updated_at)
        said = tuple(self.feedback(each) for each in feedback)
        return StoredConversation(
            summary, self._opened(row.system), settings, row.head_id, tuple(self.turn(each) for each in turns), said
        )

    def line(self, name: Any, title: str, tags: str, *rest: Any) -> Summary:
        """By position: ten thousand of these are listed at once, and names cost more than the row."""
        model, adapter, turns, created, updated = rest
        if self._seal.sealed:
            title, tags = decrypt_text(self._seal, title), decrypt_text(self._seal, tags)
        told = tuple(json.loads(tags)) if tags != "[]" else ()
        return Summary(name, title, told, model, adapter, turns, _moment(created), _moment(updated))

    def turn(self, row: Row) -> StoredTurn:
        """A turn and its place."""
        ids = tuple(map(int, decrypt_text(self._seal, row.token_ids).split()))
        message = Message(row.role, decrypt_text(self._seal, row.content), ids, row.finish_reason, row.id)
        details: Mapping[str, Any] = json.loads(decrypt_text(self._seal, row.details))
        return StoredTurn(message, row.parent_id, _moment(row.created_at), details)

    def feedback(self, row: Row) -> Feedback:
        """What a person thought of an answer."""
        return Feedback(row.turn_id, row.rating, self._opened(row.edited), self._opened(row.comment), _moment(row.created_at))

    def _opened(self, text: str | None) -> str | None:
        return None if text is None else decrypt_text(self._seal, text)


def storable(text: str) -> str:
    """Text that every database takes: lone surrogates as "?", and NUL, which PostgreSQL refuses, as its picture."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\u2400")


def _moment(seconds: float) -> datetime:
    """In UTC: the local zone is looked up where a time is shown, since that takes longer than reading the row."""
    return datetime.fromtimestamp(seconds, UTC)
