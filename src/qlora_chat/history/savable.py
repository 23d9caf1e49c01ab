"""Conversations in memory, until a person has them saved to a file.

Scope: which of two stores every call goes to, and the move from the one to the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from qlora_chat.history import (
    ConversationInfo,
    Feedback,
    HistoryStore,
    OutboxRecord,
    SearchHit,
    StoredConversation,
    Summary,
    TurnRecord,
    Vote,
)
from qlora_chat.messages import Conversation, Message


class SavableHistory:
    """HistoryStore over another one in memory; after `start_saving`, over a file with the same conversations."""

    def __init__(self, memory: HistoryStore, file: Path, open_file: Callable[[Path], HistoryStore]) -> None:
        """`open_file` opens the store of a file, and creates it."""
        self.file = file
        self._store, self._open_file = memory, open_file
        self._is_saved = False
        self._lock = threading.RLock()

    @property
    def is_saved(self) -> bool:
        """True once conversations are saved."""
        return self._is_saved

    def start_saving(self) -> int:
        """Save all conversations from now on, those that there are included. Returns their number.

        HistoryError, with everything as it was, if the file cannot be created.
        """
        with self._lock:
            memory, summaries = self._store, self._store.list()
            if self._is_saved:
                return len(summaries)
            saved = self._open_file(self.file)
            try:
                for each in reversed(summaries):
                    stored = memory.read(each.id)
                    if stored:
                        saved.restore(stored)
            except BaseException:
                saved.close()
                raise
            self._store, self._is_saved = saved, True
        return len(summaries)

    @contextmanager
    def _current(self) -> Iterator[HistoryStore]:
        """The store to use. While it may be changed, one call at a time: memory is quick."""
        if self._is_saved:
            yield self._store
            return
        with self._lock:
            yield self._store

    def save(self, conversation: Conversation, info: ConversationInfo | None = None) -> Conversation:
        """HistoryStore.save."""
        with self._current() as store:
            return store.save(conversation, info)

    def update_partial(self, conversation_id: str, answer: Message) -> None:
        """HistoryStore.update_partial."""
        with self._current() as store:
            store.update_partial(conversation_id, answer)

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """HistoryStore.finish."""
        with self._current() as store:
            store.finish(record, outgoing)

    def load(self, conversation_id: str) -> Conversation | None:
        """HistoryStore.load."""
        with self._current() as store:
            return store.load(conversation_id)

    def read(self, conversation_id: str) -> StoredConversation | None:
        """HistoryStore.read."""
        with self._current() as store:
            return store.read(conversation_id)

    def find_named(self, name_key: str) -> str | None:
        """HistoryStore.find_named."""
        with self._current() as store:
            return store.find_named(name_key)

    def restore(self, conversation: StoredConversation, owner: str | None = None) -> bool:
        """HistoryStore.restore."""
        with self._current() as store:
            return store.restore(conversation, owner)

    def list(
        self, *, limit: int | None = None, owner: str | None = None, before: str | None = None, tag: str | None = None
    ) -> Sequence[Summary]:
        """HistoryStore.list."""
        with self._current() as store:
            return store.list(limit=limit, owner=owner, before=before, tag=tag)

    def summary(self, conversation_id: str, *, owner: str | None = None) -> Summary | None:
        """HistoryStore.summary."""
        with self._current() as store:
            return store.summary(conversation_id, owner=owner)

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """HistoryStore.search."""
        with self._current() as store:
            return store.search(text, limit=limit, owner=owner)

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """HistoryStore.change."""
        with self._current() as store:
            return store.change(conversation_id, title=title, tags=tags)

    def hide(self, conversation_id: str, hidden: bool = True) -> bool:
        """HistoryStore.hide."""
        with self._current() as store:
            return store.hide(conversation_id, hidden)

    def hidden(self) -> Mapping[str, datetime]:
        """HistoryStore.hidden."""
        with self._current() as store:
            return store.hidden()

    def add_feedback(self, conversation_id: str, feedback: Feedback, outgoing: OutboxRecord | None = None) -> bool:
        """HistoryStore.add_feedback."""
        with self._current() as store:
            return store.add_feedback(conversation_id, feedback, outgoing)

    def add_vote(self, conversation_id: str, vote: Vote) -> bool:
        """HistoryStore.add_vote."""
        with self._current() as store:
            return store.add_vote(conversation_id, vote)

    def votes(self, *, owner: str | None = None) -> Sequence[Vote]:
        """HistoryStore.votes."""
        with self._current() as store:
            return store.votes(owner=owner)

    def erase(
        self,
        conversation_ids: Sequence[str],
        tombstones: Sequence[OutboxRecord] = (),
        *,
        unchanged_since: datetime | None = None,
    ) -> int:
        """HistoryStore.erase."""
        with self._current() as store:
            return store.erase(conversation_ids, tombstones, unchanged_since=unchanged_since)

    def close(self) -> None:
        """HistoryStore.close."""
        with self._current() as store:
            store.close()
