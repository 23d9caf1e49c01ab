"""Sends the outbox's records to a receiver, in a thread of its own, until all have arrived.

Scope: the order and times of attempts. Records are sent in the order they were made; one that has to wait does not delay the
next, a receiver that is down pauses all. Messages say how many records did not arrive and why, never their content.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qlora_chat.delivery.http_post import Poster, PostResult
from qlora_chat.history import HistoryError
from qlora_chat.history.outbox.queue import Outbox, QueuedRecord, Retry
from qlora_chat.settings import LogSettings
from qlora_chat.text import counted

BATCH = 50
ACK_SECONDS = 0.25
"""Longest time before a sent record is acknowledged; after a crash in between it is sent twice, under the same id."""
POLL_SECONDS = 1.0
"""Interval at which the outbox is checked for retries and for records of other processes."""
MAX_REASONS = 20
"""A receiver that words each failure in a new way fills neither memory nor terminal."""
OTHER_REASONS = "other reasons"
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 60.0


@dataclass
class _Outcomes:
    """Outcomes of records that are not acknowledged yet."""

    sent: list[int] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)

    def add(self, record: QueuedRecord, result: PostResult, backoff: float) -> None:
        """Add one result; `backoff` is the time before a retry, in seconds."""
        if result.outcome == "sent":
            self.sent.append(record.seq)
        elif result.outcome == "rejected":
            self.dead.append((record.seq, result.reason))
        else:
            self.retries.append(Retry(record.seq, time.time() + backoff, result.reason))


class LogSender:
    """Sender that runs from its creation until `close`."""

    def __init__(self, outbox: Outbox, settings: LogSettings, notify: Callable[[str], None]) -> None:
        self.sent = 0
        self.failures: Counter[str] = Counter()
        """Failed attempts by reason."""
        self._outbox, self._notify = outbox, notify
        self._post = Poster(settings)
        self._consecutive_outages = 0
        self._paused_until = 0.0
        self._outcomes = _Outcomes()
        self._closing = threading.Event()
        self._deadline = float("inf")
        if elsewhere := outbox.counts().elsewhere:
            notify(
                f"log: {counted(elsewhere, 'record')} for another LOGGING_URL {'stays' if elsewhere == 1 else 'stay'} here: "
                f"`qlora-chat logs outbox` shows and moves {'it' if elsewhere == 1 else 'them'}"
            )
        self._thread = threading.Thread(target=self._work, name="qlora-chat-log", daemon=True)
        self._thread.start()

    def close(self, seconds: float = 30.0) -> None:
        """Send due records for at most that long, then abort, and report what is left for the next start."""
        self._deadline = time.monotonic() + seconds
        self._closing.set()
        self._outbox.added.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._post.abort()
            self._thread.join(10)
        if not self._thread.is_alive():
            self._post.close()
        try:
            counts = self._outbox.counts()
        except HistoryError as problem:
            self._notify(f"log: {problem}")
            return
        states = {
            "not sent yet, and kept for the next start": counts.waiting,
            "refused by the receiver and set aside": counts.dead,
            "dropped for want of room or because the redaction failed": counts.dropped,
            "found damaged": counts.damaged,
        }
        report = "; ".join(f"{counted(count, 'record')} {state}" for state, count in states.items() if count)
        if report:
            self._notify(f"log: {report}{self._reasons()}")

    def _reasons(self) -> str:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in self.failures.most_common(5))
        return f" ({reasons})" if reasons else ""

    def _work(self) -> None:
        while True:
            self._outbox.added.clear()
            try:
                self._ack()
                claimed = self._outbox.claim(BATCH) if self._may_send() else ()
                if claimed:
                    self._send(claimed)
                    continue
            except HistoryError as problem:
                self._count_failure(str(problem))
            if self._closing.is_set():
                return
            self._outbox.added.wait(POLL_SECONDS)

    def _may_send(self) -> bool:
        """False during a pause; while closing also after the deadline, and if the receiver was down at the last attempt."""
        if self._closing.is_set() and (self._consecutive_outages or time.monotonic() > self._deadline):
            return False
        return time.monotonic() >= self._paused_until

    def _send(self, claimed: Sequence[QueuedRecord]) -> None:
        acked_at = time.monotonic()
        for index, record in enumerate(claimed):
            if not self._may_send():
                self._outcomes.retries += [Retry(each.seq, time.time(), "", attempted=False) for each in claimed[index:]]
                break
            result = self._post(record.outgoing)
            self._note(result)
            self._outcomes.add(record, result, self._backoff(result, record.attempts))
            if time.monotonic() - acked_at > ACK_SECONDS:
                self._ack()
                acked_at = time.monotonic()
        self._ack()

    def _ack(self) -> None:
        """Write outcomes to the outbox. If a full disk prevents that, nothing more is claimed, so nothing is sent twice."""
        outcomes = self._outcomes
        if outcomes.sent or outcomes.retries or outcomes.dead:
            self._outbox.ack(outcomes.sent, outcomes.retries, outcomes.dead)
            self._outcomes = _Outcomes()

    def _note(self, result: PostResult) -> None:
        if result.outcome == "sent":
            self.sent += 1
            self._consecutive_outages = 0
            return
        self._count_failure(result.reason, is_rejected=result.outcome == "rejected")
        if result.receiver_is_down:
            self._consecutive_outages += 1
            self._paused_until = time.monotonic() + self._backoff(result, self._consecutive_outages - 1)
        else:
            self._consecutive_outages = 0

    @staticmethod
    def _backoff(result: PostResult, attempts: int) -> float:
        """Seconds to the next attempt: the receiver's Retry-After plus exponential backoff with jitter."""
        backoff = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(attempts, 20))
        return (result.retry_after or 0.0) + backoff * random.uniform(0.5, 1.5)

    def _count_failure(self, reason: str, *, is_rejected: bool = False) -> None:
        if reason not in self.failures and len(self.failures) >= MAX_REASONS:
            reason = OTHER_REASONS
        self.failures[reason] += 1
        if self.failures[reason] > 1:
            return
        if is_rejected:
            self._notify(
                f"log: the receiver refused a record ({reason}); it is set aside and not tried again: "
                "`qlora-chat logs dead-letters list` shows it"
            )
        else:
            self._notify(f"log: a record did not arrive at LOGGING_URL ({reason}); it is queued and tried again")
