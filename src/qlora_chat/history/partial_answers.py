"""Writes how far open answers have got, off the path of their tokens.

Scope: one thread, the newest state of each answer, at most four writes a second for all of them together. A crash then
leaves an answer that is at most that old, where marking the turn alone would leave nothing of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from qlora_chat.history import HistoryUnavailable
from qlora_chat.messages import Message

INTERVAL_SECONDS = 0.25


class PartialAnswerWriter:
    """Hand it answers as they grow; `write` gets the changed ones together."""

    def __init__(self, write: Callable[[Mapping[str, Message]], None]) -> None:
        self._write = write
        self._changed: dict[str, Message] = {}
        self._lock = threading.Lock()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, answer: Message) -> None:
        """Remember the newest state; returns at once."""
        with self._lock:
            self._changed[answer.id] = answer
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._work, name="qlora-chat-history", daemon=True)
                self._thread.start()
        self._wake.set()

    def forget(self, answer_id: str) -> None:
        """The answer has ended: what it was on the way does not matter any more."""
        with self._lock:
            self._changed.pop(answer_id, None)

    def close(self) -> None:
        """Write what there is and end."""
        self._ended.set()
        self._wake.set()
        if self._thread:
            self._thread.join()

    def _work(self) -> None:
        while not self._ended.is_set():
            self._wake.wait()
            self._wake.clear()
            self._flush()
            self._ended.wait(INTERVAL_SECONDS)
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, {}
        if not changed:
            return
        try:
            self._write(changed)
        except HistoryUnavailable:
            return  # the next state is tried in its turn, and `finish` reports what it cannot write
