"""Conversations, turns and feedback as rows, and rows as values; text columns are encrypted if the history is.

Scope: values. Knows no connection and no statement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from qlora_chat.history import ConversationInfo, Feedback, StoredConversation, StoredTurn, Summary, TurnRecord, now
from qlora_chat.history.answer_metadata import answer_metadata
from qlora_chat.history.json_codec import feedback_to_json, heading_to_json, turn_to_json
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation, Message
from qlora_chat.text import replace_surrogates

Row: TypeAlias = Any
"""A row of one of the tables, its columns as attributes."""


class RowMapper:
    """Mapping in both directions with one cipher."""

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    # --- to rows ---------------------------------------------------------------------------------------------------

    def new_conversation(self, conversation: Conversation, info: ConversationInfo) -> dict[str, Any]:
        """Row of a conversation that begins now; its turns are added later."""
        moment = now()
        summary = Summary(conversation.id, title_of(conversation), (), info.model, info.adapter, 0, moment, moment)
        return self.restored_conversation(StoredConversation(summary, None, info.settings, None, ()), info.owner)

    def restored_conversation(self, conversation: StoredConversation, owner: str | None = None) -> dict[str, Any]:
        """Row of an existing conversation."""
        fields, summary = heading_to_json(conversation), conversation.summary
        return fields | {
            "owner": owner, "title": self.text_column(fields["title"]), "tags": self.tags_column(fields["tags"]),
            "system": self.optional_column(conversation.system), "settings": json.dumps(fields["settings"]),
            "head_id": conversation.head_id, "turns": len(conversation.turns),
            "created_at": summary.created_at.timestamp(), "updated_at": summary.updated_at.timestamp(),
        }  # fmt: skip

    def new_turn(self, conversation_id: str, turn: StoredTurn) -> dict[str, Any]:
        """Row of a turn."""
        return turn_to_json(turn) | self._message_columns(turn.message, turn.details) | {
            "conversation_id": conversation_id, "indexed": 0, "created_at": turn.created_at.timestamp(),
        }  # fmt: skip

    def finished_answer(self, record: TurnRecord) -> dict[str, Any]:
        """Columns that change when an open answer ends."""
        return self._message_columns(record.answer, answer_metadata(record))

    def _message_columns(self, message: Message, details: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "content": self.text_column(message.content), "token_ids": self.text_column(" ".join(map(str, message.ids))),
            "finish_reason": message.finish_reason, "details": self.text_column(json.dumps(dict(details))),
        }  # fmt: skip

    def new_feedback(self, conversation_id: str, feedback: Feedback) -> dict[str, Any]:
        """Row of a user's feedback."""
        return feedback_to_json(feedback) | {
            "conversation_id": conversation_id, "edited": self.optional_column(feedback.edited),
            "comment": self.optional_column(feedback.comment), "created_at": feedback.created_at.timestamp(),
        }  # fmt: skip

    def tags_column(self, tags: Sequence[str]) -> str:
        """Tags as a JSON list."""
        return self.text_column(json.dumps(list(tags)))

    def text_column(self, text: str) -> str:
        """Text that every database accepts: without lone surrogates, and with a symbol for NUL, which PostgreSQL rejects."""
        return self._cipher.encrypt_text(replace_surrogates(text).replace("\0", "\u2400"))

    def optional_column(self, text: str | None) -> str | None:
        """Text of a nullable column."""
        return None if text is None else self.text_column(text)

    # --- from rows -------------------------------------------------------------------------------------------------

    def conversation(self, row: Row, turns: Sequence[Row], feedback: Sequence[Row]) -> StoredConversation:
        """A whole conversation. ValueError for unreadable columns; HistoryError for altered encrypted ones."""
        summary = self.summary(row.id, row.title, row.tags, row.model, row.adapter, row.turns, row.created_at, row.updated_at)
        return StoredConversation(
            summary,
            self._decrypted(row.system),
            json.loads(row.settings),
            row.head_id,
            tuple(map(self.turn, turns)),
            tuple(map(self.feedback, feedback)),
        )

    def summary(self, name: Any, title: str, tags: str, *rest: Any) -> Summary:
        """Entry of a list, from columns by position: access by name would double the time of listing 10,000 of them."""
        model, adapter, turns, created_at, updated_at = rest
        if self._cipher.encrypts:
            title, tags = self._cipher.decrypt_text(title), self._cipher.decrypt_text(tags)
        parsed_tags = tuple(json.loads(tags)) if tags != "[]" else ()
        return Summary(name, title, parsed_tags, model, adapter, turns, _utc(created_at), _utc(updated_at))

    def turn(self, row: Row) -> StoredTurn:
        """A turn with the id of its parent."""
        ids = tuple(map(int, self._cipher.decrypt_text(row.token_ids).split()))
        message = Message(row.role, self._cipher.decrypt_text(row.content), ids, row.finish_reason, row.id)
        return StoredTurn(message, row.parent_id, _utc(row.created_at), json.loads(self._cipher.decrypt_text(row.details)))

    def feedback(self, row: Row) -> Feedback:
        """A user's feedback."""
        edited, comment = self._decrypted(row.edited), self._decrypted(row.comment)
        return Feedback(row.turn_id, row.rating, edited, comment, _utc(row.created_at))

    def _decrypted(self, text: str | None) -> str | None:
        return None if text is None else self._cipher.decrypt_text(text)


def _utc(seconds: float) -> datetime:
    """Time in UTC; the page converts to the local zone, which takes longer than reading the row."""
    return datetime.fromtimestamp(seconds, UTC)
