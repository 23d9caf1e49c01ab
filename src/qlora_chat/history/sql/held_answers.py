"""Holds answers that ended, and feedback that was given, while the database server was away; writes them when it is back.

Scope: values of this process, in memory, tried again at intervals from a thread of its own. They are lost if the process ends
first.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from qlora_chat.history import HistoryUnavailable, OutboxRecord

MOST_HELD = 1000
"""Further values are refused."""
RETRY_SECONDS = 0.5

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class HeldValues(Generic[Value]):
    """Queue of values for `write`, which raises HistoryUnavailable while the server is away. `name` says what they are."""

    def __init__(self, name: str, write: Callable[[Value, OutboxRecord | None], Any]) -> None:
        self._name, self._write_value = name, write
        self._values: deque[tuple[Value, OutboxRecord | None]] = deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_values(self) -> bool:
        """True if values wait that may still be written."""
        return bool(self._values) and not self._closing.is_set()

    def hold(self, value: Value, outgoing: OutboxRecord | None) -> bool:
        """Take a value and its record; False if there are too many already."""
        with self._lock:
            if len(self._values) >= MOST_HELD or self._closing.is_set():
                return False
            self._values.append((value, outgoing))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="qlora-chat-held", daemon=True)
                self._thread.start()
        return True

    def close(self) -> list[OutboxRecord | None]:
        """Try once more. Returns the records of the values that are lost."""
        self._closing.set()
        if self._thread:
            self._thread.join()
        self._write()
        if self._values:
            logger.error("%d %s could not be saved: the database server did not come back", len(self._values), self._name)
        return [outgoing for _, outgoing in self._values]

    def _work(self) -> None:
        """Write until nothing is held; the next value begins another thread."""
        while not self._closing.wait(RETRY_SECONDS):
            self._write()
            with self._lock:
                if not self._values:
                    self._thread = None
                    return

    def _write(self) -> None:
        while self._values:
            try:
                self._write_value(*self._values[0])
            except HistoryUnavailable:
                self._values.rotate(-1)  # if only this one cannot be written, it must not stop the others
                return
            self._values.popleft()
