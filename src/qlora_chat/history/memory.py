"""Conversations in this process's memory: the default. No file appears, and ending the program forgets them."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from qlora_chat.messages import Conversation


class MemoryHistory:
    """The newest `limit` conversations; the one longest untouched goes first."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._lock = Lock()

    def save(self, conversation: Conversation) -> None:
        """Remember the conversation as it now is."""
        with self._lock:
            self._conversations[conversation.id] = conversation
            self._conversations.move_to_end(conversation.id)
            while len(self._conversations) > self._limit:
                self._conversations.popitem(last=False)

    def load(self, conversation_id: str) -> Conversation | None:
        """The conversation of that id, or None."""
        with self._lock:
            return self._conversations.get(conversation_id)

    def delete(self, conversation_id: str) -> None:
        """Forget the conversation; unknown ids are no error."""
        with self._lock:
            self._conversations.pop(conversation_id, None)
