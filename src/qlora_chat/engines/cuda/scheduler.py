"""The scheduler of the CUDA path: continuous batching over captured decode steps.

Scope: the steps and the prefill pass in flight, and their results; which step comes next is policy.py's decision. While the
same chats answer with the same settings, a step takes its tokens from the previous one on the device, and the host hands out
one step's tokens while the next one runs. Long prompts are prefilled in chunks between the steps (prefill_budget.py), short
ones as rows of the steps; drafts are verified as further rows of a step. Single-threaded, as engines/core/scheduler.py is.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.prompt_lookup import PassCosts
from qlora_chat.engines.core.request import Request, is_out_of_memory
from qlora_chat.engines.core.request_queue import RequestQueue
from qlora_chat.engines.cuda.batch import ScheduledRow, prefill_rows, prefill_spans, schedule_rows
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.decode.rows import Row
from qlora_chat.engines.cuda.policy import Action, StepLimits, StepState, plan_step, starts_pass
from qlora_chat.engines.cuda.prefill.reader import PrefillPass
from qlora_chat.engines.cuda.prefill_budget import PrefillBudget, PrefillChunk
from qlora_chat.engines.cuda.weights.adapters import CudaAdapters


@dataclass(frozen=True)
class _Step:
    """A started step whose tokens have not been handed out."""

    number: int
    scheduled: Sequence[ScheduledRow]
    rows: int
    ahead: bool
    """It was started before the previous one had ended."""
    chunk: PrefillChunk | None
    """Prefill that ran before it."""


@dataclass(frozen=True)
class _Prefill:
    """A prefill pass in progress."""

    requests: Sequence[Request]
    spans: Sequence[Span]
    forward: PrefillPass

    @property
    def tokens(self) -> int:
        return sum(len(span.ids) for span in self.spans)


class CudaScheduler:
    """Continuous batching over captured decode steps. Methods are those of core.scheduler.Scheduler."""

    def __init__(
        self,
        decoder: Decoder,
        begin_prefill: Callable[[Sequence[Span]], PrefillPass],
        cache: KVCache,
        adapters: CudaAdapters,
        costs: PassCosts | None = None,
        warm_up: Callable[[], bool] = lambda: False,
        limits: StepLimits = StepLimits(),  # noqa: B008  (frozen)
    ) -> None:
        """`begin_prefill` begins a pass with the same weights, cache and adapters, on the decoder's stream. With `costs`,
        drafts are verified where that pays. `warm_up` as in Scheduler."""
        self._queue, self.adapters = RequestQueue(cache), adapters
        self.submit = self._queue.submit
        self.forwards = 0
        self.decoder, self.costs, self.limits = decoder, costs, limits
        self.begin_prefill, self.warm_up = begin_prefill, warm_up
        self._adapter_number = adapters.number
        self._in_flight: deque[_Step] = deque()
        self._device_rows: list[ScheduledRow] = []
        """Rows that the device advances by itself from step to step."""
        self._budget = PrefillBudget(limits)
        self._prefill: _Prefill | None = None
        self._chunk: PrefillChunk | None = None
        """The chunk that has run since the newest step was started: only one goes before the next step."""
        self._prefilled: Sequence[Request] = ()
        """Requests whose pass has ended since then, while others answer."""
        self._max_pass_tokens = limits.pass_tokens
        """Lowered where memory was short."""
        self._waited_tokens = 0
        self._stale_seen: set[int] = set()
        """Slots whose tokens differ from those that the device holds for the repetition penalty."""
        self._host_gap_s: float | None = None
        self._rotation = 0
        """Offset into the decoding chats, where they are more than a step's rows."""

    @property
    def idle(self) -> bool:
        return self._queue.idle and not self._in_flight

    def step(self) -> None:
        self._queue.drop_cancelled()
        for request in self._queue.admit():
            self._set_seen(request)
        self._prefill_between_steps()
        decoding, prompts = self._decoding(), self._prompts()
        state = self._state(decoding, prompts)
        plan = plan_step(
            state, self.limits, self.costs, self.decoder.max_equal_rows, lambda: [request.draft() for request in decoding]
        )
        if plan.action is Action.COLLECT:
            self._hand_out(self._in_flight.popleft())
        elif plan.action is Action.PREFILL_PASS:
            self._begin_pass(prompts)
            self._advance_pass()
            self._waited_tokens += self.limits.pass_tokens if decoding else 0
        elif plan.prefill_rows:
            self._mixed_step(decoding, prompts, plan.prefill_rows, plan.first_tokens)
        elif plan.drafts:
            self._draft_step(decoding, plan.drafts)
        elif plan.action is Action.STEP:
            self._decode_step(decoding)
        self._queue.report_prefill()

    def cancel_all(self) -> None:
        self._drop_prefill()
        self._queue.cancel_all()

    def fail_all(self, problem: BaseException) -> None:
        self._in_flight.clear()
        self._drop_prefill()
        self._queue.fail_all(problem)

    def compute_logits(self, spans: Sequence[Span]) -> Tensor:
        """Logits (R, V) float32 after the last token of each span, through the graph, for checks; only while idle."""
        for span in spans:
            if len(span.ids) > 1:
                self.begin_prefill([Span(span.slot, span.start, span.ids[:-1], logits=0)]).run()
        last = [(span.slot, span.start + len(span.ids) - 1, span.ids[-1]) for span in spans]
        self.decoder.set_rows([Row(*each, adapter=self._adapter_number(each[0])) for each in last])
        self.decoder.finish(self.decoder.start(len(spans)))
        return self.decoder.logits[: len(spans)]

    # --- state --------------------------------------------------------------------------------------------------------

    def _state(self, decoding: Sequence[Request], prompts: Sequence[Request]) -> StepState:
        return StepState(
            decoding=len(decoding), prompts=[request.pending for request in prompts], answering=self._answering(),
            max_rows=self.decoder.max_rows, in_flight=bool(self._in_flight),
            unchanged=bool(self._in_flight) and self._unchanged(decoding), waited_tokens=self._waited_tokens,
            host_gap_s=self._host_gap_s or 0.0,
        )  # fmt: skip

    def _answering(self) -> bool:
        return any(request.generated for request in self._queue.running)

    def _prompts(self) -> list[Request]:
        """Requests to prefill in the next step; none while a pass or a chunk of one goes before it."""
        return [] if self._prefill or self._chunk else [request for request in self._queue.running if request.pending > 1]

    def _decoding(self) -> list[Request]:
        """Requests with a row in the next step: all that decode, in turns where adapters leave a step few rows. Those of a pass
        that has just ended join one step later: the others have waited for its last chunk already."""
        decoding = [request for request in self._queue.running if request.pending == 1]
        decoding = [each for each in decoding if each not in self._prefilled] or decoding
        most = self.decoder.max_rows
        if len(decoding) <= most:
            return decoding
        first = self._rotation % len(decoding)
        return (decoding[first:] + decoding[:first])[:most]

    def _unchanged(self, decoding: Sequence[Request]) -> bool:
        """True if the device's rows are those of the decoding chats, with the settings of the step to be started."""
        ahead = len(self._in_flight)
        return len(decoding) == len(self._device_rows) and all(
            row.request is request and request.sampling_unchanged(row.sampling, ahead)
            for row, request in zip(self._device_rows, decoding, strict=True)
        )

    # --- steps --------------------------------------------------------------------------------------------------------

    def _decode_step(self, decoding: Sequence[Request]) -> None:
        """Start a step that gives every chat a token, and hand out those of the previous one."""
        ahead = len(self._in_flight)
        if not ahead:
            self._device_rows = schedule_rows(decoding)
            self._set_rows(self._rows_of(self._device_rows), decoding)
        scheduled = [
            ScheduledRow(each.request, each.row, each.request.generated + ahead, each.sampling) for each in self._device_rows
        ]
        self._in_flight.append(self._start(scheduled, len(scheduled)))
        # logits are those of the newest step, and a token within a grammar is sampled from them here
        if ahead or any(each.sampling.logprobs is not None or each.request.grammar for each in scheduled):
            self._hand_out(self._in_flight.popleft())

    def _draft_step(self, decoding: Sequence[Request], drafts: Sequence[tuple[int, ...]]) -> None:
        """Verify drafts as further rows: each chat gets its accepted draft tokens, and one more."""
        scheduled = schedule_rows(decoding, drafts)
        rows = self._rows_of(scheduled)
        self._device_rows = []
        self._set_rows(rows, decoding)
        self._stale_seen |= {each.request.running_slot.index for each in scheduled if each.draft}
        self._hand_out(self._start(scheduled, len(rows)))

    def _mixed_step(
        self, decoding: Sequence[Request], prompts: Sequence[Request], counts: Sequence[int], first_tokens: bool
    ) -> None:
        """Prefill the next `counts` tokens of the prompts as rows of the decoding chats' step. With `first_tokens` their last
        tokens are rows too."""
        self._waited_tokens = 0
        scheduled = schedule_rows(decoding)
        rows = self._rows_of(scheduled)
        for request, count in zip(prompts, counts, strict=True):
            adapter = self._adapter_number(request.running_slot.index)
            rows += prefill_rows(request, count, adapter)
            if first_tokens:
                scheduled.append(ScheduledRow(request, len(rows), request.generated, request.apply_pending_sampling()))
                rows += scheduled[-1].rows(adapter)
        self._device_rows = []
        self._set_rows(rows, decoding)
        step = self._start(scheduled, len(rows))
        for request, count in zip(prompts, counts, strict=True):
            start = len(request.running_slot.ids)
            request.running_slot.ids.extend(request.ids[start : start + count])
        self._hand_out(step)

    def _rows_of(self, scheduled: Sequence[ScheduledRow]) -> list[Row]:
        return [row for each in scheduled for row in each.rows(self._adapter_number(each.request.running_slot.index))]

    def _set_rows(self, rows: Sequence[Row], decoding: Sequence[Request]) -> None:
        for request in decoding:
            if request.running_slot.index in self._stale_seen and request.sampling.repetition_penalty != 1.0:
                self._set_seen(request)
        self.decoder.set_rows(rows)

    def _set_seen(self, request: Request) -> None:
        self.decoder.set_seen(request.running_slot.index, request.ids)
        self._stale_seen.discard(request.running_slot.index)

    def _start(self, scheduled: Sequence[ScheduledRow], rows: int) -> _Step:
        self.forwards += 1
        self._rotation += len(scheduled)
        chunk, self._chunk, self._prefilled = self._chunk, None, ()
        return _Step(self.decoder.start(rows), scheduled, rows, bool(self._in_flight), chunk)

    # --- prefill passes -----------------------------------------------------------------------------------------------

    def _prefill_between_steps(self) -> None:
        """Run one chunk of a pass before the next step; the whole rest of it where no chat waits for a next token."""
        if self._prefill and any(request not in self._queue.running for request in self._prefill.requests):
            self._prefill = None  # the slot of a request that left may have another owner: the others start again
        if not self._answering():
            self._chunk = None
            if self._prefill:
                self._advance_pass()
            return
        prompts = self._prompts()
        if prompts and starts_pass(self._state(self._decoding(), prompts), self.limits):
            self._waited_tokens = 0
            self._begin_pass(prompts)
        if self._prefill and not self._chunk:
            tokens, started = self._prefill.tokens, time.perf_counter()
            weights = self._advance_pass(self._budget.weights(len(self._decoding()), tokens))
            self._chunk = PrefillChunk(weights, tokens, time.perf_counter() - started)

    def _begin_pass(self, prompts: Sequence[Request]) -> None:
        """Begin a pass over as many prompts as it takes, in the order of their arrival."""
        self.forwards += 1
        spans = prefill_spans(prompts, self._max_pass_tokens)
        self._prefill = _Prefill(prompts[: len(spans)], spans, self.begin_prefill(spans))

    def _advance_pass(self, weights: float = math.inf) -> int:
        """Run the pass in progress up to so many weights; returns their number. A failure spares the answering chats: passes
        become smaller where memory was short, and only then the pass's requests fail."""
        prefill = self._prefill
        assert prefill, "a pass is in progress"
        try:
            done = prefill.forward.run(weights)
        except Exception as problem:
            self._prefill = None
            if is_out_of_memory(problem) and prefill.tokens > self.limits.min_pass_tokens:
                self._max_pass_tokens = max(self.limits.min_pass_tokens, prefill.tokens // 2)
                return 0
            for request in prefill.requests:
                self._queue.fail(request, problem)
            return 0
        if prefill.forward.ended:
            self._prefill, self._prefilled = None, prefill.requests if self._answering() else ()
            for request, span in zip(prefill.requests, prefill.spans, strict=True):
                request.running_slot.ids.extend(span.ids)
        return done

    def _drop_prefill(self) -> None:
        self._prefill = self._chunk = None
        self._prefilled = ()

    # --- results ------------------------------------------------------------------------------------------------------

    def _hand_out(self, step: _Step) -> None:
        """Wait for a step and give each chat its token, and one more for each accepted draft token."""
        self.decoder.finish(step.number)
        gap_s, step_s = self.decoder.step_seconds(step.number)
        self._note_times(step, gap_s, step_s)
        for scheduled in step.scheduled:
            for index in range(1 + len(scheduled.draft)):
                if not self._is_valid(scheduled, index):
                    self._stale_seen.add(scheduled.request.running_slot.index)  # the device counts the rejected token as seen
                    break
                self._accept_row(scheduled, index)

    def _note_times(self, step: _Step, gap_s: float, step_s: float) -> None:
        self._budget.note(step.rows, gap_s, step_s, step.chunk)
        if self.costs:
            self.costs.note(step.rows, step_s)
        if not step.ahead and not step.chunk and 0.0 < gap_s < self.limits.host_gap_outlier_s:  # 0: the very first step
            known = gap_s if self._host_gap_s is None else self._host_gap_s
            self._host_gap_s = known + self.limits.host_gap_rate * (gap_s - known)

    def _is_valid(self, scheduled: ScheduledRow, index: int) -> bool:
        """True if the token of the row `index` behind the chat's first is the answer's next."""
        request = scheduled.request
        if request.cancelled or request not in self._queue.running or not request.sampling_unchanged(scheduled.sampling):
            return False  # the answer has ended, or its settings have changed since
        if request.generated != scheduled.count + index:
            return False  # an earlier token was rejected
        return not index or request.ids[-1] == scheduled.draft[index - 1]

    def _accept_row(self, scheduled: ScheduledRow, index: int) -> None:
        """Hand out the token of the row `index` behind the chat's first."""
        request, row = scheduled.request, scheduled.row + index
        cached = request.running_slot.ids
        cached.append(request.ids[len(cached)])
        logits = self.decoder.logits[row]
        try:
            grammar = request.grammar
            token = (
                request.sample_within_grammar(logits) if grammar else self.decoder.sampled_token(row, scheduled.count + index)
            )
        except Exception as problem:
            self._queue.fail(request, problem)
            return
        self._queue.accept(request, token, logits, scheduled.sampling)
