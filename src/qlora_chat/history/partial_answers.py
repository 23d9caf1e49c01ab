"""Writes the text of open answers at intervals, from a thread of its own.

Scope: the newest state of each answer, at most four writes a second for all of them together. After a crash, each open answer
has the text of its last write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from qlora_chat.history import HistoryUnavailable
from qlora_chat.messages import Message

INTERVAL_SECONDS = 0.25


class PartialAnswerWriter:
    """Passes the answers that have changed since the last interval to `write`: by their ids, with those of conversations."""

    def __init__(self, write: Callable[[Mapping[str, tuple[str, Message]]], None]) -> None:
        self._write = write
        self._changed: dict[str, tuple[str, Message]] = {}
        self._lock = threading.Lock()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, conversation_id: str, answer: Message) -> None:
        """Schedule the current text of an answer for writing; returns at once."""
        with self._lock:
            self._changed[answer.id] = conversation_id, answer
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._work, name="qlora-chat-history", daemon=True)
                self._thread.start()
        self._wake.set()

    def discard(self, answer_id: str) -> None:
        """Drop the pending write of an answer that has ended."""
        with self._lock:
            self._changed.pop(answer_id, None)

    def close(self) -> None:
        """Write what is pending and end the thread."""
        self._closed.set()
        self._wake.set()
        if self._thread:
            self._thread.join()

    def _work(self) -> None:
        while not self._closed.is_set():
            self._wake.wait()
            self._wake.clear()
            self._flush()
            self._closed.wait(INTERVAL_SECONDS)
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, {}
        if not changed:
            return
        try:
            self._write(changed)
        except HistoryUnavailable:
            return  # the next state is written in its turn, and `finish` reports what it cannot write
