"""Which tokens go through the model next, and whose answers come out.

Scope: one step at a time, for all chats together: admit, lay out spans, run, sample, hand on. Single-threaded; the
engine around it owns the thread. Knows no text formats and no pages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import torch

from qlora_chat.engines import EngineError
from qlora_chat.engines.cache import KVCache
from qlora_chat.engines.llama import Span
from qlora_chat.engines.request import Request
from qlora_chat.engines.sampling import NOT_FINITE, choose

PREFILL_ALONE = 512
"""Prompt tokens a pass when nobody waits for a next token: enough to keep the hardware busy, few enough to cancel soon."""
PREFILL_BESIDE = 64
"""Prompt tokens a pass while others are answering: their next token must not wait for a long prompt."""


class Scheduler:
    """Moves every request on by one forward pass a step."""

    def __init__(self, forward: Callable[[Sequence[Span]], torch.Tensor], cache: KVCache) -> None:
        self._forward, self._cache = forward, cache
        self._arriving: SimpleQueue[Request] = SimpleQueue()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.forwards = 0
        """Forward passes so far."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._arriving.empty() and not self.waiting and not self.running

    def submit(self, request: Request) -> None:
        """Let a request in at the next step; the one thing that other threads may call."""
        self._arriving.put(request)

    def step(self) -> None:
        """Drop the cancelled, admit the waiting, run one forward pass, hand out one token a chat that is ready for it."""
        self._let_in()
        self._drop_cancelled()
        self._admit()
        if not self.running:
            return
        requests = sorted(self.running, key=_slot_index)  # neighbours in the cache share one attention
        spans = self._spans(requests)
        try:
            logits = self._run(spans)
        except Exception:
            self._one_by_one(requests, spans)
            return
        self._hand_out(requests, spans, logits)

    def cancel_all(self) -> None:
        """End every answer here: nobody is left waiting for a piece that will not come."""
        self._let_in()
        for request in [*self.waiting, *self.running]:
            request.cancelled = True
        self._drop_cancelled()

    def fail_all(self, problem: BaseException) -> None:
        """Something is wrong with the engine itself: everyone who runs hears of it, and those who wait go on."""
        for request in list(self.running):
            self._fail(request, problem)

    def _let_in(self) -> None:
        while not self._arriving.empty():
            self.waiting.append(self._arriving.get())

    def _drop_cancelled(self) -> None:
        for request in [each for each in self.waiting if each.cancelled]:
            self.waiting.remove(request)
            request.end_cancelled()
        for request in [each for each in self.running if each.cancelled]:
            request.end_cancelled()
            self._leave(request)

    def _admit(self) -> None:
        while self.waiting and (slot := self._cache.take(self.waiting[0].ids)) is not None:
            request = self.waiting.popleft()
            request.start_in(slot)
            self.running.append(request)

    def _spans(self, requests: Sequence[Request]) -> list[Span]:
        """One token for each chat that decodes; a chunk of the prompt for each that does not, within the budget."""
        decoding = sum(request.pending == 1 for request in requests)
        reading = len(requests) - decoding
        budget = PREFILL_BESIDE if decoding else PREFILL_ALONE
        share = max(1, budget // max(1, reading))
        return [_next_span(request, share) for request in requests]

    def _run(self, spans: Sequence[Span]) -> torch.Tensor:
        self.forwards += 1
        return self._forward(spans)

    def _one_by_one(self, requests: Sequence[Request], spans: Sequence[Span]) -> None:
        """The pass failed for all: run each alone, so that only those fail whose fault it is."""
        for request, span in zip(requests, spans, strict=True):
            try:
                logits = self._run([span])
            except Exception as problem:
                self._fail(request, problem)
            else:
                self._hand_out([request], [span], logits)

    def _hand_out(self, requests: Sequence[Request], spans: Sequence[Span], logits: torch.Tensor) -> None:
        """Note what is cached now, and give each request that has read its whole prompt its next token."""
        for request, span in zip(requests, spans, strict=True):
            _slot_ids(request).extend(span.ids)
        ready = [row for row, request in enumerate(requests) if request.pending == 0]
        if not ready:
            return
        try:
            choices = [requests[row].choice(logits.shape[-1], logits.device) for row in ready]
            tokens = choose(logits[ready], choices)
        except Exception:
            self._choose_one_by_one([requests[row] for row in ready], logits[ready])
            return
        for row, token in zip(ready, tokens, strict=True):
            self._accept(requests[row], token)

    def _choose_one_by_one(self, requests: Sequence[Request], logits: torch.Tensor) -> None:
        """Choosing failed for all: choose for each alone, so that only those fail whose fault it is."""
        for request, row in zip(requests, logits, strict=True):
            try:
                token = choose(row[None], [request.choice(len(row), row.device)])[0]
            except Exception as problem:
                self._fail(request, problem)
            else:
                self._accept(request, token)

    def _accept(self, request: Request, token: int) -> None:
        if request.cancelled:
            return  # dropped at the next step, without another token
        try:
            if token == NOT_FINITE:
                raise EngineError("the model's output is not a number: its weights or its adapter are damaged")
            if request.accept(token):
                self._leave(request)
        except Exception as problem:
            self._fail(request, problem)

    def _fail(self, request: Request, problem: BaseException) -> None:
        request.fail(problem)
        self._leave(request)

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        if request.slot is not None:
            self._cache.release(request.slot)


def _next_span(request: Request, share: int) -> Span:
    start = len(_slot_ids(request))
    assert request.slot is not None
    return Span(request.slot.index, start, request.ids[start : start + share])


def _slot_index(request: Request) -> int:
    assert request.slot is not None
    return request.slot.index


def _slot_ids(request: Request) -> list[int]:
    assert request.slot is not None, "a running request has a slot"
    return request.slot.ids
