"""Erases conversations that have not changed for longer than the retention period.

Scope: the history and its outbox. Records at a receiver are subject to the receiver's own rules. A clock that is ahead erases
nothing before its time; a history that nobody has used for long is therefore erased some checks later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from qlora_chat.history import HistoryError, HistoryStore, now

CHECK_SECONDS = 3600.0
MAX_STEP = timedelta(days=1)
"""Longest time from the check before, or from the newest change of the history, to a check. A clock that is further ahead may
be wrong, so it is followed by this much at each check."""


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
        checked: datetime | None = None
        while True:
            try:
                checked = _trusted_time(self._store, checked)
                _expire_before(self._store, checked - timedelta(days=self._days))
            except HistoryError as problem:
                self._notify(f"history: old conversations could not be erased ({problem})")
            if self._closed.wait(CHECK_SECONDS):
                return


def expire(store: HistoryStore, days: float) -> int:
    """Erase conversations that have not changed for so many days. Returns how many."""
    return _expire_before(store, _trusted_time(store) - timedelta(days=days))


def _trusted_time(store: HistoryStore, checked: datetime | None = None) -> datetime:
    """Current time, but at most MAX_STEP after the check before, or after the newest change if there was none."""
    newest = max((summary.updated_at for summary in store.list()), default=now())
    return min(now(), (checked or newest) + MAX_STEP)


def _expire_before(store: HistoryStore, moment: datetime) -> int:
    old = {summary.id for summary in store.list() if summary.updated_at < moment}
    if old:  # an answer may have ended since
        old &= {summary.id for summary in store.list() if summary.updated_at < moment}
    return store.erase([*old], unchanged_since=moment) if old else 0
