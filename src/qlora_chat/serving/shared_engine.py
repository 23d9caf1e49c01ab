"""An engine that many share: behind the gate, and counted.

Scope: wraps any Engine and is one. Page and API both go through it, so that what is counted is everything. Knows no
HTTP and no page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

from qlora_chat.engines import Engine, EngineError, Finish, OutOfMemory, Piece, Stream
from qlora_chat.errors import UserError
from qlora_chat.models import ModelInfo
from qlora_chat.prompt import Prompt, Tokenizer
from qlora_chat.serving.admission import AdmissionTicket, Gate, Overloaded
from qlora_chat.serving.metrics import Metrics
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

PLACES_ELSEWHERE = 64
"""Answers at once for an engine that does not say how many it can write: a server does its own queueing."""


class PromptRefused(UserError, ValueError):
    """The engine cannot take this prompt or adapter; the message says why."""


@dataclass(frozen=True)
class SharedEngine:
    """See the Engine protocol; `stream` raises Overloaded where the queue is full."""

    inner: Engine
    gate: Gate
    metrics: Metrics
    caller: Hashable = None
    """Whose answers these are; None makes every answer its own caller's (a tab of the page has one at a time)."""
    first: bool = False
    """Whether the first of several adapters answers where a caller names none; else it is the model as it was opened."""

    @property
    def info(self) -> ModelInfo:
        """The model, and the adapter that answers."""
        info = self.inner.info
        return replace(info, adapter=info.adapters[0]) if self.first and info.adapters else info

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.inner.tokenizer

    def by(self, caller: Hashable) -> SharedEngine:
        """The same engine for one caller, who names adapters himself."""
        return replace(self, caller=caller, first=False)

    def stream(self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None) -> Stream:
        """Begin an answer, or queue it; the model's own name for `adapter` asks for it without one. Whoever gets the stream
        must iterate it to its end, or close the iterator."""
        try:
            place = self.gate.enter(object() if self.caller is None else self.caller)
        except Overloaded:
            self.metrics.errors.labels("overloaded").inc()
            raise
        info = self.info
        chosen = None if adapter == info.name else adapter or (info.adapter if self.first else None)
        stream = SharedStream(lambda now: self.inner.stream(prompt, now, stops, chosen), place, sampling, prompt, self.metrics)
        if place.state == "running":
            stream.begin()
        return stream

    def close(self) -> None:
        """Close the engine."""
        self.inner.close()


class SharedStream:
    """One answer, from the queue on."""

    def __init__(
        self, start: Callable[[Sampling], Stream], place: AdmissionTicket, sampling: Sampling, prompt: Prompt, metrics: Metrics
    ) -> None:
        self._start, self._place, self._sampling, self._prompt, self._metrics = start, place, sampling, prompt, metrics
        self._stream: Stream | None = None
        self._cancelled = False

    def begin(self) -> None:
        """Start the engine's own stream. Its place is left if that fails, with PromptRefused where the prompt is why."""
        self._metrics.began(time.perf_counter() - self._place.entered)
        try:
            self._stream = self._start(self._sampling)
        except BaseException as problem:
            self._place.leave()
            if type(problem) is ValueError:
                raise PromptRefused(str(problem)) from problem
            raise
        if self._cancelled:
            self._stream.cancel()

    def __iter__(self) -> Iterator[Piece]:
        """The engine's pieces. EngineError if generation fails, Overloaded if another caller's request came first."""
        try:
            if not self._place.wait():
                finish = Finish("cancelled", len(self._prompt.ids), 0, 0, None, None)
                self._metrics.ended(finish)
                yield Piece("", None, finish)
                return
            if self._stream is None:
                self.begin()
            yield from self._counted()
        except Exception as problem:
            self._metrics.failed(kind_of(problem))
            raise
        finally:
            if self._stream:
                self._stream.cancel()
            self._place.leave()

    def _counted(self) -> Iterator[Piece]:
        assert self._stream
        first = True
        for piece in self._stream:
            if first and (piece.finish is None or piece.finish.completion_tokens):
                first = False
                self._metrics.first_token(time.perf_counter() - self._place.entered)
            if piece.finish:
                self._place.leave()  # before the caller hears of the end: its next request finds the place free
                self._metrics.ended(piece.finish)
            yield piece

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token."""
        self._sampling = sampling
        if self._stream:
            self._stream.update(sampling)

    def cancel(self) -> None:
        """End the answer at the next token, or take it out of the queue."""
        self._cancelled = True
        if self._stream:
            self._stream.cancel()
        elif self._place.state == "waiting":
            self._place.leave()


def kind_of(problem: BaseException) -> str:
    """The kind under which an error is counted."""
    match problem:
        case Overloaded():
            return "overloaded"
        case OutOfMemory():
            return "out_of_memory"
        case EngineError():
            return "engine"
        case ValueError():
            return "invalid_request"
        case _:
            return "internal"


def places_of(engine: Engine) -> int:
    """Answers that an engine can write at once."""
    return int(getattr(engine, "slots", PLACES_ELSEWHERE))
