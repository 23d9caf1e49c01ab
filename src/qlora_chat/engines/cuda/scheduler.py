"""The scheduler of the CUDA path: the same requests, moved on by graphs that are started ahead of their results.

Scope: which rows a step has, when the next step may be started before this one's tokens are known, and how prompts are
read. While the same chats answer with the same settings, a step takes its tokens from the step before on the device, and
the host hands out one step's tokens while the next one runs. Prompts get at most half of the time while others answer: few
tokens as rows of the answers' own steps, more of them in passes of their own, each followed by steps for as long as it took.
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
from qlora_chat.engines.cuda.rows import MOST_ROWS, Row
from qlora_chat.engines.cuda.step import Decoder
from qlora_chat.engines.llama import Span
from qlora_chat.engines.request import Request
from qlora_chat.settings import Sampling

READ_AT_ONCE = 1024
"""Prompt tokens of a pass, of one chat or of several, while nobody waits for a next token."""
READ_BEFORE_FIRST = 4096
"""Prompt tokens of others that a chat which has been read may wait for before its first token: those who come together then
answer together, at the full rate from the beginning."""
READ_BESIDE = 512
"""Prompt tokens of a pass while others answer: 17 ms of an H200 for a 7B, which is as long as their next token waits."""
AS_ROWS = 32
"""Prompts of so few tokens go through the graph of the decode step: unpacking the weights for them would take longer."""
AS_ROWS_BESIDE = 96
"""The same where others answer, whose steps have rows to spare."""
ROWS_BESIDE = {8: 16, 24: 32, MOST_ROWS: MOST_ROWS}
"""Rows of a step that reads prompts beside up to so many chats that answer: about twice as long as their own step takes."""


@dataclass(frozen=True)
class _Asked:
    """A row of a started step that will give its chat a token."""

    request: Request
    row: int
    count: int
    sampling: Sampling


@dataclass(frozen=True)
class _Started:
    """A step whose tokens have not been handed out."""

    number: int
    asked: Sequence[_Asked]


class CudaScheduler:
    """Moves every request on by one step."""

    def __init__(
        self, decoder: Decoder, read: Callable[[Sequence[Span]], object], cache: KVCache, adapters: CudaAdapters
    ) -> None:
        """`read` is the pass over prompts with the same weights, cache and adapters, in the order of the steps."""
        self.decoder = decoder
        self.adapters = adapters
        self.chats = Chats(cache)
        self._read = read
        self._started: deque[_Started] = deque()
        self._rows: list[_Asked] = []
        """Of the steps that are under way, and that the device goes on from by itself."""
        self._read_since_ready = 0
        """Prompt tokens read while a chat that has been read waits for its first token."""
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
            assert request.slot is not None
            self.decoder.see(request.slot.index, request.ids)
        answering = [request for request in self.chats.running if request.pending == 1]
        reading = [request for request in self.chats.running if request.pending > 1]
        reads = bool(reading) and not (answering and time.perf_counter() < self._answers_until)
        if self._started and (reads or not self._goes_on(answering)):
            self._hand_out(self._started.popleft())  # those who leave or change are known only now
            return
        if reads:
            self._read_prompts(answering, reading)
            return
        if not answering:
            return
        if not self._started:
            self._put(answering)
        self._start()
        if len(self._started) > 1:
            self._hand_out(self._started.popleft())

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

    def _put(self, requests: Sequence[Request]) -> None:
        self._rows = _asked(requests)
        self.decoder.put([self._newest(each) for each in self._rows])

    def _start(self) -> None:
        ahead = len(self._started)
        number = self.decoder.start(len(self._rows))
        self.forwards += 1
        asked = [_Asked(each.request, each.row, each.request.generated + ahead, each.sampling) for each in self._rows]
        self._started.append(_Started(number, asked))

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
        if waiting > AS_ROWS_BESIDE and not waited_enough:
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
        """A pass over up to so many tokens of as many prompts as it takes, in the order of their arrival."""
        spans = []
        for request in reading:
            start = len(_cached(request))
            ids = request.ids[start : min(start + room, len(request.ids) - 1)]
            spans.append(Span(_slot(request), start, ids, logits=0))
            room -= len(ids)
            if not room:
                break
        self._read(spans)
        self.forwards += 1
        for request, span in zip(reading, spans, strict=False):
            _cached(request).extend(span.ids)

    def _read_as_rows(self, decoding: Sequence[Request], reading: Sequence[Request]) -> None:
        """A step that has rows of prompts beside those of the chats that answer."""
        most = next(rows for chats, rows in ROWS_BESIDE.items() if len(decoding) <= chats) if decoding else AS_ROWS
        asked = _asked(decoding)
        rows, room = [self._newest(each) for each in asked], most - len(decoding)
        parts: list[tuple[Request, int]] = []
        for request in reading:
            taken = min(request.pending - 1, room)
            start = len(_cached(request))
            slot = _slot(request)
            adapter = self.adapters.number(slot)
            rows += [Row(slot, at, request.ids[at], adapter=adapter) for at in range(start, start + taken)]
            parts.append((request, taken))
            room -= taken
        self._rows = []
        self.decoder.put(rows)
        number = self.decoder.start(len(rows))
        self.forwards += 1
        for request, taken in parts:
            start = len(_cached(request))
            _cached(request).extend(request.ids[start : start + taken])
        self._hand_out(_Started(number, asked))

    def _newest(self, asked: _Asked) -> Row:
        """The row that chooses a chat's next token."""
        request, sampling, slot = asked.request, asked.sampling, _slot(asked.request)
        return Row(
            slot, len(request.ids) - 1, request.ids[-1], True, request.generated, sampling.temperature, sampling.top_p,
            sampling.top_k, sampling.repetition_penalty, request.seed, self.adapters.number(slot),
        )  # fmt: skip

    def _hand_out(self, step: _Started) -> None:
        self.decoder.finish(step.number)
        for each in step.asked:
            request = each.request
            if request.cancelled or request not in self.chats.running or request.sampling is not each.sampling:
                continue  # its token was chosen for settings, or an answer, that are no more
            if request.generated != each.count:
                continue  # a token before it was not taken
            _cached(request).append(request.ids[len(_cached(request))])
            self._accept(request, self.decoder.drawn(each.row, each.count))

    def _accept(self, request: Request, token: int) -> None:
        try:
            if token < 0:
                raise EngineError("the model's output is not a number: its weights or its adapter are damaged")
            if request.accept(token):
                self.chats.leave(request)
        except Exception as problem:
            self.chats.fail(request, problem)


def _asked(requests: Sequence[Request]) -> list[_Asked]:
    """A row each, with the settings that are due for its next token."""
    return [_Asked(request, row, request.generated, request.taken_up()) for row, request in enumerate(requests)]


def _slot(request: Request) -> int:
    assert request.slot is not None, "a running request has a slot"
    return request.slot.index


def _cached(request: Request) -> list[int]:
    assert request.slot is not None, "a running request has a slot"
    return request.slot.ids
