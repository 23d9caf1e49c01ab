"""Empties the outbox into a receiver, off the chat's path, until everything has arrived.

Scope: when to try what. One thread, records in the order they were made; a record that has to wait does not hold up the
next, a receiver that is down holds up all. Says how many did not arrive and why, never what was in them.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qlora_chat.delivery.http_post import Poster, Verdict
from qlora_chat.history import HistoryError
from qlora_chat.history.outbox.queue import Later, Outbox, QueuedRecord
from qlora_chat.settings import LogSettings

BATCH = 50
SETTLE_SECONDS = 0.25
"""What has arrived is struck off at least this often; a crash in between sends it twice, under the same id."""
LOOK_SECONDS = 1.0
"""How often the outbox is looked into without being called, for what waits and what other processes add."""
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.5, 60.0


@dataclass
class _Outcomes:
    """What became of records, until it is written."""

    sent: list[int] = field(default_factory=list)
    later: list[Later] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)

    def add(self, waiting: QueuedRecord, verdict: Verdict, wait: float) -> None:
        """Note one verdict; `wait` in seconds, for one that is to be tried again."""
        if verdict.outcome == "sent":
            self.sent.append(waiting.seq)
        elif verdict.outcome == "refused":
            self.dead.append((waiting.seq, verdict.reason))
        else:
            self.later.append(Later(waiting.seq, time.time() + wait, verdict.reason))


class LogSender:
    """Runs from the start until `close`, which tries what is due once more."""

    def __init__(self, outbox: Outbox, settings: LogSettings, notify: Callable[[str], None]) -> None:
        self.sent = 0
        self.failures: Counter[str] = Counter()
        """Tries that came to nothing, by reason."""
        self._outbox, self._notify = outbox, notify
        self._post = Poster(settings)
        self._down_for = 0
        self._quiet_until = 0.0
        self._settled = _Outcomes()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="qlora-chat-log", daemon=True)
        self._thread.start()

    def close(self, seconds: float = 30.0) -> None:
        """Try what is due for at most that long, then cut a try off, and say what waits for the next start."""
        self._deadline = time.monotonic() + seconds
        self._closing.set()
        self._outbox.added.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._post.hang_up()
            self._thread.join(10)
        self._post.close()
        try:
            counts = self._outbox.counts()
        except HistoryError as problem:
            self._notify(f"log: {problem}")
            return
        told = {
            "not sent yet, and kept for the next start": counts.waiting,
            "refused by the receiver and set aside": counts.dead,
            "dropped for want of room or because their redaction failed": counts.dropped,
            "found damaged": counts.damaged,
        }
        said = "; ".join(f"{count:,} {what}" for what, count in told.items() if count)
        if said:
            self._notify(f"log: {said}{self._why()}")

    def _why(self) -> str:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in self.failures.most_common(5))
        return f" ({reasons})" if reasons else ""

    def _work(self) -> None:
        while True:
            self._outbox.added.clear()
            try:
                self._settle()
                claimed = self._outbox.claim(BATCH) if self._may_try() else ()
                if claimed:
                    self._send(claimed)
                    continue
            except HistoryError as problem:
                self._failed(str(problem))
            if self._closing.is_set():
                return
            self._outbox.added.wait(LOOK_SECONDS)

    def _may_try(self) -> bool:
        """Not while the receiver asked for quiet; at the end once more, but only if the last try was not in vain."""
        if self._closing.is_set() and (self._down_for or time.monotonic() > self._deadline):
            return False
        return time.monotonic() >= self._quiet_until

    def _send(self, claimed: Sequence[QueuedRecord]) -> None:
        """Try each; strike off what arrived as it goes, so that little is sent twice after a crash."""
        settled_at = time.monotonic()
        for index, waiting in enumerate(claimed):
            if not self._may_try():
                self._settled.later += [Later(each.seq, time.time(), "", tried=False) for each in claimed[index:]]
                break
            verdict = self._post(waiting.outgoing)
            self._note(verdict)
            self._settled.add(waiting, verdict, self._wait(verdict, waiting.attempts))
            if time.monotonic() - settled_at > SETTLE_SECONDS:
                self._settle()
                settled_at = time.monotonic()
        self._settle()

    def _settle(self) -> None:
        """Write what became of records. While a full disk forbids it nothing more is claimed, so nothing is sent again."""
        outcomes = self._settled
        if outcomes.sent or outcomes.later or outcomes.dead:
            self._outbox.settle(outcomes.sent, outcomes.later, outcomes.dead)
            self._settled = _Outcomes()

    def _note(self, verdict: Verdict) -> None:
        if verdict.outcome == "sent":
            self.sent += 1
            self._down_for = 0
            return
        self._failed(verdict.reason)
        if verdict.receiver_is_down:
            self._down_for += 1
            self._quiet_until = time.monotonic() + self._wait(verdict, self._down_for - 1)
        else:
            self._down_for = 0

    @staticmethod
    def _wait(verdict: Verdict, attempts: int) -> float:
        """Seconds to the next try: what the receiver asks for, else twice as long each time; scattered, so that many
        senders do not come back together."""
        backoff = min(MOST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(attempts, 20))
        return (verdict.wait or 0.0) + backoff * random.uniform(0.5, 1.5)

    def _failed(self, reason: str) -> None:
        self.failures[reason] += 1
        if self.failures[reason] == 1:
            self._notify(f"log: a record did not arrive at LOGGING_URL ({reason}); it is kept and tried again")
