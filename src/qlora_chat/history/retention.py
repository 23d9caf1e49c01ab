"""Erases conversations that have not changed for longer than the retention period.

Scope: the history and its outbox. Records at a receiver are subject to the receiver's own rules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

from qlora_chat.history import HistoryError, HistoryStore, now

CHECK_SECONDS = 3600.0


class Retention:
    """Expires conversations at the start and every hour, in a daemon thread."""

    def __init__(self, store: HistoryStore, days: float, notify: Callable[[str], None]) -> None:
        self._store, self._days, self._notify = store, days, notify
        self._closed = threading.Event()
        threading.Thread(target=self._work, name="qlora-chat-retention", daemon=True).start()

    def close(self) -> None:
        """Stop checking."""
        self._closed.set()

    def _work(self) -> None:
        while True:
            try:
                expire(self._store, self._days)
            except HistoryError as problem:
                self._notify(f"history: old conversations could not be erased ({problem})")
            if self._closed.wait(CHECK_SECONDS):
                return


def expire(store: HistoryStore, days: float) -> int:
    """Erase conversations that have not changed for so many days. Returns how many."""
    before = now() - timedelta(days=days)
    old = [summary.id for summary in store.list() if summary.updated_at < before]
    return store.erase(old) if old else 0
