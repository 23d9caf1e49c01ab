"""Sends turns off the chat's path, and says how many did not arrive and why, never what was in them.

Scope: one thread, one bounded queue in memory, one try a turn. What a crash must not lose needs a durable outbox,
which this is not.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable

import requests

from qlora_chat.delivery.payload import payload_v1
from qlora_chat.history import Feedback, TurnRecord

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 5.0
QUEUE_LIMIT = 1000


class LogSender:
    """Call it with a turn; it returns at once. `close` waits for what is queued."""

    def __init__(self, url: str, notify: Callable[[str], None]) -> None:
        self.sent = 0
        self.failures: Counter[str] = Counter()
        """Turns that did not arrive, by reason."""
        self._url, self._notify = url, notify
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc gets to see a conversation
        self._turns: queue.Queue[TurnRecord | None] = queue.Queue(QUEUE_LIMIT)
        self._thread = threading.Thread(target=self._work, name="qlora-chat-log", daemon=True)
        self._thread.start()

    def __call__(self, turn: TurnRecord) -> None:
        """Queue a turn; one too many is counted as failed, and the chat goes on."""
        try:
            self._turns.put_nowait(turn)
        except queue.Full:
            self._failed("queue full")

    def turn(self, record: TurnRecord) -> None:
        """Queue a turn."""
        self(record)

    def feedback(self, conversation_id: str, feedback: Feedback) -> None:
        """Version 1 knows no feedback."""

    def tombstone(self, conversation_id: str) -> None:
        """Version 1 knows no tombstones."""

    def close(self, seconds: float = 30.0) -> None:
        """Send what is queued, for at most that long, then say what did not arrive."""
        self._turns.put(None)
        self._thread.join(seconds)
        left = self._turns.qsize()
        if self._thread.is_alive() and left:
            self.failures["not sent before the end"] += left
        if self.failures:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.failures.items())
            self._notify(
                f"log: {self.failures.total()} of {self.failures.total() + self.sent} turns did not arrive ({reasons})"
            )

    def _work(self) -> None:
        while (turn := self._turns.get()) is not None:
            self._send(turn)

    def _send(self, turn: TurnRecord) -> None:
        """A redirect is a failure: following one would lose the body or hand it to another host."""
        try:
            with self._session.post(
                self._url,
                json=payload_v1(turn),
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                allow_redirects=False,
                stream=True,  # the status is enough; a body that drips in would hold up the next turn
            ) as answer:
                status = answer.status_code
        except Exception as problem:
            self._failed(type(problem).__name__)
            return
        if 200 <= status < 300:
            self.sent += 1
        else:
            self._failed(f"status {status}")

    def _failed(self, reason: str) -> None:
        self.failures[reason] += 1
        if self.failures[reason] == 1:
            self._notify(f"log: a turn did not arrive at LOGGING_URL ({reason}); the chat goes on, and the count is kept")
