"""Holds answers that ended while the database server was away, and writes them when it is back.

Scope: finished answers of this process, in memory, tried again at intervals from a thread of its own. An answer is
lost if the process ends first.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from qlora_chat.history import HistoryUnavailable, OutboxRecord, TurnRecord

MOST_ANSWERS = 1000
"""Further ones are refused."""
RETRY_SECONDS = 0.5

Answer: TypeAlias = tuple[TurnRecord, OutboxRecord | None]

logger = logging.getLogger(__name__)


class HeldAnswers:
    """Queue of answers for `finish`, which raises HistoryUnavailable while the server is away."""

    def __init__(self, finish: Callable[[TurnRecord, OutboxRecord | None], None]) -> None:
        self._finish = finish
        self._answers: deque[Answer] = deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, record: TurnRecord, outgoing: OutboxRecord | None) -> bool:
        """Take an answer and its record; False if there are too many already."""
        with self._lock:
            if len(self._answers) >= MOST_ANSWERS or self._closing.is_set():
                return False
            self._answers.append((record, outgoing))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="qlora-chat-held", daemon=True)
                self._thread.start()
        return True

    def close(self) -> list[OutboxRecord | None]:
        """Try once more. Returns the records of the answers that are lost."""
        self._closing.set()
        if self._thread:
            self._thread.join()
        self._write()
        if self._answers:
            logger.error("%d answers could not be saved: the database server did not come back", len(self._answers))
        return [outgoing for _, outgoing in self._answers]

    def _work(self) -> None:
        """Write until nothing is held; the next answer begins another thread."""
        while not self._closing.wait(RETRY_SECONDS):
            self._write()
            with self._lock:
                if not self._answers:
                    self._thread = None
                    return

    def _write(self) -> None:
        while self._answers:
            try:
                self._finish(*self._answers[0])
            except HistoryUnavailable:
                self._answers.rotate(-1)  # if only this one cannot be written, it must not stop the others
                return
            self._answers.popleft()
