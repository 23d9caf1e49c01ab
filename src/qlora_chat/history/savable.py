"""Conversations in memory, until a person has them saved to a file.

Scope: which of two stores every call goes to, and the move from the one to the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlora_chat.history import HistoryStore


class SavableHistory:
    """HistoryStore over another one in memory; after `start_saving`, over a file with the same conversations.

    Its methods come from `__getattr__`: `cast(HistoryStore, ...)` tells a type checker of them.
    """

    def __init__(self, memory: HistoryStore, file: Path, open_file: Callable[[Path], HistoryStore]) -> None:
        """`open_file` opens the store of a file, and creates it."""
        self.file = file
        self._store, self._open_file = memory, open_file
        self._is_saved = False
        self._lock = threading.RLock()

    @property
    def is_saved(self) -> bool:
        """True once conversations are saved."""
        return self._is_saved

    def start_saving(self) -> int:
        """Save all conversations from now on, those that there are included. Returns their number.

        HistoryError, with everything as it was, if the file cannot be created.
        """
        with self._lock:
            memory, summaries = self._store, self._store.list()
            if self._is_saved:
                return len(summaries)
            saved = self._open_file(self.file)
            try:
                for each in reversed(summaries):
                    stored = memory.read(each.id)
                    if stored:
                        saved.restore(stored)
            except BaseException:
                saved.close()
                raise
            self._store, self._is_saved = saved, True
        return len(summaries)

    @contextmanager
    def _current(self) -> Iterator[HistoryStore]:
        """The store to use. While it may be changed, one call at a time: memory is quick."""
        if self._is_saved:
            yield self._store
            return
        with self._lock:
            yield self._store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A method of HistoryStore, called on the store that is current then."""
        if name.startswith("_") or not hasattr(self._store, name):
            raise AttributeError(f"{type(self).__name__} has no {name}")

        def call(*args: Any, **options: Any) -> Any:
            with self._current() as store:
                return getattr(store, name)(*args, **options)

        return call
