"""Deletion with time to undo: a conversation is hidden at once and erased some seconds later.

Scope: when to erase. That a conversation is hidden is in the history, so an erasure that a crash has interrupted is completed
at the next start. The end of the server completes those that wait.
"""

from __future__ import annotations

import logging
import threading
import time

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError, now

UNDO_SECONDS = 10.0
SLACK_SECONDS = 2.0
"""Time beyond what the page shows: an Undo of the last moment may be on its way."""

logger = logging.getLogger(__name__)


class PendingDeletions:
    """Conversations that are hidden and will be erased. Other processes of the same history may undo a deletion, too."""

    def __init__(self, chat: Chat, seconds: float = UNDO_SECONDS + SLACK_SECONDS) -> None:
        self._chat, self._seconds = chat, seconds
        self._due: dict[str, float] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def resume(self) -> None:
        """Take over what an earlier process has hidden and not erased."""
        try:
            hidden = self._chat.history.hidden()
        except HistoryError as problem:
            logger.warning("deleted conversations are erased at the next start (%s)", problem)
            return
        for name, since in hidden.items():
            waited = (now() - since).total_seconds()
            self._schedule(name, min(max(self._seconds - waited, 0.0), self._seconds))

    def delete(self, conversation_id: str) -> bool:
        """Hide a conversation, and erase it in some seconds. False for an unknown id."""
        if not self._chat.history.hide(conversation_id):
            return False
        self._schedule(conversation_id, self._seconds)
        return True

    def undo(self, conversation_id: str) -> bool:
        """Show a conversation again; False if it has been erased."""
        with self._changed:
            self._due.pop(conversation_id, None)
        return self._chat.history.hide(conversation_id, False)

    def close(self) -> None:
        """Erase now what is waiting to be."""
        with self._changed:
            self._closed = True
            waiting, self._due = [*self._due], {}
            self._changed.notify()
        if self._thread:
            self._thread.join()
        for name in waiting:
            try:
                self._erase(name)
            except HistoryError as problem:
                logger.warning("a deleted conversation is erased at the next start (%s)", problem)

    def _schedule(self, conversation_id: str, seconds: float) -> None:
        with self._changed:
            if self._closed:
                return
            self._due[conversation_id] = time.monotonic() + seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="qlora-chat-deletions", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        while name := self._next():
            try:
                self._erase(name)
            except HistoryError:  # a database that is away for a moment
                self._schedule(name, self._seconds)

    def _next(self) -> str | None:
        """The next conversation whose time has come, or None when all ends."""
        with self._changed:
            while not self._closed:
                name = min(self._due, key=self._due.__getitem__, default=None)
                remaining = self._due[name] - time.monotonic() if name else None
                if name and remaining is not None and remaining <= 0:
                    del self._due[name]
                    return name
                self._changed.wait(remaining)
            return None

    def _erase(self, conversation_id: str) -> None:
        """Erase a conversation unless its deletion was undone. One that has gone on in another window stays, and is shown."""
        since = self._chat.history.hidden().get(conversation_id)
        summary = self._chat.history.summary(conversation_id)
        if since is None or summary is None:
            return
        if summary.updated_at > since:
            self._chat.history.hide(conversation_id, False)
        else:
            self._chat.erase([conversation_id])
