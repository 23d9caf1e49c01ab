"""Store of conversations in SQLite or PostgreSQL.

Scope: transactions. A question and its open answer are one, and so are a finished answer and its record for the receiver.
Rows are row_mapping.py's, durability is database.py's, the outbox queue.py's, search full_text.py's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Select, delete, insert, select, tuple_, update

from qlora_chat.databases import NORMAL
from qlora_chat.history import (
    ConversationInfo,
    Feedback,
    HistoryUnavailable,
    OutboxRecord,
    SearchHit,
    StaleConversation,
    StoredConversation,
    StoredTurn,
    Summary,
    TurnRecord,
    Vote,
    now,
)
from qlora_chat.history.outbox.queue import Outbox
from qlora_chat.history.partial_answers import PartialAnswerWriter
from qlora_chat.history.sql.full_text import WordIndex
from qlora_chat.history.sql.held_answers import HeldValues
from qlora_chat.history.sql.row_mapping import RowMapper
from qlora_chat.history.storage.database import Database
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.storage.schema import CONVERSATIONS, FEEDBACK, HIDDEN, NAMES, TURNS, VOTES
from qlora_chat.messages import Conversation, Message

IDS_PER_STATEMENT = 500
"""SQLite allows 32,766 parameters, older versions 999."""


class SqlHistory:
    """HistoryStore over a database, which also holds `outbox`."""

    def __init__(self, database: Database, cipher: Cipher, outbox: Outbox) -> None:
        self.database, self.outbox = database, outbox
        self._rows = RowMapper(cipher)
        self._words = WordIndex(database.sqlite, cipher)
        self._partials = PartialAnswerWriter(self._write_partials)
        self._held_answers = HeldValues[TurnRecord]("answers", self._finish)
        self._held_feedback = HeldValues[tuple[str, Feedback]]("pieces of feedback", self._add_held_feedback)
        with database.write() as connection:
            self._words.add_missing(connection)

    def save(self, conversation: Conversation, info: ConversationInfo | None = None) -> Conversation:
        """Add new messages and move the head, in one transaction; StaleConversation if the stored head is another."""
        with self.database.write() as connection:
            self._append(connection, conversation, info or ConversationInfo())
        return replace(conversation, head=conversation.messages[-1].id if conversation.messages else None)

    def update_partial(self, conversation_id: str, answer: Message) -> None:
        """Note the current text of an open answer."""
        self._partials.note(conversation_id, answer)

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Close the open answer and queue its record, both or neither.

        While a database server is away, both are held and written when it is back; HistoryUnavailable says so.
        """
        self._partials.discard(record.answer.id)
        try:
            self._finish(record, outgoing)
        except HistoryUnavailable as problem:
            if not self.database.sqlite and self._held_answers.hold(record, outgoing):
                raise HistoryUnavailable(f"{problem}; the answer is held and saved as soon as it can be") from None
            self._count_dropped(outgoing)
            raise

    def _finish(self, record: TurnRecord, outgoing: OutboxRecord | None) -> None:
        with self.database.write() as connection:
            if self._close_answer(connection, record) and outgoing:
                self.outbox.add(connection, outgoing)
        if outgoing:
            self.outbox.added.set()

    def load(self, conversation_id: str) -> Conversation | None:
        """Active branch, or None."""
        stored = self.read(conversation_id)
        return stored.conversation() if stored else None

    def read(self, conversation_id: str) -> StoredConversation | None:
        """Conversation with all branches and feedback, or None."""
        with self.database.read() as connection:
            row = connection.execute(select(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation_id)).first()
            if row is None:
                return None
            turns, feedback, votes = (
                connection.execute(select(table).where(table.c.conversation_id == conversation_id).order_by(table.c.seq)).all()
                for table in (TURNS, FEEDBACK, VOTES)
            )
        return self._rows.conversation(row, turns, feedback, votes)

    def find_named(self, name_key: str) -> str | None:
        """Id of the conversation with this key, or None."""
        with self.database.read() as connection:
            return connection.execute(select(NAMES.c.conversation_id).where(NAMES.c.name_key == name_key)).scalar()

    def restore(self, conversation: StoredConversation, owner: str | None = None) -> bool:
        """Add a whole conversation; False if its id or that of a turn exists."""
        name = conversation.summary.id
        with self.database.write() as connection:
            if self._exists(connection, name) or self._have_turn(connection, [each.message.id for each in conversation.turns]):
                return False
            connection.execute(insert(CONVERSATIONS).values(self._rows.restored_conversation(conversation, owner)))
            self._insert_turns(connection, name, conversation.turns)
            for each in conversation.feedback:
                connection.execute(insert(FEEDBACK).values(self._rows.new_feedback(name, each)))
            for each in conversation.votes:
                connection.execute(insert(VOTES).values(self._rows.new_vote(name, each)))
        return True

    def list(
        self, *, limit: int | None = None, owner: str | None = None, before: str | None = None, tag: str | None = None
    ) -> Sequence[Summary]:
        """Summaries of the conversations with a turn, the most recently changed first."""
        table = CONVERSATIONS.c
        query = _summaries(owner).where(table.turns > 0, table.id.not_in(select(HIDDEN.c.conversation_id)))
        if before is not None:
            last = select(table.updated_at, table.id).where(table.id == before)
            query = query.where(tuple_(table.updated_at, table.id) < last.scalar_subquery())
        if tag is not None and not self._rows.encrypts:
            query = query.where(table.tags.contains(json.dumps(tag), autoescape=True))
        query = query.order_by(table.updated_at.desc(), table.id.desc())
        with self.database.read() as connection:
            rows = connection.execute(query.limit(limit if tag is None else None)).all()
        summaries = (self._rows.summary(*row) for row in rows)
        return [*islice((each for each in summaries if tag is None or tag in each.tags), limit)]

    def summary(self, conversation_id: str, *, owner: str | None = None) -> Summary | None:
        """Entry of one conversation of that owner, or None."""
        with self.database.read() as connection:
            row = connection.execute(_summaries(owner).where(CONVERSATIONS.c.id == conversation_id)).first()
        return self._rows.summary(*row) if row else None

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """Turns that have every word, the newest first."""
        with self.database.read() as connection:
            return self._words.find(connection, text, limit, owner)

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Set title or tags."""
        values: dict[str, Any] = {} if title is None else {"title": self._rows.title(conversation_id, title)}
        if tags is not None:
            values["tags"] = self._rows.tags(conversation_id, list(tags))
        changed = update(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation_id)
        with self.database.write() as connection:
            if not values:
                return self._exists(connection, conversation_id)
            return connection.execute(changed.values(values)).rowcount > 0

    def hide(self, conversation_id: str, hidden: bool = True) -> bool:
        """Leave a conversation out of lists and searches, or show it again."""
        with self.database.write() as connection:
            if not self._exists(connection, conversation_id):
                return False
            connection.execute(delete(HIDDEN).where(HIDDEN.c.conversation_id == conversation_id))
            if hidden:
                connection.execute(insert(HIDDEN).values(conversation_id=conversation_id, since=time.time()))
        return True

    def hidden(self) -> Mapping[str, datetime]:
        """Time since when each hidden conversation has been hidden."""
        with self.database.read() as connection:
            rows = connection.execute(select(HIDDEN.c.conversation_id, HIDDEN.c.since)).all()
        return {name: datetime.fromtimestamp(since).astimezone() for name, since in rows}

    def add_feedback(self, conversation_id: str, feedback: Feedback, outgoing: OutboxRecord | None = None) -> bool:
        """Store feedback on an answer, and queue its record; False for an unknown turn.

        While a database server is away, both are held and written when it is back; HistoryUnavailable says so.
        """
        try:
            return self._add_feedback(conversation_id, feedback, outgoing)
        except HistoryUnavailable as problem:
            if not self.database.sqlite and self._held_feedback.hold((conversation_id, feedback), outgoing):
                raise HistoryUnavailable(f"{problem}; the feedback is held and saved as soon as it can be") from None
            self._count_dropped(outgoing)
            raise

    def _add_feedback(self, conversation_id: str, feedback: Feedback, outgoing: OutboxRecord | None) -> bool:
        turn = select(TURNS.c.seq).where(TURNS.c.id == feedback.turn_id, TURNS.c.conversation_id == conversation_id)
        with self.database.write() as connection:
            if connection.execute(turn).first() is None:
                return False
            connection.execute(insert(FEEDBACK).values(self._rows.new_feedback(conversation_id, feedback)))
            if outgoing:
                self.outbox.add(connection, outgoing)
        if outgoing:
            self.outbox.added.set()
        return True

    def _add_held_feedback(self, held: tuple[str, Feedback], outgoing: OutboxRecord | None) -> None:
        """Add feedback after the answers that are held, because it may be about one of them."""
        if self._held_answers.has_values:
            raise HistoryUnavailable("answers are written first")
        self._add_feedback(*held, outgoing)

    def add_vote(self, conversation_id: str, vote: Vote) -> bool:
        """Store a vote on answers; False if the conversation lacks one of them."""
        known = select(TURNS.c.id).where(TURNS.c.conversation_id == conversation_id, TURNS.c.id.in_(vote.turn_ids))
        with self.database.write() as connection:
            if len(connection.execute(known).all()) < len(vote.turn_ids):
                return False
            connection.execute(insert(VOTES).values(self._rows.new_vote(conversation_id, vote)))
        return True

    def votes(self, *, owner: str | None = None) -> Sequence[Vote]:
        """Votes of all conversations that are not hidden, in the order they were given."""
        query = select(VOTES).where(VOTES.c.conversation_id.not_in(select(HIDDEN.c.conversation_id)))
        if owner is not None:
            owned = select(CONVERSATIONS.c.id).where(CONVERSATIONS.c.owner == owner)
            query = query.where(VOTES.c.conversation_id.in_(owned))
        with self.database.read() as connection:
            return [*map(self._rows.vote, connection.execute(query.order_by(VOTES.c.created_at, VOTES.c.seq)).all())]

    def erase(
        self,
        conversation_ids: Sequence[str],
        tombstones: Sequence[OutboxRecord] = (),
        *,
        unchanged_since: datetime | None = None,
    ) -> int:
        """Delete conversations from tables, index, outbox and the database's log. Returns how many existed."""
        erased = 0
        with self.database.write() as connection:
            for start in range(0, len(conversation_ids), IDS_PER_STATEMENT):
                ids = conversation_ids[start : start + IDS_PER_STATEMENT]
                if unchanged_since is not None:
                    old = (CONVERSATIONS.c.id.in_(ids), CONVERSATIONS.c.updated_at < unchanged_since.timestamp())
                    ids = connection.execute(select(CONVERSATIONS.c.id).where(*old).with_for_update()).scalars().all()
                self._words.remove_conversations(connection, ids)
                for table in (HIDDEN, NAMES, VOTES, FEEDBACK, TURNS):
                    connection.execute(delete(table).where(table.c.conversation_id.in_(ids)))
                erased += connection.execute(delete(CONVERSATIONS).where(CONVERSATIONS.c.id.in_(ids))).rowcount
                self.outbox.delete_for(connection, ids)
            self._words.compact(connection)
            for tombstone in tombstones:
                self.outbox.add(connection, tombstone)
        self.database.purge_old_pages()
        self.database.vacuum(("names", "conversations", "turns", "feedback", "votes", "outbox", "outbox_bodies"))
        self.outbox.added.set()
        return erased

    def close(self) -> None:
        """Write pending changes and close the database."""
        self._partials.close()
        for outgoing in [*self._held_answers.close(), *self._held_feedback.close()]:
            self._count_dropped(outgoing)
        self.outbox.close()
        self.database.close()

    # --- writing ---------------------------------------------------------------------------------------------------

    def _count_dropped(self, outgoing: OutboxRecord | None) -> None:
        if outgoing:
            self.outbox.count_dropped()

    def _append(self, connection: Connection, conversation: Conversation, info: ConversationInfo) -> None:
        """Add the new messages and move the head; StaleConversation, with nothing written, if the stored head is another."""
        query = select(CONVERSATIONS.c.head_id).where(CONVERSATIONS.c.id == conversation.id)
        row = connection.execute(query if self.database.sqlite else query.with_for_update()).first()
        if (row.head_id if row else None) != conversation.head:
            raise StaleConversation  # another head, or an erased conversation
        if row is None:
            connection.execute(insert(CONVERSATIONS).values(self._rows.new_conversation(conversation, info)))
            self._add_name(connection, conversation.id, info.name_key)
        added = self._new_turns(connection, conversation)
        self._insert_turns(connection, conversation.id, added)
        values = {
            "head_id": conversation.messages[-1].id if conversation.messages else None,
            "turns": CONVERSATIONS.c.turns + len(added), "updated_at": time.time(),
            "system": self._rows.system(conversation.id, conversation.system),
        }  # fmt: skip
        if info.settings:
            values |= {"settings": json.dumps(dict(info.settings)), "model": info.model, "adapter": info.adapter}
        connection.execute(update(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation.id).values(values))

    def _add_name(self, connection: Connection, conversation_id: str, name_key: str | None) -> None:
        """Name a new conversation; StaleConversation if another request began one of that name a moment ago."""
        if name_key is None:
            return
        name = self.database.insert(NAMES).values(name_key=name_key, conversation_id=conversation_id).on_conflict_do_nothing()
        if connection.execute(name.returning(NAMES.c.name_key)).first() is None:
            raise StaleConversation

    def _close_answer(self, connection: Connection, record: TurnRecord) -> bool:
        """Write the final text of the open answer; False if it has been erased meanwhile."""
        answer, conversation = record.answer, record.conversation
        row = connection.execute(select(TURNS.c.seq).where(TURNS.c.id == answer.id)).first()
        if row is None:
            erased = conversation.head is not None and not self._exists(connection, conversation.id)
            if conversation.head == answer.id or erased:
                return False
            self._append_unopened(connection, conversation)
            row = connection.execute(select(TURNS.c.seq).where(TURNS.c.id == answer.id)).one()
        self._words.remove_turn(connection, row.seq)
        connection.execute(update(TURNS).where(TURNS.c.seq == row.seq).values(self._rows.finished_answer(record)))
        self._words.add(connection, row.seq, answer.content)
        changed = update(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation.id)
        connection.execute(changed.values(updated_at=time.time()))
        return True

    def _append_unopened(self, connection: Connection, conversation: Conversation) -> None:
        """Add a turn that could not be opened; as a branch if the conversation has another head by now."""
        try:
            self._append(connection, conversation, ConversationInfo())
        except StaleConversation:
            self._insert_turns(connection, conversation.id, self._new_turns(connection, conversation))

    def _write_partials(self, answers: Mapping[str, tuple[str, Message]]) -> None:
        # Not synchronous: a power cut may cost the last 0.25 s of an unfinished answer.
        with self.database.write(synchronous=NORMAL) as connection:
            for conversation_id, answer in answers.values():
                still_open = (TURNS.c.id == answer.id, TURNS.c.finish_reason == "partial", TURNS.c.indexed == 0)
                values = self._rows.partial_answer(conversation_id, answer)
                connection.execute(update(TURNS).where(*still_open).values(values))

    @staticmethod
    def _exists(connection: Connection, conversation_id: str) -> bool:
        return connection.execute(select(CONVERSATIONS.c.id).where(CONVERSATIONS.c.id == conversation_id)).first() is not None

    @staticmethod
    def _have_turn(connection: Connection, turn_ids: Sequence[str]) -> bool:
        """True if any conversation has one of these turns."""
        parts = (turn_ids[start : start + IDS_PER_STATEMENT] for start in range(0, len(turn_ids), IDS_PER_STATEMENT))
        return any(connection.execute(select(TURNS.c.id).where(TURNS.c.id.in_(part))).first() for part in parts)

    @staticmethod
    def _new_turns(connection: Connection, conversation: Conversation) -> Sequence[StoredTurn]:
        """Messages at the end that are not stored yet, each with its parent."""
        new: list[StoredTurn] = []
        messages = conversation.messages
        for index in range(len(messages) - 1, -1, -1):
            if connection.execute(select(TURNS.c.seq).where(TURNS.c.id == messages[index].id)).first():
                break
            new.append(StoredTurn(messages[index], messages[index - 1].id if index else None, now()))
        return new[::-1]

    def _insert_turns(self, connection: Connection, conversation_id: str, turns: Sequence[StoredTurn]) -> None:
        for turn in turns:
            added = insert(TURNS).values(self._rows.new_turn(conversation_id, turn)).returning(TURNS.c.seq)
            seq = connection.execute(added).scalar_one()
            if turn.message.finish_reason != "partial":
                self._words.add(connection, seq, turn.message.content)


def _summaries(owner: str | None) -> Select[*tuple[Any, ...]]:
    """Columns of RowMapper.summary, of an owner's conversations or of all."""
    table = CONVERSATIONS.c
    columns = (table.id, table.title, table.tags, table.model, table.adapter, table.turns, table.created_at, table.updated_at)
    query = select(*columns)
    return query if owner is None else query.where(table.owner == owner)
