"""Schedulers: which tokens go through the model in the next step, and which answers they continue.

Scope: the Scheduler protocol of every in-process backend, and SpanScheduler, which runs one forward pass over spans a step
(engines/eager, engines/cpu); the CUDA path has its own (engines/cuda/scheduler.py). Knows no text formats and no pages.

Shapes: R rows of logits, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qlora_chat.engines.core.forward_pass import AdapterPass, ForwardPass, Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.prompt_lookup import PassCosts, select_drafts
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.request_queue import RequestQueue
from qlora_chat.engines.core.sampler import Sampler, sample
from qlora_chat.settings import Sampling

PREFILL_BUDGET_IDLE = 512
"""Prompt tokens a pass while no chat decodes: enough to keep the hardware busy, few enough to cancel soon."""
PREFILL_BUDGET_MIXED = 64
"""Prompt tokens a pass while others decode, whose next tokens must not wait for a long prompt."""


class Scheduler(Protocol):
    """Moves the requests of one engine on, a step at a time. All but `submit` belongs to the engine's thread."""

    forwards: int
    """Forward passes so far."""

    @property
    def idle(self) -> bool:
        """True if there is no request."""
        ...

    @property
    def adapters(self) -> AdapterPass:
        """Pass that adapters are packed for."""
        ...

    def submit(self, request: Request) -> None:
        """Add a request at the next step. Safe from any thread."""
        ...

    def step(self) -> None:
        """Drop cancelled requests, admit waiting ones, run the model once, and hand out the new tokens."""
        ...

    def warm_up(self) -> bool:
        """Prepare one thing that a later step would have to prepare first; returns True if there may be more to prepare."""
        ...

    def compute_logits(self, spans: Sequence[Span]) -> Tensor:
        """Logits (R, V) float32 as ForwardPass returns them, for checks; only while idle."""
        ...

    def cancel_all(self) -> None:
        """End every request, so that no caller waits for a piece that will not come."""
        ...

    def fail_all(self, problem: BaseException) -> None:
        """End every running request with an error; the waiting ones stay."""
        ...


class SpanScheduler:
    """Continuous batching over spans: one forward pass a step over the decoding chats' newest tokens and prefill chunks.

    Methods are those of Scheduler.
    """

    def __init__(self, forward: ForwardPass, cache: KVCache, costs: PassCosts | None = None, sample: Sampler = sample) -> None:
        """With `costs`, drafts of next tokens are verified in the same pass wherever that pays."""
        self._forward, self._costs, self._sample = forward, costs, sample
        self._queue = RequestQueue(cache)
        self.forwards = 0
        self.submit, self.cancel_all, self.fail_all = self._queue.submit, self._queue.cancel_all, self._queue.fail_all

    @property
    def idle(self) -> bool:
        return self._queue.idle

    @property
    def adapters(self) -> AdapterPass:
        return self._forward

    def warm_up(self) -> bool:
        return False

    def compute_logits(self, spans: Sequence[Span]) -> Tensor:
        return self._forward(spans)

    def step(self) -> None:
        self._queue.drop_cancelled()
        self._queue.admit()
        if not self._queue.running:
            return
        # neighbours in the cache share one attention
        requests = sorted(self._queue.running, key=lambda request: request.running_slot.index)
        spans = self._spans(requests)
        started = time.perf_counter()
        done = self._run(requests, spans)
        self._queue.report_prefill()
        if done and self._costs and all(len(span.ids) == span.logits for span in spans):
            self._costs.note(sum(span.logits for span in spans), time.perf_counter() - started)

    def _spans(self, requests: Sequence[Request]) -> list[Span]:
        """For each decoding chat its newest token, and a draft where that pays; for each other chat a prefill chunk within
        the budget."""
        decoding = [request for request in requests if request.pending == 1]
        prefilling = len(requests) - len(decoding)
        budget = PREFILL_BUDGET_MIXED if decoding else PREFILL_BUDGET_IDLE
        chunk = max(1, budget // max(1, prefilling))
        spans = [_next_span(request, chunk) for request in requests]
        if not (self._costs and decoding):
            return spans
        base_tokens = sum(len(span.ids) for span in spans)
        drafts = select_drafts([request.draft() for request in decoding], base_tokens, self._costs)
        if not drafts:
            return spans
        draft_of = dict(zip(decoding, drafts, strict=True))
        return [_with_draft(span, draft_of.get(request, ())) for request, span in zip(requests, spans, strict=True)]

    def _run(self, requests: Sequence[Request], spans: Sequence[Span]) -> bool:
        """Run a pass and hand out its tokens. False if it failed: each chat then runs alone, so that only a bad one fails."""
        self.forwards += 1
        try:
            logits = self._forward(spans)
        except Exception as problem:
            if len(requests) == 1:
                self._queue.fail(requests[0], problem)
            else:
                for request, span in zip(requests, spans, strict=True):
                    self._run([request], [span])
            return False
        self._hand_out(requests, spans, logits)
        return True

    def _hand_out(self, requests: Sequence[Request], spans: Sequence[Span], logits: Tensor) -> None:
        """Record the cached tokens, and give each request whose prefill is complete its next token, or several."""
        outputs: list[_Output] = []
        row = 0
        for request, span in zip(requests, spans, strict=True):
            certain = len(span.ids) - span.logits + 1
            request.running_slot.ids.extend(span.ids[:certain])
            if request.pending == 0:
                outputs.append(_Output(request, span.ids[certain:], logits[row : row + span.logits]))
            row += span.logits
        if not outputs:
            return
        contiguous = logits if sum(len(each.logits) for each in outputs) == len(logits) else None
        self._hand_out_samples(outputs, contiguous)

    def _hand_out_samples(self, outputs: Sequence[_Output], logits: Tensor | None = None) -> None:
        """Sample for all chats; where that fails, for each alone, so that only those at fault fail. `logits` as in
        _sample_free."""
        try:
            samples = self._sample_all(outputs, logits)
        except Exception as problem:
            if len(outputs) == 1:
                self._queue.fail(outputs[0].request, problem)
            else:
                for output in outputs:
                    self._hand_out_samples([output])
            return
        for output, tokens in zip(outputs, samples, strict=True):
            self._accept_all(output, tokens)

    def _sample_all(self, outputs: Sequence[_Output], logits: Tensor | None) -> list[_Samples]:
        """Sample for each chat, in one call for all without a grammar; `logits` as in _sample_free."""
        free = [each for each in outputs if each.request.grammar is None]
        if len(free) == len(outputs):
            return self._sample_free(outputs, logits)
        samples = iter(self._sample_free(free, None) if free else ())
        return [next(samples) if each.request.grammar is None else self._sample_constrained(each) for each in outputs]

    def _sample_constrained(self, output: _Output) -> _Samples:
        """Sample for a chat with a grammar: from the tokens that may come next."""
        sampling = output.request.apply_pending_sampling()
        return _Samples([output.request.sample_within_grammar(output.logits[0], self._sample)], sampling)

    def _sample_free(self, outputs: Sequence[_Output], logits: Tensor | None) -> list[_Samples]:
        """Sample all rows in one call; `logits` are those of all outputs where they are contiguous already."""
        if logits is None:
            logits = torch.cat([each.logits for each in outputs])
        inputs = [each.request.sampler_inputs(each.draft, logits.shape[-1], logits.device) for each in outputs]
        tokens = iter(self._sample(logits, [row for rows in inputs for row in rows]))
        return [_Samples([next(tokens) for _ in rows], rows[0].sampling) for rows in inputs]

    def _accept_all(self, output: _Output, samples: _Samples) -> None:
        """Accept tokens up to the first wrong drafted one. A token behind it, or one sampled with settings that have changed
        meanwhile, continues another text."""
        request = output.request
        for index, token in enumerate(samples.tokens):
            if index:
                previous = samples.tokens[index - 1]
                if previous != output.draft[index - 1] or not request.sampling_unchanged(samples.sampling):
                    return
                request.running_slot.ids.append(previous)
            # a cancelled request is dropped at the next step, without another token
            if request.cancelled or not self._queue.accept(request, token, output.logits[index], request.sampling):
                return


@dataclass(frozen=True)
class _Output:
    """Logits of a chat that receives its next token in this step."""

    request: Request
    draft: Sequence[int]
    logits: Tensor
    """(1 + draft, V)."""


@dataclass(frozen=True)
class _Samples:
    """Tokens sampled for one chat, each as if the draft before it were right."""

    tokens: Sequence[int]
    sampling: Sampling


def _with_draft(span: Span, draft: Sequence[int]) -> Span:
    return Span(span.slot, span.start, [*span.ids, *draft], logits=1 + len(draft)) if draft else span


def _next_span(request: Request, chunk: int) -> Span:
    start = len(request.running_slot.ids)
    return Span(request.running_slot.index, start, request.ids[start : start + chunk])
