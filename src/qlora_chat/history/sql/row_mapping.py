"""Conversations, turns and feedback as rows, and rows as values; text columns are encrypted if the history is.

Scope: values. Knows no connection and no statement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from sqlalchemy import Table

from qlora_chat.history import ConversationInfo, Feedback, StoredConversation, StoredTurn, Summary, TurnRecord, Vote, now
from qlora_chat.history.answer_metadata import answer_metadata
from qlora_chat.history.json_codec import (
    compared_from_json,
    feedback_to_json,
    heading_to_json,
    turn_to_json,
    vote_to_json,
)
from qlora_chat.history.storage.encryption import Binding, Cipher
from qlora_chat.history.storage.schema import CONVERSATIONS, FEEDBACK, TURNS
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation, Message
from qlora_chat.text import replace_surrogates

Row: TypeAlias = Any
"""A row of one of the tables, its columns as attributes."""


@dataclass(frozen=True)
class EncryptedColumns:
    """The encrypted columns of a table, and those that their values are bound to."""

    table: Table
    columns: tuple[str, ...]
    conversation: str = "conversation_id"
    row: str | None = None

    def binding(self, column: str, conversation_id: str, row_id: str = "") -> Binding:
        """Binding of a value in a row with these ids."""
        return Binding(self.table.name, column, conversation_id, row_id)

    def binding_in(self, row: Row, column: str) -> Binding:
        """Binding of a value in that row."""
        row_id = getattr(row, self.row) if self.row else ""
        return self.binding(column, getattr(row, self.conversation), row_id)


HEADING_COLUMNS = EncryptedColumns(CONVERSATIONS, ("title", "tags", "system"), "id")
TURN_COLUMNS = EncryptedColumns(TURNS, ("content", "token_ids", "details"), row="id")
FEEDBACK_COLUMNS = EncryptedColumns(FEEDBACK, ("edited", "comment"), row="turn_id")


class RowMapper:
    """Mapping in both directions with one cipher."""

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    @property
    def encrypts(self) -> bool:
        """True if text columns are encrypted."""
        return self._cipher.encrypts

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
            "owner": owner, "title": self.title(summary.id, fields["title"]), "tags": self.tags(summary.id, fields["tags"]),
            "system": self.system(summary.id, conversation.system), "settings": json.dumps(fields["settings"]),
            "head_id": conversation.head_id, "turns": len(conversation.turns),
            "created_at": summary.created_at.timestamp(), "updated_at": summary.updated_at.timestamp(),
        }  # fmt: skip

    def new_turn(self, conversation_id: str, turn: StoredTurn) -> dict[str, Any]:
        """Row of a turn."""
        return turn_to_json(turn) | self._message_columns(conversation_id, turn.message, turn.details) | {
            "conversation_id": conversation_id, "indexed": 0, "created_at": turn.created_at.timestamp(),
        }  # fmt: skip

    def finished_answer(self, record: TurnRecord) -> dict[str, Any]:
        """Columns that change when an open answer ends."""
        return self._message_columns(record.conversation.id, record.answer, answer_metadata(record))

    def partial_answer(self, conversation_id: str, answer: Message) -> dict[str, Any]:
        """Columns that change while an answer is being written."""
        return {"content": self._encrypted(answer.content, TURN_COLUMNS.binding("content", conversation_id, answer.id))}

    def _message_columns(self, conversation_id: str, message: Message, details: Mapping[str, Any]) -> dict[str, Any]:
        texts = {
            "content": message.content,
            "token_ids": " ".join(map(str, message.ids)),
            "details": json.dumps(dict(details)),
        }
        encrypted = {
            name: self._encrypted(text, TURN_COLUMNS.binding(name, conversation_id, message.id)) for name, text in texts.items()
        }
        return encrypted | {"finish_reason": message.finish_reason}

    def new_feedback(self, conversation_id: str, feedback: Feedback) -> dict[str, Any]:
        """Row of a user's feedback."""
        texts = {"edited": feedback.edited, "comment": feedback.comment}
        return feedback_to_json(feedback) | {
            name: self._optional(text, FEEDBACK_COLUMNS.binding(name, conversation_id, feedback.turn_id))
            for name, text in texts.items()
        } | {"conversation_id": conversation_id, "created_at": feedback.created_at.timestamp()}  # fmt: skip

    @staticmethod
    def new_vote(conversation_id: str, vote: Vote) -> dict[str, Any]:
        """Row of a vote. It has ids and names of models, and nothing that a person or a model wrote: it is never encrypted."""
        row = vote_to_json(vote)
        return row | {
            "conversation_id": conversation_id, "answers": json.dumps(row["answers"]), "blind": int(vote.blind),
            "created_at": vote.created_at.timestamp(),
        }  # fmt: skip

    def title(self, conversation_id: str, title: str) -> str:
        """Value of a conversation's title."""
        return self._encrypted(title, HEADING_COLUMNS.binding("title", conversation_id))

    def tags(self, conversation_id: str, tags: Sequence[str]) -> str:
        """Value of a conversation's tags, a JSON list."""
        return self._encrypted(json.dumps(list(tags)), HEADING_COLUMNS.binding("tags", conversation_id))

    def system(self, conversation_id: str, text: str | None) -> str | None:
        """Value of a conversation's system text."""
        return self._optional(text, HEADING_COLUMNS.binding("system", conversation_id))

    def _encrypted(self, text: str, binding: Binding) -> str:
        """Text that every database accepts: without lone surrogates, and with a symbol for NUL, which PostgreSQL rejects."""
        return self._cipher.encrypt_text(replace_surrogates(text).replace("\0", "\u2400"), binding)

    def _optional(self, text: str | None, binding: Binding) -> str | None:
        return None if text is None else self._encrypted(text, binding)

    # --- from rows -------------------------------------------------------------------------------------------------

    def conversation(self, row: Row, turns: Sequence[Row], feedback: Sequence[Row], votes: Sequence[Row]) -> StoredConversation:
        """A whole conversation. ValueError for unreadable columns; HistoryError for altered encrypted ones."""
        summary = self.summary(row.id, row.title, row.tags, row.model, row.adapter, row.turns, row.created_at, row.updated_at)
        return StoredConversation(
            summary,
            self._decrypted(row, HEADING_COLUMNS, "system"),
            json.loads(row.settings),
            row.head_id,
            tuple(map(self.turn, turns)),
            tuple(map(self.feedback, feedback)),
            tuple(map(self.vote, votes)),
        )

    def summary(self, name: Any, title: str, tags: str, *rest: Any) -> Summary:
        """Entry of a list, from columns by position: access by name would double the time of listing 10,000 of them."""
        model, adapter, turns, created_at, updated_at = rest
        if self._cipher.encrypts:
            title = self._cipher.decrypt_text(title, HEADING_COLUMNS.binding("title", name))
            tags = self._cipher.decrypt_text(tags, HEADING_COLUMNS.binding("tags", name))
        parsed_tags = tuple(json.loads(tags)) if tags != "[]" else ()
        return Summary(name, title, parsed_tags, model, adapter, turns, _utc(created_at), _utc(updated_at))

    def turn(self, row: Row) -> StoredTurn:
        """A turn with the id of its parent."""
        content, token_ids, details = (self._decrypted(row, TURN_COLUMNS, name) or "" for name in TURN_COLUMNS.columns)
        message = Message(row.role, content, tuple(map(int, token_ids.split())), row.finish_reason, row.id)
        return StoredTurn(message, row.parent_id, _utc(row.created_at), json.loads(details))

    def feedback(self, row: Row) -> Feedback:
        """A user's feedback."""
        edited, comment = (self._decrypted(row, FEEDBACK_COLUMNS, name) for name in FEEDBACK_COLUMNS.columns)
        return Feedback(row.turn_id, row.rating, edited, comment, _utc(row.created_at))

    @staticmethod
    def vote(row: Row) -> Vote:
        """A vote on compared answers. ValueError for an unreadable row."""
        answers = compared_from_json(json.loads(row.answers))
        return Vote(answers, row.verdict, row.chosen, bool(row.blind), _utc(row.created_at))

    def _decrypted(self, row: Row, encrypted: EncryptedColumns, column: str) -> str | None:
        value = getattr(row, column)
        if value is None or not self._cipher.encrypts:
            return value
        return self._cipher.decrypt_text(value, encrypted.binding_in(row, column))


def _utc(seconds: float) -> datetime:
    """Time in UTC; the page converts to the local zone, which takes longer than reading the row."""
    return datetime.fromtimestamp(seconds, UTC)
