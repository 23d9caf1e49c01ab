"""Conversations in this process's memory: the default. No file appears, and ending the program forgets them."""

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
from qlora_chat.history.scan import found, listed
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation, Message


class MemoryHistory:
    """The newest `limit` conversations; the one longest untouched goes first. Records to deliver go to `queue`."""

    def __init__(self, limit: int = 1000, queue: Queue | None = None) -> None:
        self._limit, self._queue = limit, queue
        self._kept: OrderedDict[str, StoredConversation] = OrderedDict()
        self._owners: dict[str, str | None] = {}
        self._erased: set[str] = set()
        """What may not come back from a page that still shows it; what went for want of room may."""
        self._lock = RLock()

    def save(self, conversation: Conversation, about: ConversationInfo | None = None) -> Conversation:
        """Add what is new and move the head; StaleConversation where it moved elsewhere."""
        about = about or ConversationInfo()
        with self._lock:
            if conversation.id in self._erased:
                raise StaleConversation
            kept = self._kept.get(conversation.id) or _empty(conversation.id)
            if kept.head_id != conversation.head and kept.turns:
                raise StaleConversation
            added = kept.missing(conversation)
            newest = conversation.messages[-1].id if conversation.messages else None
            summary = replace(
                kept.summary,
                title=kept.summary.title or title_of(conversation),
                model=about.model or kept.summary.model,
                adapter=about.adapter or kept.summary.adapter,
                turns=len(kept.turns) + len(added),
                updated_at=now(),
            )
            settings = about.settings or kept.settings
            self._keep(StoredConversation(summary, conversation.system, settings, newest, (*kept.turns, *added), kept.feedback))
            self._owners.setdefault(conversation.id, about.owner)
            return replace(conversation, head=newest)

    def grow(self, conversation_id: str, answer: Message) -> None:
        """Nothing: memory does not outlive the answer that is being written."""

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Close the open answer and queue what is to be delivered."""
        with self._lock:
            kept = self._opened(record)
            if kept is None:
                return
            answer, facts = record.answer, answer_metadata(record)
            turns = tuple(
                replace(turn, message=answer, details=facts) if turn.message.id == answer.id else turn for turn in kept.turns
            )
            self._keep(replace(kept, turns=turns, summary=replace(kept.summary, updated_at=now())))
        self._send(outgoing)

    def load(self, conversation_id: str) -> Conversation | None:
        """The branch that is shown, or None."""
        kept = self.read(conversation_id)
        return kept.conversation() if kept else None

    def read(self, conversation_id: str) -> StoredConversation | None:
        """Everything kept of a conversation, or None."""
        with self._lock:
            return self._kept.get(conversation_id)

    def restore(self, kept: StoredConversation) -> bool:
        """Add a whole conversation; False where its id is kept already."""
        with self._lock:
            if kept.summary.id in self._kept:
                return False
            self._erased.discard(kept.summary.id)
            self._keep(kept)
            return True

    def list(self, *, limit: int | None = None, owner: str | None = None) -> Sequence[Summary]:
        """The newest change first."""
        with self._lock:
            mine = [kept for kept in self._kept.values() if self._is_of(owner, kept.summary.id)]
        return listed(mine, limit)

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """Turns that hold every word, the newest first."""
        with self._lock:
            mine = [kept for kept in self._kept.values() if self._is_of(owner, kept.summary.id)]
        return found(mine, text, limit)

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Rename or tag."""
        with self._lock:
            kept = self._kept.get(conversation_id)
            if kept is None:
                return False
            title = kept.summary.title if title is None else title
            summary = replace(kept.summary, title=title, tags=kept.summary.tags if tags is None else tuple(tags))
            self._kept[conversation_id] = replace(kept, summary=summary)
            return True

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
        with self._lock:
            kept = self._kept.get(conversation_id)
            if kept is None or not kept.has(turn_id):
                return False
            self._kept[conversation_id] = replace(kept, feedback=(*kept.feedback, said))
        self._send(outgoing)
        return True

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord] = ()) -> int:
        """Forget conversations."""
        with self._lock:
            self._erased.update(each for each in conversation_ids if each in self._kept)
            erased = [self._kept.pop(each) for each in conversation_ids if each in self._kept]
            for each in conversation_ids:
                self._owners.pop(each, None)
        if self._queue:
            self._queue.erase(conversation_ids, tombstones)
        return len(erased)

    def close(self) -> None:
        """Nothing is held open."""

    def _opened(self, record: TurnRecord) -> StoredConversation | None:
        """The conversation with the answer in it; None where it was erased meanwhile."""
        conversation = record.conversation
        kept = self._kept.get(conversation.id)
        if kept is None and conversation.head is not None:
            return None
        if kept is None or not kept.has(record.answer.id):
            with suppress(StaleConversation):
                self.save(conversation)
        return self._kept.get(conversation.id)

    def _keep(self, kept: StoredConversation) -> None:
        self._kept[kept.summary.id] = kept
        self._kept.move_to_end(kept.summary.id)
        while len(self._kept) > self._limit:
            gone, _ = self._kept.popitem(last=False)
            self._owners.pop(gone, None)

    def _is_of(self, owner: str | None, conversation_id: str) -> bool:
        return owner is None or self._owners.get(conversation_id) == owner

    def _send(self, outgoing: OutboxRecord | None) -> None:
        if outgoing and self._queue:
            self._queue.put(outgoing)


def _empty(conversation_id: str) -> StoredConversation:
    moment = now()
    return StoredConversation(Summary(conversation_id, "", (), None, None, 0, moment, moment), None, {}, None, ())
