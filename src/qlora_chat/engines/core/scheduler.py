"""Which tokens go through the model next, and whose answers come out.

Scope: one step at a time, for all chats together: admit, lay out spans, run, sample, hand on. Single-threaded; the
engine around it owns the thread. Knows no text formats and no pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from qlora_chat.engines import EngineError
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.prompt_lookup import PassCosts, draft_tokens
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.request_queue import RequestQueue
from qlora_chat.engines.core.sampler import NOT_FINITE, SamplerInput, sample, token_logprobs
from qlora_chat.engines.eager.forward import Span
from qlora_chat.settings import Sampling

PREFILL_ALONE = 512
"""Prompt tokens a pass when nobody waits for a next token: enough to keep the hardware busy, few enough to cancel soon."""
PREFILL_BESIDE = 64
"""Prompt tokens a pass while others are answering: their next token must not wait for a long prompt."""
Choose = Callable[[torch.Tensor, Sequence[SamplerInput]], list[int]]
"""Logits (R, V) and each row's settings -> the rows' tokens."""


class Scheduler:
    """Moves every request on by one forward pass a step."""

    def __init__(
        self,
        forward: Callable[[Sequence[Span]], torch.Tensor],
        cache: KVCache,
        costs: PassCosts | None = None,
        sample: Choose = sample,
    ) -> None:
        """With `costs`, what chats may say next is guessed, and checked in the same pass where that pays. `choose` picks
        tokens as sampling.choose does."""
        self._forward, self._costs, self._choose = forward, costs, sample
        self._chats = RequestQueue(cache)
        self.forwards = 0
        """Forward passes so far."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._chats.idle

    def warm_up(self) -> bool:
        """Prepare something that a later step would have to prepare first: nothing, here."""
        return False

    def compute_logits(self, spans: Sequence[Span]) -> torch.Tensor:
        """The pass itself, for checks; only while idle."""
        return self._forward(spans)

    def compute_with(self, forward: Callable[[Sequence[Span]], torch.Tensor]) -> None:
        """Use another pass over the same cache from the next step on."""
        self._forward = forward

    def submit(self, request: Request) -> None:
        """Let a request in at the next step; the one thing that other threads may call."""
        self._chats.submit(request)

    def step(self) -> None:
        """Drop the cancelled, admit the waiting, run one forward pass, hand out one token a chat that is ready for it."""
        self._chats.drop_cancelled()
        self._chats.admit()
        if not self._chats.running:
            return
        requests = sorted(self._chats.running, key=_slot_index)  # neighbours in the cache share one attention
        spans = self._spans(requests)
        began = time.perf_counter()
        try:
            logits = self._run(spans)
        except Exception:
            self._one_by_one(requests, spans)
            return
        self._hand_out(requests, spans, logits)
        if self._costs and all(len(span.ids) == span.logits for span in spans):
            self._costs.note(sum(span.logits for span in spans), time.perf_counter() - began)

    def cancel_all(self) -> None:
        """End every answer here: nobody is left waiting for a piece that will not come."""
        self._chats.cancel_all()

    def fail_all(self, problem: BaseException) -> None:
        """Something is wrong with the engine itself: everyone who runs hears of it, and those who wait go on."""
        self._chats.fail_all(problem)

    def _spans(self, requests: Sequence[Request]) -> list[Span]:
        """The newest token of each chat that decodes, and guesses for the next ones where they pay; a chunk of the prompt for
        each that does not, within the budget."""
        decoding = [request for request in requests if request.pending == 1]
        reading = len(requests) - len(decoding)
        budget = PREFILL_BESIDE if decoding else PREFILL_ALONE
        share = max(1, budget // max(1, reading))
        spans = [_next_span(request, share) for request in requests]
        if self._costs and decoding:
            certain = sum(len(span.ids) for span in spans)
            if guessed := draft_tokens([request.propose() for request in decoding], certain, self._costs):
                of = dict(zip(decoding, guessed, strict=True))
                spans = [_with_guesses(span, of.get(request, ())) for request, span in zip(requests, spans, strict=True)]
        return spans

    def _run(self, spans: Sequence[Span]) -> torch.Tensor:
        self.forwards += 1
        return self._forward(spans)

    def _one_by_one(self, requests: Sequence[Request], spans: Sequence[Span]) -> None:
        """The pass failed for all: run each alone, so that only those fail whose fault it is."""
        for request, span in zip(requests, spans, strict=True):
            try:
                logits = self._run([span])
            except Exception as problem:
                self._chats.fail(request, problem)
            else:
                self._hand_out([request], [span], logits)

    def _hand_out(self, requests: Sequence[Request], spans: Sequence[Span], logits: torch.Tensor) -> None:
        """Note what is cached now, and give each request that has read its whole prompt its next token, or several."""
        ready: list[_Ready] = []
        row = 0
        for request, span in zip(requests, spans, strict=True):
            certain = len(span.ids) - span.logits + 1
            _slot_ids(request).extend(span.ids[:certain])
            if request.pending == 0:
                ready.append(_Ready(request, span.ids[certain:], logits[row : row + span.logits]))
            row += span.logits
        if not ready:
            return
        together = logits if sum(len(each.logits) for each in ready) == len(logits) else None
        try:
            runs = self._chosen(ready, together)
        except Exception:
            self._choose_one_by_one(ready)
            return
        for each, run in zip(ready, runs, strict=True):
            self._accept_run(each, run)

    def _choose_one_by_one(self, ready: Sequence[_Ready]) -> None:
        """Choosing failed for all: choose for each alone, so that only those fail whose fault it is."""
        for each in ready:
            try:
                run = self._chosen([each])[0]
            except Exception as problem:
                self._chats.fail(each.request, problem)
            else:
                self._accept_run(each, run)

    def _chosen(self, ready: Sequence[_Ready], logits: torch.Tensor | None = None) -> list[_Run]:
        """Draw all tokens at once; `logits` are those of all of them, where they already lie together."""
        if logits is None:
            logits = torch.cat([each.logits for each in ready])
        choices = [each.request.choices(each.guessed, logits.shape[-1], logits.device) for each in ready]
        tokens = iter(self._choose(logits, [choice for each in choices for choice in each]))
        return [_Run([next(tokens) for _ in each], each[0].sampling) for each in choices]

    def _accept_run(self, ready: _Ready, run: _Run) -> None:
        """Accept tokens for as long as each guess was right: a token after a wrong one, or one chosen with settings that
        were changed meanwhile, was chosen for another text."""
        for index, token in enumerate(run.tokens):
            if index:
                before = run.tokens[index - 1]
                if before != ready.guessed[index - 1] or not ready.request.keeps(run.sampling):
                    return
                _slot_ids(ready.request).append(before)
            if not self._accept(ready.request, token, ready.logits[index]):
                return

    def _accept(self, request: Request, token: int, logits: torch.Tensor) -> bool:
        """Whether the answer goes on."""
        if request.cancelled:
            return False  # dropped at the next step, without another token
        try:
            if token == NOT_FINITE:
                raise EngineError("the model's output is not a number: its weights or its adapter are damaged")
            ended = request.accept(token, token_logprobs(logits, token, request.sampling))
        except Exception as problem:
            self._chats.fail(request, problem)
            return False
        if ended:
            self._chats.leave(request)
        return not ended


@dataclass(frozen=True)
class _Ready:
    """A chat that gets its next token now."""

    request: Request
    guessed: Sequence[int]
    logits: torch.Tensor
    """(1 + guessed, V)."""


@dataclass(frozen=True)
class _Run:
    """Tokens drawn for one chat, each as if the guesses before it were right."""

    tokens: Sequence[int]
    sampling: Sampling


def _with_guesses(span: Span, draft_tokens: Sequence[int]) -> Span:
    return Span(span.slot, span.start, [*span.ids, *draft_tokens], logits=1 + len(draft_tokens)) if draft_tokens else span


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
