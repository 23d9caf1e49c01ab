"""The scheduler of the CUDA path: the same requests, moved on by graphs that are started ahead of their results.

Scope: which rows a step has, when the next step may be started before this one's tokens are known, and how prompts are
read. While the same chats answer with the same settings, a step takes its tokens from the step before on the device, and
the host hands out one step's tokens while the next one runs. Prompts get at most half of the time while others answer: few
tokens as rows of the answers' own steps, more of them in passes of their own, each followed by steps for as long as it took.
Where a chat repeats itself, guesses are checked as further rows of a step, which nothing is started behind.
Single-threaded, as engines/scheduler.py is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from qlora_chat.engines import EngineError
from qlora_chat.engines.cache import KVCache
from qlora_chat.engines.chats import Chats
from qlora_chat.engines.cuda.adapters import CudaAdapters
from qlora_chat.engines.cuda.asking import Asked, asked_of, cached_of, slot_of, spans_of
from qlora_chat.engines.cuda.rows import MOST_ROWS, Row
from qlora_chat.engines.cuda.step import Decoder
from qlora_chat.engines.llama import Span
from qlora_chat.engines.request import Request, is_out_of_memory
from qlora_chat.engines.sampling import NOT_ASKED, NOT_FINITE, likely
from qlora_chat.engines.speculation import PassCosts, guesses

READ_AT_ONCE = 1024
"""Prompt tokens of a pass, of one chat or of several, while nobody waits for a next token."""
READ_BEFORE_FIRST = 4096
"""Prompt tokens of others that a chat which has been read may wait for before its first token: those who come together then
answer together, at the full rate from the beginning."""
READ_BESIDE = 512
"""Prompt tokens of a pass while others answer: 17 ms of an H200 for a 7B, which is as long as their next token waits."""
LEAST_AT_ONCE = 32
"""Prompt tokens of a pass, where there is no memory for more."""
AS_ROWS = 32
"""Prompts of so few tokens go through the graph of the decode step: unpacking the weights for them would take longer."""
AS_ROWS_BESIDE = 96
"""The same where others answer, whose steps have rows to spare."""
LEAST_BESIDE = 8
"""Rows that a step must have to spare for a prompt to be read in them."""
ROWS_BESIDE = {8: 16, 24: 32, MOST_ROWS: MOST_ROWS}
"""Rows of a step that reads prompts beside up to so many chats that answer: about twice as long as their own step takes."""
STEP_COSTS = (1.0, 1.04, *[1.17] * 2, *[1.26] * 4, *[1.72] * 8, *[2.85] * 16, *[8.1] * 32)
"""What a step of 1 to 64 rows takes, relative to one of one row, before an engine has seen its own: a 7B on an H200."""


@dataclass(frozen=True)
class _Started:
    """A step whose tokens have not been handed out."""

    number: int
    asked: Sequence[Asked]
    rows: int
    began: float
    """When the host began with it, on the clock of time.perf_counter."""


class CudaScheduler:
    """Moves every request on by one step."""

    def __init__(
        self,
        decoder: Decoder,
        read: Callable[[Sequence[Span]], object],
        cache: KVCache,
        adapters: CudaAdapters,
        costs: PassCosts | None = None,
    ) -> None:
        """`read` is the pass over prompts with the same weights, cache and adapters, in the order of the steps. With `costs`,
        what chats may say next is guessed, and checked where that pays."""
        self.decoder = decoder
        self.adapters = adapters
        self.costs = costs
        self.chats = Chats(cache)
        self._read = read
        self._started: deque[_Started] = deque()
        self._rows: list[Asked] = []
        """Of the steps that are under way, and that the device goes on from by itself."""
        self._room = READ_AT_ONCE
        """Prompt tokens of a pass that there has been memory for."""
        self._read_since_ready = 0
        """Prompt tokens read while a chat that has been read waits for its first token."""
        self._behind: set[int] = set()
        """Slots of chats that have said something else than the device holds against them as repetition."""
        self._ended = 0.0
        """When the newest of the steps that are over was seen to be."""
        self._turn = 0
        """Whose turn it is, where more chats answer than a step has rows."""
        self._answers_until = 0.0
        """Until then those who answer have the card for themselves, after a pass that they had to wait for."""
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
        answering = self._in_turn([request for request in self.chats.running if request.pending == 1])
        reading = [request for request in self.chats.running if request.pending > 1]
        reads = bool(reading) and not (answering and time.perf_counter() < self._answers_until)
        guessed = None if reads else self._guesses(answering)
        if self._started and (reads or guessed or not self._goes_on(answering)):
            self._hand_out(self._started.popleft())  # those who leave or change, and what is said, are known only now
            return
        if reads:
            self._read_prompts(answering, reading)
        elif guessed:
            self._check(answering, guessed)
        elif answering:
            self._go_on(answering)

    def cancel_all(self) -> None:
        """End every answer here: nobody is left waiting for a piece that will not come."""
        self.chats.cancel_all()

    def fail_all(self, problem: BaseException) -> None:
        """Something is wrong with the engine itself: everyone who runs hears of it, and those who wait go on."""
        self._started.clear()
        self.chats.fail_all(problem)

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        """Logits after the last token of each span, (R, V) float32, by the graph: for checks, where nothing is generated."""
        for span in spans:
            if len(span.ids) > 1:
                self._read([Span(span.slot, span.start, span.ids[:-1], logits=0)])
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

    def _in_turn(self, answering: list[Request]) -> list[Request]:
        """As many as a step of this card has rows for: all of them, but where shared memory is small and adapters are wide."""
        most = self.decoder.most_rows
        if len(answering) <= most:
            return answering
        first = self._turn % len(answering)
        return (answering[first:] + answering[:first])[:most]

    def _go_on(self, answering: Sequence[Request]) -> None:
        """Start a step that gives everybody a token, and hand out those of the one before."""
        began, ahead = time.perf_counter(), len(self._started)
        if not ahead:
            self._rows = asked_of(answering)
            self._put(self._rows_of(self._rows), answering)
        asked = [Asked(each.request, each.row, each.request.generated + ahead, each.sampling) for each in self._rows]
        self._started.append(self._start(asked, len(asked), began))
        if ahead or any(each.sampling.logprobs is not None for each in asked):  # logits are those of the newest step
            self._hand_out(self._started.popleft())

    def _guesses(self, answering: Sequence[Request]) -> list[tuple[int, ...]] | None:
        """What each chat may say next, as far as checking it pays; while a step is under way, as far as is known before it."""
        rows = len(answering)
        if self.costs is None or not rows or self.costs(rows + 1) > 2 * self.costs(rows):
            return None  # not even looked for: where steps are wide, looking takes longer than a row
        room = self.decoder.most_alike(rows) - rows  # beyond it answers would not be the same to the bit
        return guesses([request.propose() for request in answering], rows, self.costs, room) if room else None

    def _check(self, answering: Sequence[Request], guessed: Sequence[tuple[int, ...]]) -> None:
        """A step with rows for what chats may say next: they get as many tokens as guesses were right, and one."""
        began = time.perf_counter()
        asked = asked_of(answering, guessed)
        rows = self._rows_of(asked)
        self._rows = []
        self._put(rows, answering)
        self._behind |= {slot_of(each.request) for each in asked if each.guessed}
        self._hand_out(self._start(asked, len(rows), began))

    def _put(self, rows: Sequence[Row], answering: Sequence[Request]) -> None:
        for request in answering:
            if slot_of(request) in self._behind and request.sampling.repetition_penalty != 1.0:
                self._see(request)
        self.decoder.put(rows)

    def _see(self, request: Request) -> None:
        self.decoder.see(slot_of(request), request.ids)
        self._behind.discard(slot_of(request))

    def _start(self, asked: Sequence[Asked], rows: int, began: float) -> _Started:
        self.forwards += 1
        self._turn += len(asked)
        return _Started(self.decoder.start(rows), asked, rows, began)

    def _read_prompts(self, answering: Sequence[Request], reading: Sequence[Request]) -> None:
        """All but a prompt's last token, which goes with the decode steps and chooses the first token of the answer."""
        waiting = sum(request.pending - 1 for request in reading)
        patient = not any(request.generated for request in answering) and self._read_since_ready < READ_BEFORE_FIRST
        if patient and waiting > AS_ROWS:
            self._read_together(reading, READ_AT_ONCE)
            self._read_since_ready += READ_AT_ONCE if answering else 0
            return
        waited_enough = self._read_since_ready >= READ_BEFORE_FIRST  # then this step has the first tokens
        self._read_since_ready = 0
        room = self.decoder.most_rows - len(answering)
        if (waiting > AS_ROWS_BESIDE or room < LEAST_BESIDE) and not waited_enough:
            self._read_beside(reading)
            return
        self._read_as_rows(answering, reading)

    def _read_beside(self, reading: Sequence[Request]) -> None:
        """A pass that those who answer wait for; they then have as long for themselves."""
        began = time.perf_counter()
        self._read_together(reading, READ_BESIDE)
        self.decoder.wait()
        ended = time.perf_counter()
        self._answers_until = ended + (ended - began)

    def _read_together(self, reading: Sequence[Request], room: int) -> None:
        """A pass over up to so many tokens of as many prompts as it takes, in the order of their arrival. Where it fails, those
        who answer go on: less is read at once where memory was short, and only then those who were read hear of it."""
        spans = spans_of(reading, min(room, self._room))
        size = sum(len(span.ids) for span in spans)
        self.forwards += 1
        try:
            self._read(spans)
        except Exception as problem:
            if is_out_of_memory(problem) and size > LEAST_AT_ONCE:
                self._room = max(LEAST_AT_ONCE, size // 2)
                return  # the next step reads so many
            for request, _ in zip(reading, spans, strict=False):
                self.chats.fail(request, problem)
            return
        for request, span in zip(reading, spans, strict=False):
            cached_of(request).extend(span.ids)

    def _read_as_rows(self, decoding: Sequence[Request], reading: Sequence[Request]) -> None:
        """A step that has rows of prompts beside those of the chats that answer."""
        began = time.perf_counter()
        most = next(rows for chats, rows in ROWS_BESIDE.items() if len(decoding) <= chats) if decoding else AS_ROWS
        most = min(most, self.decoder.most_rows)
        asked = asked_of(decoding)
        rows, room = self._rows_of(asked), most - len(decoding)
        parts: list[tuple[Request, int]] = []
        for request in reading:
            taken = min(request.pending - 1, room)
            start = len(cached_of(request))
            slot = slot_of(request)
            adapter = self.adapters.number(slot)
            rows += [Row(slot, at, request.ids[at], adapter=adapter) for at in range(start, start + taken)]
            parts.append((request, taken))
            room -= taken
        self._rows = []
        self._put(rows, decoding)
        started = self._start(asked, len(rows), began)
        for request, taken in parts:
            start = len(cached_of(request))
            cached_of(request).extend(request.ids[start : start + taken])
        self._hand_out(started)

    def _rows_of(self, asked: Sequence[Asked]) -> list[Row]:
        return [row for each in asked for row in each.rows(self.adapters.number(slot_of(each.request)))]

    def _hand_out(self, step: _Started) -> None:
        """Wait for a step, and give each chat its token; with guesses, one more for each that was right."""
        self.decoder.finish(step.number)
        began, self._ended = max(step.began, self._ended), time.perf_counter()
        if self.costs:
            self.costs.note(step.rows, self._ended - began)
        for each in step.asked:
            for index in range(1 + len(each.guessed)):
                if not self._takes(each, index):
                    self._behind.add(slot_of(each.request))  # where what is not taken counts as said
                    break
                self._accept(each, index)

    def _takes(self, asked: Asked, index: int) -> bool:
        """Whether the chat's next token is the one that was chosen so many rows behind its newest."""
        request = asked.request
        if request.cancelled or request not in self.chats.running or not request.keeps(asked.sampling):
            return False  # it was chosen for settings, or an answer, that are no more
        if request.generated != asked.count + index:
            return False  # a token before it was not taken
        return not index or request.ids[-1] == asked.guessed[index - 1]

    def _accept(self, asked: Asked, index: int) -> None:
        request, row = asked.request, asked.row + index
        token = self.decoder.drawn(row, asked.count + index)
        cached_of(request).append(request.ids[len(cached_of(request))])
        try:
            if token == NOT_FINITE:
                raise EngineError("the model's output is not a number: its weights or its adapter are damaged")
            asked_for = asked.sampling.logprobs is not None
            if request.accept(token, likely(self.decoder.logits[row], token, asked.sampling) if asked_for else NOT_ASKED):
                self.chats.leave(request)
        except Exception as problem:
            self.chats.fail(request, problem)
