"""Conversations in SQLite or PostgreSQL.

Scope: what is written and read in which transaction: a question and its open answer are one, so are a finished answer and its
record for the receiver. Values become rows in rows.py; durability is database.py's, what is to be delivered outbox.py's,
finding words search.py's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from qlora_chat.databases import NORMAL
from qlora_chat.history import (
    ConversationInfo,
    Feedback,
    OutboxRecord,
    SearchHit,
    StaleConversation,
    StoredConversation,
    StoredTurn,
    Summary,
    TurnRecord,
)
from qlora_chat.history.outbox.queue import Outbox
from qlora_chat.history.partial_answers import PartialAnswerWriter
from qlora_chat.history.sql.full_text import WordIndex
from qlora_chat.history.sql.row_mapping import Rows
from qlora_chat.history.storage.database import Database
from qlora_chat.history.storage.encryption import Cipher, PlainCipher
from qlora_chat.history.storage.schema import CONVERSATIONS, FEEDBACK, TURNS
from qlora_chat.messages import Conversation, Message

CHUNK = 500
"""Ids in one statement: SQLite takes 32,766 values, older ones 999."""


class SqlHistory:
    """A HistoryStore over a database; `outbox` is the queue that lives in the same one."""

    def __init__(self, database: Database, seal: Cipher | None = None, outbox: Outbox | None = None) -> None:
        self.database, self.seal = database, seal or PlainCipher()
        self.outbox = outbox or Outbox(database, self.seal)
        self._rows = Rows(self.seal)
        self._words = WordIndex(database.sqlite, self.seal)
        self._growing = PartialAnswerWriter(self._write_grown)
        with database.write() as connection:
            self._words.add_left_open(connection)

    def save(self, conversation: Conversation, about: ConversationInfo | None = None) -> Conversation:
        """Add what is new and move the head, in one transaction; StaleConversation where it moved elsewhere."""
        with self.database.write() as connection:
            head = self._append(connection, conversation, about or ConversationInfo())
            if head is _STALE:
                raise StaleConversation
        return replace(conversation, head=conversation.messages[-1].id if conversation.messages else None)

    def grow(self, conversation_id: str, answer: Message) -> None:
        """Note how far an open answer has got."""
        self._growing.note(answer)

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Close the open answer and queue its record, both or neither."""
        answer = record.answer
        self._growing.forget(answer.id)
        try:
            with self.database.write() as connection:
                if not self._close_answer(connection, record):
                    return
                if outgoing:
                    self.outbox.add(connection, outgoing)
        except Exception:
            if outgoing:
                self.outbox.dropped()
            raise
        if outgoing:
            self.outbox.added.set()

    def load(self, conversation_id: str) -> Conversation | None:
        """The branch that is shown, or None."""
        kept = self.read(conversation_id)
        return kept.conversation() if kept else None

    def read(self, conversation_id: str) -> StoredConversation | None:
        """Everything kept of a conversation, or None."""
        with self.database.read() as connection:
            row = connection.execute(select(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation_id)).first()
            if row is None:
                return None
            turns = connection.execute(
                select(TURNS).where(TURNS.c.conversation_id == conversation_id).order_by(TURNS.c.seq)
            ).all()
            said = connection.execute(
                select(FEEDBACK).where(FEEDBACK.c.conversation_id == conversation_id).order_by(FEEDBACK.c.seq)
            ).all()
        return self._rows.kept(row, turns, said)

    def restore(self, kept: StoredConversation) -> bool:
        """Add a whole conversation, as `read` gave it; False where its id is kept already."""
        with self.database.write() as connection:
            if self._head(connection, kept.summary.id) is not _ABSENT:
                return False
            connection.execute(insert(CONVERSATIONS).values(self._rows.restored(kept)))
            self._insert_turns(connection, kept.summary.id, kept.turns)
            for said in kept.feedback:
                connection.execute(insert(FEEDBACK).values(self._rows.feedback_values(kept.summary.id, said)))
        return True

    def list(self, *, limit: int | None = None, owner: str | None = None) -> Sequence[Summary]:
        """Conversations with a turn, the newest change first."""
        table = CONVERSATIONS.c
        rows = select(
            table.id, table.title, table.tags, table.model, table.adapter, table.turns, table.created_at, table.updated_at
        )
        rows = rows.where(table.turns > 0).order_by(table.updated_at.desc())
        if owner is not None:
            rows = rows.where(table.owner == owner)
        with self.database.read() as connection:
            found = connection.execute(rows.limit(limit)).all()
        return [self._rows.line(*each) for each in found]

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """Turns that hold every word, the newest first."""
        with self.database.read() as connection:
            return self._words.find(connection, text, limit, owner)

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Rename or tag."""
        values: dict[str, Any] = {}
        if title is not None:
            values["title"] = self._rows.closed(title)
        if tags is not None:
            values["tags"] = self._rows.tags(list(tags))
        changed = update(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation_id)
        with self.database.write() as connection:
            if not values:
                return self._head(connection, conversation_id) is not _ABSENT
            return connection.execute(changed.values(values)).rowcount > 0

    def feedback(
        self,
        conversation_id: str,
        turn_id: str,
        rating: int | None = None,
        edited: str | None = None,
        comment: str | None = None,
        *,
        outgoing: OutboxRecord | None = None,
    ) -> bool:
        """Keep what a person thought of an answer; False for a turn that is not kept."""
        said = Feedback(turn_id, rating, edited, comment)
        turn = select(TURNS.c.seq).where(TURNS.c.id == turn_id, TURNS.c.conversation_id == conversation_id)
        try:
            with self.database.write() as connection:
                if connection.execute(turn).first() is None:
                    return False
                connection.execute(insert(FEEDBACK).values(self._rows.feedback_values(conversation_id, said)))
                if outgoing:
                    self.outbox.add(connection, outgoing)
        except Exception:
            if outgoing:
                self.outbox.dropped()
            raise
        self.outbox.added.set()
        return True

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord] = ()) -> int:
        """Remove conversations from tables, index, queue and the database's log; -> how many there were."""
        erased = 0
        with self.database.write() as connection:
            for start in range(0, len(conversation_ids), CHUNK):
                ids = conversation_ids[start : start + CHUNK]
                self._words.remove(connection, ids)
                connection.execute(delete(FEEDBACK).where(FEEDBACK.c.conversation_id.in_(ids)))
                connection.execute(delete(TURNS).where(TURNS.c.conversation_id.in_(ids)))
                erased += connection.execute(delete(CONVERSATIONS).where(CONVERSATIONS.c.id.in_(ids))).rowcount
                self.outbox.forget(connection, ids)
            self._words.compact(connection)
            for tombstone in tombstones:
                self.outbox.add(connection, tombstone)
        self.database.leave_no_old_page()
        self.database.vacuum(("conversations", "turns", "feedback", "outbox", "outbox_bodies"))
        self.outbox.added.set()
        return erased

    def close(self) -> None:
        """Write what is pending and let go of the database."""
        self._growing.close()
        self.outbox.close()
        self.database.close()

    # --- writing ---------------------------------------------------------------------------------------------------

    def _append(self, connection: Connection, conversation: Conversation, about: ConversationInfo) -> str | None:
        """Add messages that are not there, move the head; -> the head before, or _STALE with nothing written."""
        head = self._head(connection, conversation.id, lock=True)
        if head is _ABSENT and conversation.head is not None:
            return _STALE  # it was erased
        if head is _ABSENT:
            connection.execute(insert(CONVERSATIONS).values(self._rows.new_conversation(conversation, about)))
            head = None
        elif head != conversation.head:
            return _STALE
        added = self._missing(connection, conversation)
        self._insert_turns(connection, conversation.id, added)
        newest = conversation.messages[-1].id if conversation.messages else None
        values = {
            "head_id": newest, "turns": CONVERSATIONS.c.turns + len(added), "updated_at": time.time(),
            "system": self._rows.closed_or_none(conversation.system),
        }  # fmt: skip
        if about.settings:
            values |= {"settings": json.dumps(dict(about.settings)), "model": about.model, "adapter": about.adapter}
        connection.execute(update(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation.id).values(values))
        return head

    def _close_answer(self, connection: Connection, record: TurnRecord) -> bool:
        """The open answer as it now is; False where it was erased meanwhile."""
        answer = record.answer
        row = connection.execute(select(TURNS.c.seq).where(TURNS.c.id == answer.id)).first()
        if row is None:
            known = record.conversation.head
            if known == answer.id or (known is not None and self._head(connection, record.conversation.id) is _ABSENT):
                return False
            # It could not be opened: the turn is added whole. Where the conversation has gone on elsewhere, as a branch.
            if self._append(connection, record.conversation, ConversationInfo()) is _STALE:
                self._insert_turns(connection, record.conversation.id, self._missing(connection, record.conversation))
            row = connection.execute(select(TURNS.c.seq).where(TURNS.c.id == answer.id)).one()
        self._words.remove_turn(connection, row.seq)
        connection.execute(update(TURNS).where(TURNS.c.seq == row.seq).values(self._rows.answer_values(record)))
        self._words.add(connection, row.seq, answer.content)
        changed = update(CONVERSATIONS).where(CONVERSATIONS.c.id == record.conversation.id)
        connection.execute(changed.values(updated_at=time.time()))
        return True

    def _write_grown(self, answers: Mapping[str, Message]) -> None:
        # A power cut may take the last quarter of a second of a half answer, so these writes do not wait for the disk.
        with self.database.write(synchronous=NORMAL) as connection:
            for answer in answers.values():
                open_still = (TURNS.c.id == answer.id, TURNS.c.finish_reason == "partial", TURNS.c.indexed == 0)
                connection.execute(update(TURNS).where(*open_still).values(content=self._rows.closed(answer.content)))

    def _head(self, connection: Connection, conversation_id: str, lock: bool = False) -> str | None:
        found = select(CONVERSATIONS.c.head_id).where(CONVERSATIONS.c.id == conversation_id)
        row = connection.execute(found.with_for_update() if lock and not self.database.sqlite else found).first()
        return row.head_id if row else _ABSENT

    def _missing(self, connection: Connection, conversation: Conversation) -> Sequence[StoredTurn]:
        """The messages at the end that are not kept yet, with the turn that each follows."""
        missing: list[StoredTurn] = []
        messages = conversation.messages
        for index in range(len(messages) - 1, -1, -1):
            if connection.execute(select(TURNS.c.seq).where(TURNS.c.id == messages[index].id)).first():
                break
            missing.append(StoredTurn(messages[index], messages[index - 1].id if index else None, datetime.now().astimezone()))
        return missing[::-1]

    def _insert_turns(self, connection: Connection, conversation_id: str, turns: Sequence[StoredTurn]) -> None:
        for turn in turns:
            added = insert(TURNS).values(self._rows.turn_values(conversation_id, turn)).returning(TURNS.c.seq)
            seq = connection.execute(added).scalar_one()
            if turn.message.finish_reason != "partial":
                self._words.add(connection, seq, turn.message.content)


_ABSENT = "\0absent"
_STALE = "\0stale"
