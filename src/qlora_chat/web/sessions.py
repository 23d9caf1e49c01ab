"""The tabs that are open in this process, and the features of the page that they show.

Scope: tabs by name, and which one goes on with a conversation that two of them name. Knows no Gradio, which the server imports
later.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from dataclasses import dataclass

from qlora_chat.chat import Chat
from qlora_chat.web.session import Session


@dataclass(frozen=True)
class PageFeatures:
    """Fixed when the page is built."""

    logged: bool = False
    """Finished turns are sent to a receiver."""
    persistent: bool = False
    """Conversations outlive the program."""
    shared: bool = False
    """People on other machines can reach the page: then each browser sees only its own conversations."""
    has_password: bool = False
    """A person logs in, and can log out."""
    operated: bool = False
    """People on the page may switch the model and train."""

    def owner(self, *known: object) -> str | None:
        """Owner of the conversations of a browser that sends one of these secrets; None where everybody sees all."""
        return owner_of(*known) if self.shared else None


def owner_of(*known: object) -> str:
    """Owner of a browser's conversations where several people use the page: the first of `known` that is a browser's secret.

    Stored as a hash, so that a reader of the history cannot use it. A client without a secret sees nothing.
    """
    secret = next((each for each in known if isinstance(each, str) and len(each) >= 32), secrets.token_hex())
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


class Sessions:
    """Tabs by the name Gradio gives each page load. tab_names.py limits their number, and has them closed."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._sessions: dict[str, Session] = {}
        self._lock = threading.RLock()

    @property
    def running(self) -> int:
        """Number of tabs for which answers are being written."""
        with self._lock:
            return sum(session.running is not None or session.comparing for session in self._sessions.values())

    def find(self, name: str) -> Session | None:
        """The tab of that name; None if this process does not have it."""
        with self._lock:
            return self._sessions.get(name)

    def open(self, name: str, conversation_id: str = "", reloaded: bool = False, owner: str | None = None) -> Session:
        """The tab of that name. A new one goes on with the conversation it names, if its `owner` has one of that id.

        A reloaded page takes over the conversation of the page before it. Another tab that names a conversation in use (a
        duplicated tab does) gets a copy under a new id, so that neither overwrites the other.
        """
        with self._lock:
            if existing := self._sessions.get(name):
                return existing
            other = self.showing(conversation_id, owner)
            session = self._sessions[name] = Session(self._chat, owner)
        if other and reloaded:
            other.close()
        conversation = other.conversation if other else session.stored(conversation_id)
        if conversation:
            session.restore(conversation.copied() if other and not reloaded else conversation)
        return session

    def close(self, name: str, seconds: float = 5.0) -> None:
        """Close a tab that is gone, once its answer has been saved, for which it waits so long."""
        if session := self.find(name):
            session.close(seconds)
            with self._lock:
                self._sessions.pop(name, None)

    def stop_all(self) -> None:
        """End every answer at its next token."""
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.stop()

    def showing(self, conversation_id: str, owner: str | None) -> Session | None:
        """The owner's tab that shows a conversation."""
        with self._lock:
            shown = (each for each in self._sessions.values() if each.conversation.id == conversation_id)
            return next((each for each in shown if each.owner == owner), None)
