"""Erases conversations that have not changed for longer than the retention period.

Scope: the history and its outbox. Records at a receiver are subject to the receiver's own rules. Which time it is, says
retention_clock.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from qlora_chat.history import HistoryError, HistoryStore, now
from qlora_chat.history.retention_clock import FACT, Facts, RetentionClock, Stopwatch, first_clock, most_at_start

CHECK_SECONDS = 3600.0
LAG = timedelta(days=1)
"""Difference between the clock and the time that counts from which on it is reported."""


class Retention:
    """Expires conversations at the start and every hour, in a daemon thread."""

    def __init__(self, store: HistoryStore, days: float, notify: Callable[[str], None], facts: Facts | None = None) -> None:
        """`facts` is where the time outlives the process; without it, the history is this process's own."""
        self._store, self._days, self._notify = store, days, notify
        self._time = TrustedTime(store, days, facts)
        self._closed = threading.Event()
        threading.Thread(target=self._work, name="qlora-chat-retention", daemon=True).start()

    def close(self) -> None:
        """Stop checking."""
        self._closed.set()

    def _work(self) -> None:
        is_reported = False
        while True:
            try:
                moment = self._time.check()
                expire_before(self._store, moment - timedelta(days=self._days))
                if not is_reported and now() - moment > LAG:
                    is_reported = True
                    self._notify(lag_notice(moment))
            except HistoryError as problem:
                self._notify(f"history: old conversations could not be erased ({problem})")
            if self._closed.wait(CHECK_SECONDS):
                return


class TrustedTime:
    """The time that counts, from check to check and from start to start."""

    def __init__(self, store: HistoryStore, days: float, facts: Facts | None = None) -> None:
        self._store, self._days, self._facts = store, days, facts
        self._clock: RetentionClock | None = None
        self._stopwatch: Stopwatch | None = None

    def check(self) -> datetime:
        """The time that counts now. HistoryError if the history cannot be read or written."""
        stored = RetentionClock.parse(self._facts.read(FACT)) if self._facts else self._clock
        wall = now().timestamp()
        if stored is None:
            newest = max((summary.updated_at.timestamp() for summary in self._store.list(limit=1)), default=None)
            clock = first_clock(newest, wall, self._days)
        else:  # other processes of the same history may have checked meanwhile: the clock goes on from their check
            clock = stored.advanced(wall, self._stopwatch.lap() if self._stopwatch else most_at_start(self._days))
        self._stopwatch = self._stopwatch or Stopwatch()
        if self._facts:
            self._facts.write(FACT, clock.text())
        self._clock = clock
        return datetime.fromtimestamp(clock.time, UTC)


def lag_notice(moment: datetime) -> str:
    """Line for the operator while retention does not believe the clock."""
    return (
        f"history: the clock is {(now() - moment).days:,} days ahead of the time that this history has seen pass, so old "
        "conversations are erased later than QLORA_CHAT_HISTORY_DAYS says. Correct the clock if it is wrong. A right one is "
        "believed after 30 days; until then, erase with: qlora-chat history erase"
    )


def expire_before(store: HistoryStore, moment: datetime) -> int:
    """Erase conversations that have not changed since that time. Returns how many."""
    old = {summary.id for summary in store.list() if summary.updated_at < moment}
    if old:  # an answer may have ended since
        old &= {summary.id for summary in store.list() if summary.updated_at < moment}
    return store.erase([*old], unchanged_since=moment) if old else 0
