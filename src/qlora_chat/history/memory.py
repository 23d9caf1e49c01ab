"""Conversations in memory, the default: nothing is written to disk, and all is lost when the process ends."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import RLock

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
    now,
)
from qlora_chat.history.answer_metadata import answer_metadata
from qlora_chat.history.text_match import list_conversations, search_conversations, title_of
from qlora_chat.messages import Conversation, Message


class MemoryHistory:
    """HistoryStore of the `limit` most recently changed conversations; records to deliver go to `queue`."""

    def __init__(self, limit: int = 1000, queue: Queue | None = None) -> None:
        self._limit, self._queue = limit, queue
        self._conversations: OrderedDict[str, StoredConversation] = OrderedDict()
        """By id, the least recently changed first."""
        self._owners: dict[str, str | None] = {}
        self._erased: set[str] = set()
        """Ids that a page which still shows them must not bring back; those evicted by `limit` may come back."""
        self._lock = RLock()

    def save(self, conversation: Conversation, info: ConversationInfo | None = None) -> Conversation:
        """Add new messages and move the head; StaleConversation if the stored head is another."""
        info = info or ConversationInfo()
        with self._lock:
            if conversation.id in self._erased:
                raise StaleConversation
            stored = self._conversations.get(conversation.id) or _empty(conversation.id)
            if stored.head_id != conversation.head and stored.turns:
                raise StaleConversation
            added = stored.new_turns(conversation)
            head = conversation.messages[-1].id if conversation.messages else None
            summary = replace(
                stored.summary,
                title=stored.summary.title or title_of(conversation),
                model=info.model or stored.summary.model,
                adapter=info.adapter or stored.summary.adapter,
                turns=len(stored.turns) + len(added),
                updated_at=now(),
            )
            settings, turns = info.settings or stored.settings, (*stored.turns, *added)
            self._put(StoredConversation(summary, conversation.system, settings, head, turns, stored.feedback))
            self._owners.setdefault(conversation.id, info.owner)
            return replace(conversation, head=head)

    def update_partial(self, conversation_id: str, answer: Message) -> None:
        """Do nothing: memory does not survive a crash."""

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Close the open answer and queue its record."""
        with self._lock:
            stored = self._with_open_answer(record)
            if stored is None:
                return
            answer, details = record.answer, answer_metadata(record)
            turns = tuple(
                replace(turn, message=answer, details=details) if turn.message.id == answer.id else turn
                for turn in stored.turns
            )
            self._put(replace(stored, turns=turns, summary=replace(stored.summary, updated_at=now())))
        self._send(outgoing)

    def load(self, conversation_id: str) -> Conversation | None:
        """Active branch, or None."""
        stored = self.read(conversation_id)
        return stored.conversation() if stored else None

    def read(self, conversation_id: str) -> StoredConversation | None:
        """Conversation with all branches and feedback, or None."""
        with self._lock:
            return self._conversations.get(conversation_id)

    def restore(self, conversation: StoredConversation) -> bool:
        """Add a whole conversation; False if its id exists."""
        with self._lock:
            if conversation.summary.id in self._conversations:
                return False
            self._erased.discard(conversation.summary.id)
            self._put(conversation)
            return True

    def list(self, *, limit: int | None = None, owner: str | None = None) -> Sequence[Summary]:
        """Summaries, the most recently changed first."""
        return list_conversations(self._owned(owner), limit)

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """Turns that have every word, the newest first."""
        return search_conversations(self._owned(owner), text, limit)

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Set title or tags."""
        with self._lock:
            stored = self._conversations.get(conversation_id)
            if stored is None:
                return False
            title = stored.summary.title if title is None else title
            summary = replace(stored.summary, title=title, tags=stored.summary.tags if tags is None else tuple(tags))
            self._conversations[conversation_id] = replace(stored, summary=summary)
            return True

    def add_feedback(self, conversation_id: str, feedback: Feedback, outgoing: OutboxRecord | None = None) -> bool:
        """Store feedback on an answer; False for an unknown turn."""
        with self._lock:
            stored = self._conversations.get(conversation_id)
            if stored is None or not stored.has_turn(feedback.turn_id):
                return False
            self._conversations[conversation_id] = replace(stored, feedback=(*stored.feedback, feedback))
        self._send(outgoing)
        return True

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord] = ()) -> int:
        """Delete conversations. Returns how many existed."""
        with self._lock:
            erased = [each for each in conversation_ids if self._conversations.pop(each, None)]
            self._erased.update(erased)
            for each in conversation_ids:
                self._owners.pop(each, None)
        if self._queue:
            self._queue.erase(conversation_ids, tombstones)
        return len(erased)

    def close(self) -> None:
        """Do nothing."""

    def _with_open_answer(self, record: TurnRecord) -> StoredConversation | None:
        """Conversation with the record's answer in it, added if need be; None if it has been erased meanwhile."""
        conversation = record.conversation
        stored = self._conversations.get(conversation.id)
        if stored is None and conversation.head is not None:
            return None
        if stored is None or not stored.has_turn(record.answer.id):
            with suppress(StaleConversation):
                self.save(conversation)
        return self._conversations.get(conversation.id)

    def _put(self, conversation: StoredConversation) -> None:
        self._conversations[conversation.summary.id] = conversation
        self._conversations.move_to_end(conversation.summary.id)
        while len(self._conversations) > self._limit:
            evicted, _ = self._conversations.popitem(last=False)
            self._owners.pop(evicted, None)

    def _owned(self, owner: str | None) -> Sequence[StoredConversation]:
        with self._lock:
            return [each for name, each in self._conversations.items() if owner is None or self._owners.get(name) == owner]

    def _send(self, outgoing: OutboxRecord | None) -> None:
        if outgoing and self._queue:
            self._queue.put(outgoing)


def _empty(conversation_id: str) -> StoredConversation:
    moment = now()
    return StoredConversation(Summary(conversation_id, "", (), None, None, 0, moment, moment), None, {}, None, ())
