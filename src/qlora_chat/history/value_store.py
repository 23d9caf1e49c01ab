"""Base of the stores that read and write a conversation as one value: in memory, and in plain files.

Scope: the rules of HistoryStore for changing a conversation. Subclasses know where conversations are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from threading import RLock
from typing import TypeAlias

from qlora_chat.history import (
    ConversationInfo,
    Feedback,
    OutboxRecord,
    Queue,
    SearchHit,
    StaleConversation,
    StoredConversation,
    Summary,
    TurnRecord,
    Vote,
    now,
)
from qlora_chat.history.answer_metadata import answer_metadata
from qlora_chat.history.text_match import list_conversations, search_conversations, title_of
from qlora_chat.messages import Conversation

Content: TypeAlias = tuple[StoredConversation, ConversationInfo]
"""A conversation, and its owner and its name's key."""
Write: TypeAlias = Callable[[StoredConversation, ConversationInfo], None]
"""Writes a conversation as it is now, with its owner and its name's key, which count for a new conversation only."""


class ValueStore(ABC):
    """HistoryStore without storage; records to deliver go to `queue`."""

    def __init__(self, queue: Queue | None) -> None:
        self._queue, self._lock = queue, RLock()

    @abstractmethod
    def _content(self, conversation_id: str) -> Content | None:
        """A stored conversation, or None."""

    @abstractmethod
    def _contents(self) -> Iterable[Content]:
        """Every stored conversation."""

    @abstractmethod
    def _changing(self, conversation_id: str) -> AbstractContextManager[tuple[StoredConversation | None, Write]]:
        """The stored conversation, locked against other threads and processes."""

    @abstractmethod
    def _may_begin(self, conversation: Conversation) -> bool:
        """False if a conversation that is not stored was erased."""

    @abstractmethod
    def _remove(self, conversation_id: str) -> bool: ...

    def save(self, conversation: Conversation, info: ConversationInfo | None = None) -> Conversation:
        """Add new messages and move the head; StaleConversation if the stored head is another."""
        info = info or ConversationInfo()
        with self._changing(conversation.id) as (stored, write):
            if not self._may_begin(conversation) if stored is None else stored.head_id != conversation.head:
                raise StaleConversation
            if stored is None and info.name_key and self.find_named(info.name_key):
                raise StaleConversation  # another request began it a moment ago
            changed = _extended(stored, conversation, info)
            write(changed, info)
        return replace(conversation, head=changed.head_id)

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Queue the answer's record, then close the answer: a crash in between must not lose the record."""
        answer, conversation = record.answer, record.conversation
        with self._changing(conversation.id) as (stored, write):
            if stored is None and (conversation.head is not None or not self._may_begin(conversation)):
                return
            if outgoing and self._queue:
                self._queue.put(outgoing)
            if stored is None or not stored.has_turn(answer.id):
                stored = _extended(stored, conversation, ConversationInfo())
            finished = {"message": answer, "details": answer_metadata(record)}
            turns = tuple(replace(each, **finished) if each.message.id == answer.id else each for each in stored.turns)
            write(replace(stored, turns=turns, summary=replace(stored.summary, updated_at=now())), ConversationInfo())

    def read(self, conversation_id: str) -> StoredConversation | None:
        """Conversation with all branches and feedback, or None."""
        content = self._content(conversation_id)
        return content[0] if content else None

    def find_named(self, name_key: str) -> str | None:
        """Id of the conversation with this key, or None."""
        return next((stored.summary.id for stored, info in self._contents() if info.name_key == name_key), None)

    def load(self, conversation_id: str) -> Conversation | None:
        """Active branch, or None."""
        stored = self.read(conversation_id)
        return stored.conversation() if stored else None

    def restore(self, conversation: StoredConversation, owner: str | None = None) -> bool:
        """Add a whole conversation; False if its id exists."""
        with self._changing(conversation.summary.id) as (stored, write):
            if stored is None:
                write(conversation, ConversationInfo(owner=owner))
            return stored is None

    def list(
        self, *, limit: int | None = None, owner: str | None = None, before: str | None = None, tag: str | None = None
    ) -> Sequence[Summary]:
        """Summaries of the conversations with a turn, the most recently changed first."""
        return list_conversations(self._all(owner), limit, before, tag)

    def summary(self, conversation_id: str, *, owner: str | None = None) -> Summary | None:
        """Entry of one conversation of that owner, or None."""
        content = self._content(conversation_id)
        return content[0].summary if content and owner in (None, content[1].owner) else None

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """Turns that have every word, the newest first."""
        return search_conversations(self._all(owner), text, limit)

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Set title or tags."""
        changes = {"title": title, "tags": None if tags is None else tuple(tags)}
        given = {name: value for name, value in changes.items() if value is not None}
        return self._change(conversation_id, lambda stored: replace(stored, summary=replace(stored.summary, **given)))

    def hide(self, conversation_id: str, hidden: bool = True) -> bool:
        """Leave a conversation out of lists and searches, or show it again."""
        since = now() if hidden else None
        return self._change(conversation_id, lambda stored: replace(stored, summary=replace(stored.summary, hidden_at=since)))

    def hidden(self) -> Mapping[str, datetime]:
        """Time since when each hidden conversation has been hidden."""
        return {each.summary.id: each.summary.hidden_at for each in self._all(None) if each.summary.hidden_at}

    def add_feedback(self, conversation_id: str, feedback: Feedback, outgoing: OutboxRecord | None = None) -> bool:
        """Store feedback on an answer; False for an unknown turn."""
        stored = self.read(conversation_id)
        if stored is None or not stored.has_turn(feedback.turn_id):
            return False
        if outgoing and self._queue:
            self._queue.put(outgoing)
        return self._change(conversation_id, lambda stored: replace(stored, feedback=(*stored.feedback, feedback)))

    def add_vote(self, conversation_id: str, vote: Vote) -> bool:
        """Store a vote on answers; False if the conversation lacks one of them."""
        stored = self.read(conversation_id)
        if stored is None or not all(map(stored.has_turn, vote.turn_ids)):
            return False
        return self._change(conversation_id, lambda stored: replace(stored, votes=(*stored.votes, vote)))

    def votes(self, *, owner: str | None = None) -> Sequence[Vote]:
        """Votes of all conversations that are not hidden, in the order they were given."""
        votes = (vote for each in self._all(owner) if not each.summary.hidden_at for vote in each.votes)
        return sorted(votes, key=lambda vote: vote.created_at)

    def erase(
        self,
        conversation_ids: Sequence[str],
        tombstones: Sequence[OutboxRecord] = (),
        *,
        unchanged_since: datetime | None = None,
    ) -> int:
        """Delete conversations and queued records. Returns how many conversations existed."""
        with self._lock:
            if unchanged_since is not None:
                stored = filter(None, map(self.read, conversation_ids))
                conversation_ids = [each.summary.id for each in stored if each.summary.updated_at < unchanged_since]
            erased = sum(self._remove(each) for each in conversation_ids)
        if self._queue:
            self._queue.erase(conversation_ids, tombstones)
        return erased

    def _all(self, owner: str | None) -> Iterator[StoredConversation]:
        return (stored for stored, info in self._contents() if owner in (None, info.owner))

    def _change(self, conversation_id: str, changed: Callable[[StoredConversation], StoredConversation]) -> bool:
        if self.read(conversation_id) is None:
            return False
        with self._changing(conversation_id) as (stored, write):
            if stored is not None:
                write(changed(stored), ConversationInfo())
            return stored is not None


def _extended(stored: StoredConversation | None, conversation: Conversation, info: ConversationInfo) -> StoredConversation:
    """Stored conversation with the new messages, which are a branch beside the active one if they follow another head."""
    moment = now()
    if stored is None:
        summary = Summary(conversation.id, title_of(conversation), (), info.model, info.adapter, 0, moment, moment)
        stored = StoredConversation(summary, conversation.system, info.settings, conversation.head, ())
    turns = (*stored.turns, *stored.new_turns(conversation))
    model, adapter = (info.model, info.adapter) if info.settings else (stored.summary.model, stored.summary.adapter)
    summary = replace(stored.summary, turns=len(turns), updated_at=moment, model=model, adapter=adapter)
    if stored.head_id != conversation.head:
        return replace(stored, summary=summary, turns=turns)
    head = conversation.messages[-1].id if conversation.messages else None
    settings = info.settings or stored.settings
    return replace(stored, summary=summary, system=conversation.system, settings=settings, head_id=head, turns=turns)
