"""Erases conversations that nobody has touched for longer than they are to be kept.

Scope: which, and when to look. It erases here and from the outbox; what a receiver has is under the receiver's own rule.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

from qlora_chat.history import HistoryError, HistoryStore, now

LOOK_SECONDS = 3600.0


class Retention:
    """Looks at the start and every hour, from a thread of its own that ends with the program."""

    def __init__(self, store: HistoryStore, days: float, notify: Callable[[str], None]) -> None:
        self._store, self._days, self._notify = store, days, notify
        self._ended = threading.Event()
        threading.Thread(target=self._work, name="qlora-chat-retention", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()

    def _work(self) -> None:
        while True:
            try:
                expire(self._store, self._days)
            except HistoryError as problem:
                self._notify(f"history: old conversations could not be erased ({problem})")
            if self._ended.wait(LOOK_SECONDS):
                return


def expire(store: HistoryStore, days: float) -> int:
    """Erase what nobody has touched for so many days; -> how many conversations."""
    before = now() - timedelta(days=days)
    old = [summary.id for summary in store.list() if summary.updated_at < before]
    return store.erase(old) if old else 0
