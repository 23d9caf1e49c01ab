"""Conversations in memory, the default: nothing is written to disk, and all is lost when the process ends."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qlora_chat.history import ConversationInfo, Queue, StoredConversation
from qlora_chat.history.value_store import Content, ValueStore, Write
from qlora_chat.messages import Conversation, Message


class MemoryHistory(ValueStore):
    """HistoryStore of the `limit` most recently changed conversations."""

    def __init__(self, limit: int = 1000, queue: Queue | None = None) -> None:
        super().__init__(queue)
        self._limit = limit
        self._conversations: OrderedDict[str, Content] = OrderedDict()
        """By id, the least recently changed first."""
        self._erased: set[str] = set()
        """Ids that a page which still shows them must not bring back; those evicted by `limit` may come back."""

    def update_partial(self, conversation_id: str, answer: Message) -> None:
        """Do nothing: memory does not survive a crash."""

    def restore(self, conversation: StoredConversation, owner: str | None = None) -> bool:
        """Add a whole conversation, even one that was erased; False if its id exists."""
        self._erased.discard(conversation.summary.id)
        return super().restore(conversation, owner)

    def close(self) -> None:
        """Do nothing."""

    @contextmanager
    def _changing(self, conversation_id: str) -> Iterator[tuple[StoredConversation | None, Write]]:
        with self._lock:
            stored, stored_info = self._conversations.get(conversation_id, (None, None))

            def write(changed: StoredConversation, info: ConversationInfo) -> None:
                self._conversations[conversation_id] = changed, stored_info or info
                if stored is None or changed.summary.updated_at != stored.summary.updated_at:
                    self._conversations.move_to_end(conversation_id)
                while len(self._conversations) > self._limit:
                    self._conversations.popitem(last=False)

            yield stored, write

    def _content(self, conversation_id: str) -> Content | None:
        with self._lock:
            return self._conversations.get(conversation_id)

    def _contents(self) -> Sequence[Content]:
        with self._lock:
            return [*self._conversations.values()]

    def _may_begin(self, conversation: Conversation) -> bool:
        return conversation.id not in self._erased

    def _remove(self, conversation_id: str) -> bool:
        existed = self._conversations.pop(conversation_id, None) is not None
        if existed:
            self._erased.add(conversation_id)
        return existed
