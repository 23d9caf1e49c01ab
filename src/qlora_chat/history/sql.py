"""Conversations in SQLite or PostgreSQL.

Scope: from values to rows and back. Durability is database.py's, what is to be delivered outbox.py's, finding words
search.py's. A question and its open answer are one transaction; so are a finished answer and its record for the receiver.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from qlora_chat.history import (
    About,
    Feedback,
    Hit,
    Kept,
    Outgoing,
    StaleConversation,
    StoredTurn,
    Summary,
    TurnRecord,
)
from qlora_chat.history.database import NORMAL, Database
from qlora_chat.history.facts import answer_facts
from qlora_chat.history.growing import Growing
from qlora_chat.history.outbox import Outbox
from qlora_chat.history.sealing import NoSeal, Seal, close_text, open_text
from qlora_chat.history.search import WordIndex
from qlora_chat.history.tables import CONVERSATIONS, FEEDBACK, TURNS
from qlora_chat.history.words import title_of
from qlora_chat.messages import Conversation, Message

CHUNK = 500
"""Ids in one statement: SQLite takes 32,766 values, older ones 999."""


class SqlHistory:
    """A HistoryStore over a database; `outbox` is the queue that lives in the same one."""

    def __init__(self, database: Database, seal: Seal | None = None, outbox: Outbox | None = None) -> None:
        self.database, self.seal = database, seal or NoSeal()
        self.outbox = outbox or Outbox(database, self.seal)
        self._words = WordIndex(database.sqlite, self.seal)
        self._growing = Growing(self._write_grown)
        with database.write() as connection:
            self._words.add_left_open(connection)

    def save(self, conversation: Conversation, about: About | None = None) -> Conversation:
        """Add what is new and move the head, in one transaction; StaleConversation where it moved elsewhere."""
        with self.database.write() as connection:
            head = self._append(connection, conversation, about or About())
            if head is _STALE:
                raise StaleConversation
        return replace(conversation, head=conversation.messages[-1].id if conversation.messages else None)

    def grow(self, conversation_id: str, answer: Message) -> None:
        """Note how far an open answer has got."""
        self._growing.note(answer)

    def finish(self, record: TurnRecord, outgoing: Outgoing | None = None) -> None:
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

    def read(self, conversation_id: str) -> Kept | None:
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
        return Kept(
            self._summary(row),
            self._opened(row.system),
            json.loads(row.settings),
            row.head_id,
            tuple(self._turn(each) for each in turns),
            tuple(self._feedback(each) for each in said),
        )

    def restore(self, kept: Kept) -> bool:
        """Add a whole conversation, as `read` gave it; False where its id is kept already."""
        with self.database.write() as connection:
            if self._head(connection, kept.summary.id) is not _ABSENT:
                return False
            connection.execute(insert(CONVERSATIONS).values(self._restored(kept)))
            self._insert_turns(connection, kept.summary.id, kept.turns)
            for said in kept.feedback:
                self._insert_feedback(connection, kept.summary.id, said)
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
        return [self._line(*each) for each in found]

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[Hit]:
        """Turns that hold every word, the newest first."""
        with self.database.read() as connection:
            return self._words.find(connection, text, limit, owner)

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Rename or tag."""
        values: dict[str, Any] = {}
        if title is not None:
            values["title"] = self._closed(title)
        if tags is not None:
            values["tags"] = self._closed(json.dumps(list(tags)))
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
        outgoing: Outgoing | None = None,
    ) -> bool:
        """Keep what a person thought of an answer; False for a turn that is not kept."""
        said = Feedback(turn_id, rating, edited, comment)
        turn = select(TURNS.c.seq).where(TURNS.c.id == turn_id, TURNS.c.conversation_id == conversation_id)
        with self.database.write() as connection:
            if connection.execute(turn).first() is None:
                return False
            self._insert_feedback(connection, conversation_id, said)
            if outgoing:
                self.outbox.add(connection, outgoing)
        self.outbox.added.set()
        return True

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[Outgoing] = ()) -> int:
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
        self.database.truncate_log()
        self.database.vacuum(("conversations", "turns", "feedback", "outbox", "outbox_bodies"))
        self.outbox.added.set()
        return erased

    def close(self) -> None:
        """Write what is pending and let go of the database."""
        self._growing.close()
        self.outbox.close()
        self.database.close()

    # --- writing ---------------------------------------------------------------------------------------------------

    def _append(self, connection: Connection, conversation: Conversation, about: About) -> str | None:
        """Add messages that are not there, move the head; -> the head before, or _STALE with nothing written."""
        head = self._head(connection, conversation.id, lock=True)
        if head is _ABSENT and conversation.head is not None:
            return _STALE  # it was erased
        if head is _ABSENT:
            self._insert_conversation(connection, conversation, about)
            head = None
        elif head != conversation.head:
            return _STALE
        added = self._missing(connection, conversation)
        self._insert_turns(connection, conversation.id, added)
        newest = conversation.messages[-1].id if conversation.messages else None
        values = {
            "head_id": newest, "turns": CONVERSATIONS.c.turns + len(added), "updated_at": time.time(),
            "system": self._closed_or_none(conversation.system),
        }  # fmt: skip
        if about.settings:
            values |= {"settings": json.dumps(dict(about.settings)), "model": about.model, "adapter": about.adapter}
        connection.execute(update(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation.id).values(values))
        return head

    def _close_answer(self, connection: Connection, record: TurnRecord) -> bool:
        """The open answer as it now is; False where it was erased meanwhile."""
        answer = record.answer
        values = {
            "content": self._closed(answer.content), "token_ids": self._closed(" ".join(map(str, answer.ids))),
            "finish_reason": answer.finish_reason, "details": self._closed(json.dumps(answer_facts(record))),
        }  # fmt: skip
        row = connection.execute(select(TURNS.c.seq).where(TURNS.c.id == answer.id)).first()
        if row is None:
            known = record.conversation.head
            if known == answer.id or (known is not None and self._head(connection, record.conversation.id) is _ABSENT):
                return False
            # It could not be opened: the turn is added whole. Where the conversation has gone on elsewhere, as a branch.
            if self._append(connection, record.conversation, About()) is _STALE:
                self._insert_turns(connection, record.conversation.id, self._missing(connection, record.conversation))
            row = connection.execute(select(TURNS.c.seq).where(TURNS.c.id == answer.id)).one()
        self._words.remove_turn(connection, row.seq)
        connection.execute(update(TURNS).where(TURNS.c.seq == row.seq).values(values))
        self._words.add(connection, row.seq, answer.content)
        changed = update(CONVERSATIONS).where(CONVERSATIONS.c.id == record.conversation.id)
        connection.execute(changed.values(updated_at=time.time()))
        return True

    def _write_grown(self, answers: Mapping[str, Message]) -> None:
        # A power cut may take the last quarter of a second of a half answer, so these writes do not wait for the disk.
        with self.database.write(synchronous=NORMAL) as connection:
            for answer in answers.values():
                open_still = (TURNS.c.id == answer.id, TURNS.c.finish_reason == "partial", TURNS.c.indexed == 0)
                connection.execute(update(TURNS).where(*open_still).values(content=self._closed(answer.content)))

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

    def _insert_conversation(self, connection: Connection, conversation: Conversation, about: About) -> None:
        moment = time.time()
        row = {
            "id": conversation.id, "owner": about.owner, "title": self._closed(title_of(conversation)),
            "tags": self._closed("[]"), "model": about.model, "adapter": about.adapter, "system": None,
            "settings": json.dumps(dict(about.settings)), "head_id": None, "turns": 0, "created_at": moment,
            "updated_at": moment,
        }  # fmt: skip
        connection.execute(insert(CONVERSATIONS).values(row))

    def _restored(self, kept: Kept) -> dict[str, Any]:
        summary = kept.summary
        return {
            "id": summary.id, "owner": None, "title": self._closed(summary.title),
            "tags": self._closed(json.dumps(list(summary.tags))), "model": summary.model, "adapter": summary.adapter,
            "system": self._closed_or_none(kept.system), "settings": json.dumps(dict(kept.settings)),
            "head_id": kept.head_id, "turns": len(kept.turns), "created_at": summary.created_at.timestamp(),
            "updated_at": summary.updated_at.timestamp(),
        }  # fmt: skip

    def _insert_turns(self, connection: Connection, conversation_id: str, turns: Sequence[StoredTurn]) -> None:
        for turn in turns:
            message = turn.message
            row = {
                "id": message.id, "conversation_id": conversation_id, "parent_id": turn.parent_id, "role": message.role,
                "content": self._closed(message.content), "token_ids": self._closed(" ".join(map(str, message.ids))),
                "finish_reason": message.finish_reason, "details": self._closed(json.dumps(dict(turn.details))),
                "indexed": 0, "created_at": turn.created_at.timestamp(),
            }  # fmt: skip
            seq = connection.execute(insert(TURNS).values(row).returning(TURNS.c.seq)).scalar_one()
            if message.finish_reason != "partial":
                self._words.add(connection, seq, message.content)

    def _insert_feedback(self, connection: Connection, conversation_id: str, said: Feedback) -> None:
        row = {
            "conversation_id": conversation_id, "turn_id": said.turn_id, "rating": said.rating,
            "edited": self._closed_or_none(said.edited), "comment": self._closed_or_none(said.comment),
            "created_at": said.created_at.timestamp(),
        }  # fmt: skip
        connection.execute(insert(FEEDBACK).values(row))

    # --- reading ---------------------------------------------------------------------------------------------------

    def _summary(self, row: Row[*tuple[Any, ...]]) -> Summary:
        return self._line(row.id, row.title, row.tags, row.model, row.adapter, row.turns, row.created_at, row.updated_at)

    def _line(self, name: Any, title: str, tags: str, *rest: Any) -> Summary:
        """By position: ten thousand of these are listed at once, and names cost more than the row."""
        model, adapter, turns, created, updated = rest
        if self.seal.sealed:
            title, tags = open_text(self.seal, title), open_text(self.seal, tags)
        told = tuple(json.loads(tags)) if tags != "[]" else ()
        return Summary(name, title, told, model, adapter, turns, _moment(created), _moment(updated))

    def _turn(self, row: Row[*tuple[Any, ...]]) -> StoredTurn:
        ids = tuple(map(int, open_text(self.seal, row.token_ids).split()))
        message = Message(row.role, open_text(self.seal, row.content), ids, row.finish_reason, row.id)
        details = json.loads(open_text(self.seal, row.details))
        return StoredTurn(message, row.parent_id, _moment(row.created_at), details)

    def _feedback(self, row: Row[*tuple[Any, ...]]) -> Feedback:
        return Feedback(row.turn_id, row.rating, self._opened(row.edited), self._opened(row.comment), _moment(row.created_at))

    def _closed(self, text: str) -> str:
        return close_text(self.seal, storable(text))

    def _closed_or_none(self, text: str | None) -> str | None:
        return None if text is None else self._closed(text)

    def _opened(self, text: str | None) -> str | None:
        return None if text is None else open_text(self.seal, text)


_ABSENT = "\0absent"
_STALE = "\0stale"


def storable(text: str) -> str:
    """Text that every database takes: lone surrogates as "?", and NUL, which PostgreSQL refuses, as its picture."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\u2400")


def _moment(seconds: float) -> datetime:
    """In UTC: the local zone is looked up where a time is shown, since that takes longer than reading the row."""
    return datetime.fromtimestamp(seconds, UTC)
