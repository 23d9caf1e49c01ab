"""The requests of an engine: who arrives, who waits for a slot, who runs, and how each ends.

Scope: membership only, shared by the schedulers. Knows no forward pass. Everything but `submit` belongs to the engine's
thread.
"""

from __future__ import annotations

from collections import deque
from queue import SimpleQueue

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.request import Request


class RequestQueue:
    """Requests by state, and the slots of those that run."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._arriving: SimpleQueue[Request] = SimpleQueue()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def idle(self) -> bool:
        """Whether there is nobody."""
        return self._arriving.empty() and not self.waiting and not self.running

    def submit(self, request: Request) -> None:
        """Let a request in at the next step; the one thing that other threads may call."""
        self._arriving.put(request)

    def drop_cancelled(self) -> None:
        """End the answers that are no longer wanted."""
        self._let_in()
        for request in [each for each in self.waiting if each.cancelled]:
            self.waiting.remove(request)
            request.end_cancelled()
        for request in [each for each in self.running if each.cancelled]:
            request.end_cancelled()
            self.leave(request)

    def admit(self) -> list[Request]:
        """Give free slots to those who waited longest; returns who runs from now on."""
        admitted = []
        while self.waiting and (slot := self._cache.take(self.waiting[0].ids, self.waiting[0].adapter)) is not None:
            request = self.waiting.popleft()
            request.start_in(slot)
            admitted.append(request)
        self.running += admitted
        return admitted

    def leave(self, request: Request) -> None:
        """The request has ended; its slot remembers the conversation until another needs it."""
        self.running.remove(request)
        if request.slot is not None:
            self._cache.release(request.slot)

    def fail(self, request: Request, problem: BaseException) -> None:
        """Raise the problem in one caller's hands."""
        request.fail(problem)
        self.leave(request)

    def cancel_all(self) -> None:
        """End every answer here: nobody is left waiting for a piece that will not come."""
        self._let_in()
        for request in [*self.waiting, *self.running]:
            request.cancelled = True
        self.drop_cancelled()

    def fail_all(self, problem: BaseException) -> None:
        """Everyone who runs hears of the problem, and those who wait go on."""
        for request in list(self.running):
            self.fail(request, problem)

    def _let_in(self) -> None:
        while not self._arriving.empty():
            self.waiting.append(self._arriving.get())
