"""The requests of an engine by state: arriving, waiting for a slot, running.

Scope: membership and endings, shared by the schedulers. Knows no forward pass. All but `submit` belongs to the engine's
thread.
"""

from __future__ import annotations

from collections import deque
from queue import SimpleQueue

from torch import Tensor

from qlora_chat.engines import EngineError
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.sampler import NOT_FINITE, token_logprobs
from qlora_chat.settings import Sampling


class RequestQueue:
    """Requests by state, and the slots of the running ones."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._arriving: SimpleQueue[Request] = SimpleQueue()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def idle(self) -> bool:
        """True if there is no request in any state."""
        return self._arriving.empty() and not self.waiting and not self.running

    def submit(self, request: Request) -> None:
        """Add a request at the next step. Safe from any thread."""
        self._arriving.put(request)

    def drop_cancelled(self) -> None:
        """End the cancelled requests, waiting or running."""
        self._receive()
        for request in [each for each in self.waiting if each.cancelled]:
            self.waiting.remove(request)
            request.end_cancelled()
        for request in [each for each in self.running if each.cancelled]:
            request.end_cancelled()
            self.remove(request)

    def admit(self) -> list[Request]:
        """Assign free slots to the longest waiting requests; returns the newly running ones."""
        admitted = []
        while self.waiting and (slot := self._cache.acquire(self.waiting[0].ids, self.waiting[0].adapter)) is not None:
            request = self.waiting.popleft()
            request.assign(slot)
            admitted.append(request)
        self.running += admitted
        return admitted

    def report_prefill(self) -> None:
        """Tell the callers of running requests how much of their prompts has been read."""
        for request in self.running:
            request.report_prefill()

    def remove(self, request: Request) -> None:
        """Remove a request that has ended; its slot keeps the conversation until another needs the slot."""
        self.running.remove(request)
        self._cache.release(request.running_slot)

    def accept(self, request: Request, token: int, logits: Tensor, sampling: Sampling) -> bool:
        """Hand out a token that was sampled from logits (V,). Returns whether the answer continues."""
        try:
            if token == NOT_FINITE:
                raise EngineError("the model's output is not a number: its weights or its adapter are damaged")
            ended = request.accept(token, token_logprobs(logits, token, sampling))
        except Exception as problem:
            self.fail(request, problem)
            return False
        if ended:
            self.remove(request)
        return not ended

    def fail(self, request: Request, problem: BaseException) -> None:
        """End one request with an error for its caller."""
        request.fail(problem)
        self.remove(request)

    def cancel_all(self) -> None:
        """End every request, so that no caller waits for a piece that will not come."""
        self._receive()
        for request in [*self.waiting, *self.running]:
            request.cancelled = True
        self.drop_cancelled()

    def fail_all(self, problem: BaseException) -> None:
        """End every running request with an error; the waiting ones stay."""
        for request in list(self.running):
            self.fail(request, problem)

    def _receive(self) -> None:
        while not self._arriving.empty():
            self.waiting.append(self._arriving.get())
