"""The scheduler of the CUDA path: the same requests, moved on by graphs that are started ahead of their results.

Scope: which rows a step has, when the next step may be started before this one's tokens are known, and how prompts are
read. While the same chats answer with the same settings, a step takes its tokens from the step before on the device, and
the host hands out one step's tokens while the next one runs. While others answer, prompts get at most half of the time, and
every token of an answer comes within twice a step's time of the one before: few tokens of a prompt go as rows of the answers'
own steps, more of them through a pass of their own, a slice (slices.py) of which runs before each step.
Where a chat repeats itself, guesses are checked as further rows of a step, which nothing is started behind.
Single-threaded, as engines/core/scheduler.py is.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from qlora_chat.engines import EngineError
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.prompt_lookup import PassCosts, draft_tokens
from qlora_chat.engines.core.request import Request, is_out_of_memory
from qlora_chat.engines.core.request_queue import RequestQueue
from qlora_chat.engines.core.sampler import NO_LOGPROBS, NOT_FINITE, token_logprobs
from qlora_chat.engines.cuda.batch import ScheduledRow, asked_of, cached_of, slot_of, spans_of
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.decode.rows import BUCKETS, Row
from qlora_chat.engines.cuda.prefill.reader import Pass
from qlora_chat.engines.cuda.prefill_budget import Slice, Slices
from qlora_chat.engines.cuda.weights.adapters import CudaAdapters
from qlora_chat.engines.eager.forward import Span

READ_AT_ONCE = 1024
"""Prompt tokens of a pass, of one chat or of several. More would save little: every weight is unpacked once a pass, which is a
fifth of its time for so many tokens on an H200."""
READ_BEFORE_FIRST = 4096
"""Prompt tokens of others that a chat which has been read may wait for before its first token: those who come together then
answer together, at the full rate from the beginning."""
LEAST_AT_ONCE = 32
"""Prompt tokens of a pass, where there is no memory for more."""
AS_ROWS = 64
"""Prompts of so few tokens go through the graphs of the decode steps: unpacking the weights for them would take longer."""
ROWS_AT_ONCE = 32
"""Of a step with such rows, where nobody waits for a next token."""
AS_ROWS_BESIDE = 96
"""The same where others answer, whose steps have rows to spare."""
LEAST_BESIDE = 4
"""Rows that a step must have to spare for a prompt to be read in them."""
STEP_COSTS = (1.0, 1.03, *[1.1] * 2, *[1.22] * 4, *[1.75] * 8, *[2.75] * 16, *[5.2] * 32)
"""What a step of 1 to 64 rows takes, relative to one of one row, before an engine has seen its own: a 7B on an H200."""
WIDER = 1.7
"""Times its own that a step may take with rows of prompts: it is not started ahead, which takes the rest of twice."""
ROWS_BESIDE = {
    chats: max(rows for rows in BUCKETS if STEP_COSTS[rows - 1] <= WIDER * STEP_COSTS[chats - 1]) for chats in BUCKETS
}
"""Rows of a step that reads prompts beside up to so many chats that answer."""
MOST_LATE, LEARN_LATE = 0.002, 0.2
"""Seconds that the card waits for a step, beyond which it was not the host's work for this step alone; and what the newest
counts."""


@dataclass(frozen=True)
class _Started:
    """A step whose tokens have not been handed out."""

    number: int
    asked: Sequence[ScheduledRow]
    rows: int
    ahead: bool
    """Whether it was started before the step before it had ended."""
    read: Slice | None
    """What of a pass over prompts was run before it."""


@dataclass(frozen=True)
class _Reading:
    """A pass over prompts that is under way."""

    requests: Sequence[Request]
    spans: Sequence[Span]
    rest: Pass

    @property
    def tokens(self) -> int:
        return sum(len(span.ids) for span in self.spans)


class CudaScheduler:
    """Moves every request on by one step."""

    def __init__(
        self,
        decoder: Decoder,
        begin: Callable[[Sequence[Span]], Pass],
        cache: KVCache,
        adapters: CudaAdapters,
        costs: PassCosts | None = None,
        prepare: Callable[[], bool] = lambda: False,
    ) -> None:
        """`begin` gives a pass over prompts with the same weights, cache and adapters, in the order of the steps. With `costs`,
        what chats may say next is guessed, and checked where that pays. `prepare` makes one thing that a later step would have
        to make first, where nothing is to be done; False: nothing is missing."""
        self.decoder = decoder
        self.adapters = adapters
        self.costs = costs
        self.chats = RequestQueue(cache)
        self.begin = begin
        self.prepare = prepare
        self._started: deque[_Started] = deque()
        self._rows: list[ScheduledRow] = []
        """Of the steps that are under way, and that the device goes on from by itself."""
        self._reading: _Reading | None = None
        self._slices = Slices(STEP_COSTS)
        self._sliced: Slice | None = None
        """What was run of a pass since the newest step was started: no second one goes before the next step."""
        self._just_read: Sequence[Request] = ()
        """Whose pass has ended since then, while others waited."""
        self._room = READ_AT_ONCE
        """Prompt tokens of a pass that there has been memory for."""
        self._read_since_ready = 0
        """Prompt tokens read while a chat that has been read waits for its first token."""
        self._behind: set[int] = set()
        """Slots of chats that have said something else than the device holds against them as repetition."""
        self._late: float | None = None
        """Seconds for which the device waits for a step that is not started ahead of the one before it: the price of checking
        guesses, besides the rows."""
        self._turn = 0
        """Whose turn it is, where more chats answer than a step has rows."""
        self.forwards = 0
        """Steps and passes over prompts so far."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.chats.idle and not self._started

    def submit(self, request: Request) -> None:
        """Let a request in at the next step; the one thing that other threads may call."""
        self.chats.submit(request)

    def step(self) -> None:
        """Drop the cancelled, admit the waiting, start a step, hand out the tokens of the one before."""
        self.chats.drop_cancelled()
        for request in self.chats.admit():
            self._see(request)
        self._read_beside()
        answering = self._answering()
        reading = [] if self._reading or self._sliced else self._to_be_read()
        guessed = None if reading else self._guesses(answering)
        if self._started and (reading or guessed or not self._goes_on(answering)):
            self._hand_out(self._started.popleft())  # those who leave or change, and what is said, are known only now
            return
        if reading:
            self._read_prompts(answering, reading)
        elif guessed:
            self._check(answering, guessed)
        elif answering:
            self._go_on(answering)

    def cancel_all(self) -> None:
        """End every answer here: nobody is left waiting for a piece that will not come."""
        self._forget_reading()
        self.chats.cancel_all()

    def fail_all(self, problem: BaseException) -> None:
        """Something is wrong with the engine itself: everyone who runs hears of it, and those who wait go on."""
        self._started.clear()
        self._forget_reading()
        self.chats.fail_all(problem)

    def _forget_reading(self) -> None:
        self._reading = self._sliced = None
        self._just_read = ()

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        """Logits after the last token of each span, (R, V) float32, by the graph: for checks, where nothing is generated."""
        for span in spans:
            if len(span.ids) > 1:
                self.begin([Span(span.slot, span.start, span.ids[:-1], logits=0)]).run()
        last = [(span.slot, span.start + len(span.ids) - 1, span.ids[-1]) for span in spans]
        self.decoder.put([Row(*each, adapter=self.adapters.number(each[0])) for each in last])
        self.decoder.finish(self.decoder.start(len(spans)))
        return self.decoder.logits[: len(spans)]

    def _goes_on(self, answering: Sequence[Request]) -> bool:
        """Whether the rows on the device are those of the chats that answer, with the settings of the step to be started."""
        ahead = len(self._started)
        return len(answering) == len(self._rows) and all(
            each.request is request and request.keeps(each.sampling, ahead)
            for each, request in zip(self._rows, answering, strict=True)
        )

    def _to_be_read(self) -> list[Request]:
        return [request for request in self.chats.running if request.pending > 1]

    def _answering(self) -> list[Request]:
        """As many as a step of this card has rows for: all of them, but where shared memory is small and adapters are wide. Who
        has been read since the newest step joins after the next: what it has to wait for is enough."""
        answering = [request for request in self.chats.running if request.pending == 1]
        answering = [each for each in answering if each not in self._just_read] or answering
        most = self.decoder.most_rows
        if len(answering) <= most:
            return answering
        first = self._turn % len(answering)
        return (answering[first:] + answering[:first])[:most]

    def _go_on(self, answering: Sequence[Request]) -> None:
        """Start a step that gives everybody a token, and hand out those of the one before."""
        ahead = len(self._started)
        if not ahead:
            self._rows = asked_of(answering)
            self._put(self._rows_of(self._rows), answering)
        asked = [ScheduledRow(each.request, each.row, each.request.generated + ahead, each.sampling) for each in self._rows]
        self._started.append(self._start(asked, len(asked)))
        if ahead or any(each.sampling.logprobs is not None for each in asked):  # logits are those of the newest step
            self._hand_out(self._started.popleft())

    def _guesses(self, answering: Sequence[Request]) -> list[tuple[int, ...]] | None:
        """What each chat may say next, as far as checking it pays; while a step is under way, as far as is known before it."""
        rows = len(answering)
        if self.costs is None or not rows or self.costs(rows + 1) > 2 * self.costs(rows):
            return None  # not even looked for: where steps are wide, looking takes longer than a row
        room = self.decoder.most_alike(rows) - rows  # beyond it answers would not be the same to the bit
        if not room:
            return None
        costs, late = self.costs, self._late or 0.0
        if self._started:
            late *= 2  # for this step, and for the one behind it
        return draft_tokens([each.propose() for each in answering], rows, lambda wide: costs(wide) + late * (wide > rows), room)

    def _check(self, answering: Sequence[Request], guessed: Sequence[tuple[int, ...]]) -> None:
        """A step with rows for what chats may say next: they get as many tokens as guesses were right, and one."""
        asked = asked_of(answering, guessed)
        rows = self._rows_of(asked)
        self._rows = []
        self._put(rows, answering)
        self._behind |= {slot_of(each.request) for each in asked if each.guessed}
        self._hand_out(self._start(asked, len(rows)))

    def _put(self, rows: Sequence[Row], answering: Sequence[Request]) -> None:
        for request in answering:
            if slot_of(request) in self._behind and request.sampling.repetition_penalty != 1.0:
                self._see(request)
        self.decoder.put(rows)

    def _see(self, request: Request) -> None:
        self.decoder.see(slot_of(request), request.ids)
        self._behind.discard(slot_of(request))

    def _start(self, asked: Sequence[ScheduledRow], rows: int) -> _Started:
        self.forwards += 1
        self._turn += len(asked)
        read, self._sliced, self._just_read = self._sliced, None, ()
        return _Started(self.decoder.start(rows), asked, rows, bool(self._started), read)

    def _read_beside(self) -> None:
        """Where somebody waits for a next token: a slice of a pass over prompts, if none was run since the newest step. Where
        nobody does any more, the rest of the pass."""
        if self._reading and any(request not in self.chats.running for request in self._reading.requests):
            self._reading = None  # who left may have left the slot to another: those who remain begin again
        answering, reading, waits = self._answering(), self._to_be_read(), self._somebody_waits()
        if not self._reading and waits and reading and self._wants_pass(answering, reading, AS_ROWS_BESIDE):
            self._read_since_ready = 0
            self._begin_with(reading)
        if not waits:
            self._sliced = None
        if self._reading and not waits:
            self._go_on_reading()
        elif self._reading and not self._sliced:
            tokens, began = self._reading.tokens, time.perf_counter()
            done = self._go_on_reading(self._slices.weights(len(answering), tokens))
            self._sliced = Slice(done, tokens, time.perf_counter() - began)

    def _somebody_waits(self) -> bool:
        """For a token that is not the first of an answer."""
        return any(request.generated for request in self.chats.running)

    def _wants_pass(self, answering: Sequence[Request], reading: Sequence[Request], as_rows: int) -> bool:
        """Whether so few tokens are too many for rows of steps, or the steps have none to spare."""
        return sum(request.pending - 1 for request in reading) > as_rows or self._to_spare(answering) < LEAST_BESIDE

    def _to_spare(self, answering: Sequence[Request]) -> int:
        """Rows for prompts in a step of those who answer."""
        chats, most = len(answering), ROWS_AT_ONCE
        if chats and self._somebody_waits():
            most = next(rows for up_to, rows in ROWS_BESIDE.items() if chats <= up_to)
        return max(0, min(most, self.decoder.most_rows) - chats)

    def _read_prompts(self, answering: Sequence[Request], reading: Sequence[Request]) -> None:
        """All but a prompt's last token, which goes with the decode steps and chooses the first token of the answer."""
        patient = not self._somebody_waits() and self._read_since_ready < READ_BEFORE_FIRST
        if patient and self._wants_pass(answering, reading, min(AS_ROWS, 2 * self.decoder.most_rows)):
            self._begin_with(reading)
            self._go_on_reading()
            self._read_since_ready += READ_AT_ONCE if answering else 0
            return
        self._read_since_ready = 0  # whoever has waited enough gets a first token from this step
        self._read_as_rows(answering, reading)

    def _begin_with(self, reading: Sequence[Request]) -> None:
        """A pass over as many prompts as it takes, in the order of their arrival."""
        self.forwards += 1
        spans = spans_of(reading, min(READ_AT_ONCE, self._room))
        self._reading = _Reading(reading[: len(spans)], spans, self.begin(spans))

    def _go_on_reading(self, weights: float = math.inf) -> int:
        """With the pass that is under way: with how many weights it was. Where it fails, those who answer go on: less is read
        at once where memory was short, and only then those who were read hear of it."""
        reading = self._reading
        assert reading, "a pass is under way"
        try:
            done = reading.rest.run(weights)
        except Exception as problem:
            self._reading = None
            if is_out_of_memory(problem) and reading.tokens > LEAST_AT_ONCE:
                self._room = max(LEAST_AT_ONCE, reading.tokens // 2)
                return 0  # the next pass reads so many
            for request in reading.requests:
                self.chats.fail(request, problem)
            return 0
        if reading.rest.ended:
            self._reading, self._just_read = None, reading.requests if self._somebody_waits() else ()
            for request, span in zip(reading.requests, reading.spans, strict=True):
                cached_of(request).extend(span.ids)
        return done

    def _read_as_rows(self, decoding: Sequence[Request], reading: Sequence[Request]) -> None:
        """A step that has rows of prompts beside those of the chats that answer. Where all of them end in it, they have their
        first tokens from it: nobody before the others, as a step has fewer rows for prompts once somebody answers, and not if
        it is too wide to compute a row as a step with their last tokens alone would, which is what asking again has."""
        asked = asked_of(decoding)
        rows, room = self._rows_of(asked), self._to_spare(decoding)
        all_of_them = sum(request.pending for request in reading)
        they_answer = all_of_them <= room and len(rows) + all_of_them <= self.decoder.most_alike(len(decoding) + len(reading))
        parts: list[tuple[Request, int]] = []
        for request in reading:
            taken, start, slot = min(request.pending - 1, room), len(cached_of(request)), slot_of(request)
            adapter = self.adapters.number(slot)
            rows += [Row(slot, at, request.ids[at], adapter=adapter) for at in range(start, start + taken)]
            parts.append((request, taken))
            room -= taken
            if they_answer:
                last = ScheduledRow(request, len(rows), request.generated, request.taken_up())
                asked.append(last)
                rows += last.rows(adapter)
                room -= 1
        self._rows = []
        self._put(rows, decoding)
        started = self._start(asked, len(rows))
        for request, taken in parts:
            start = len(cached_of(request))
            cached_of(request).extend(request.ids[start : start + taken])
        self._hand_out(started)

    def _rows_of(self, asked: Sequence[ScheduledRow]) -> list[Row]:
        return [row for each in asked for row in each.rows(self.adapters.number(slot_of(each.request)))]

    def _hand_out(self, step: _Started) -> None:
        """Wait for a step, and give each chat its token; with guesses, one more for each that was right."""
        self.decoder.finish(step.number)
        before, own = self.decoder.took(step.number)
        self._slices.note(step.rows, before, own, step.read)
        if self.costs:
            self.costs.note(step.rows, own)
        if not step.ahead and not step.read and 0.0 < before < MOST_LATE:  # the first of all has none before it
            self._late = before if self._late is None else self._late + LEARN_LATE * (before - self._late)
        for each in step.asked:
            for index in range(1 + len(each.guessed)):
                if not self._takes(each, index):
                    self._behind.add(slot_of(each.request))  # where what is not taken counts as said
                    break
                self._accept(each, index)

    def _takes(self, asked: ScheduledRow, index: int) -> bool:
        """Whether the chat's next token is the one that was chosen so many rows behind its newest."""
        request = asked.request
        if request.cancelled or request not in self.chats.running or not request.keeps(asked.sampling):
            return False  # it was chosen for settings, or an answer, that are no more
        if request.generated != asked.count + index:
            return False  # a token before it was not taken
        return not index or request.ids[-1] == asked.guessed[index - 1]

    def _accept(self, asked: ScheduledRow, index: int) -> None:
        request, row = asked.request, asked.row + index
        token = self.decoder.drawn(row, asked.count + index)
        cached_of(request).append(request.ids[len(cached_of(request))])
        try:
            if token == NOT_FINITE:
                raise EngineError("the model's output is not a number: its weights or its adapter are damaged")
            asked_for = asked.sampling.logprobs is not None
            if request.accept(
                token, token_logprobs(self.decoder.logits[row], token, asked.sampling) if asked_for else NO_LOGPROBS
            ):
                self.chats.leave(request)
        except Exception as problem:
            self.chats.fail(request, problem)
