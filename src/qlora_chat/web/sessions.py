"""The tabs that are open, in this process.

Scope: which tab is which, and who goes on with a conversation that two name. Knows no Gradio.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from qlora_chat.chat import Chat
from qlora_chat.web.session import Session


class Sessions:
    """By the name Gradio gives each page load."""

    def __init__(self, chat: Chat, limit: int = 2000) -> None:
        self._chat, self._limit = chat, limit
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def answering(self) -> int:
        """Answers being written."""
        with self._lock:
            return sum(session.answering is not None for session in self._sessions.values())

    def find(self, name: str) -> Session | None:
        """The tab of that name, if this process has it."""
        with self._lock:
            return self._sessions.get(name)

    def open(self, name: str, conversation_id: str = "", reloaded: bool = False) -> Session:
        """The tab of that name. A new one goes on with the conversation it names, if there is such a one.

        A reloaded page takes its conversation over from the page it was. Another tab that names a conversation in
        use (a duplicated tab does) gets a copy under a new id, so that neither overwrites the other.
        """
        with self._lock:
            known = self._sessions.get(name)
            if known:
                self._sessions.move_to_end(name)
                return known
            session = self._sessions[name] = Session(self._chat)
            holder = self._holding(conversation_id)
        self._close_oldest()
        if holder and reloaded:
            holder.close()
        conversation = holder.conversation if holder else self._chat.history.load(conversation_id) if conversation_id else None
        if conversation:
            session.restore(conversation.copied() if holder and not reloaded else conversation)
        return session

    def close(self, name: str) -> None:
        """That tab is gone."""
        with self._lock:
            session = self._sessions.get(name)
        if session is None:
            return
        session.close()
        with self._lock:
            self._sessions.pop(name, None)

    def stop_all(self) -> None:
        """End every answer at its next token."""
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.stop()

    def _holding(self, conversation_id: str) -> Session | None:
        return next((each for each in self._sessions.values() if each.conversation.id == conversation_id), None)

    def _close_oldest(self) -> None:
        while True:
            with self._lock:
                if len(self._sessions) <= self._limit:
                    return
                _, oldest = self._sessions.popitem(last=False)
            oldest.close(seconds=0)
