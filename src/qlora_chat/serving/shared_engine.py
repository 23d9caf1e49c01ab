"""An engine shared by many callers: behind the gate, and counted.

Scope: wraps any Engine and is one. Page and API both use it, so metrics cover everything. Knows no HTTP and no page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace

from qlora_chat.engines import Engine, EngineError, Finish, OutOfMemory, Piece, Stream
from qlora_chat.errors import UserError
from qlora_chat.messages import AnswerSchema
from qlora_chat.models import ModelInfo
from qlora_chat.prompt import Prompt, Tokenizer
from qlora_chat.serving.admission import AdmissionTicket, Gate, Overloaded
from qlora_chat.serving.metrics import Metrics
from qlora_chat.serving.speed import Speed
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

DEFAULT_SLOTS = 64
"""Concurrent answers of an engine that does not report its slots: a remote server does its own queueing."""
ERROR_KINDS = {
    Overloaded: "overloaded", OutOfMemory: "out_of_memory", EngineError: "engine", ValueError: "invalid_request",
}  # fmt: skip
"""Labels of errors in the metrics; the first that fits counts."""


class PromptRefused(UserError, ValueError):
    """The engine refuses this prompt or adapter; the message says why."""


@dataclass(frozen=True)
class SharedEngine:
    """See the Engine protocol; `stream` raises Overloaded if the queue is full."""

    inner: Engine
    gate: Gate
    metrics: Metrics
    caller: Hashable = None
    """Caller of these answers; None makes each answer a caller of its own (a tab of the page has one at a time)."""
    defaults_to_first: bool = False
    """True if the first of several adapters answers when a caller names none; else the model as it was opened does."""
    speed: Speed = field(default_factory=Speed)

    @property
    def info(self) -> ModelInfo:
        """The model, and the adapter that answers."""
        info = self.inner.info
        return replace(info, adapter=info.adapters[0]) if self.defaults_to_first and info.adapters else info

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.inner.tokenizer

    def for_caller(self, caller: Hashable) -> SharedEngine:
        """The same engine for one caller, who names adapters itself."""
        return replace(self, caller=caller, defaults_to_first=False)

    def stream(
        self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None, schema: AnswerSchema | None = None
    ) -> Stream:
        """Start an answer, or queue it; `adapter` may be the model's own name, for the model without an adapter. The stream
        must be iterated to its end, or its iterator closed."""
        try:
            ticket = self.gate.admit(object() if self.caller is None else self.caller)
        except Overloaded:
            self.metrics.errors.labels("overloaded").inc()
            raise
        info = self.info
        used = None if adapter == info.name else adapter or (info.adapter if self.defaults_to_first else None)
        begin = lambda now: self.inner.stream(prompt, now, stops, used, schema)  # noqa: E731
        stream = SharedStream(self, begin, ticket, sampling, prompt)
        if ticket.state == "running":
            stream.start()
        return stream

    def check_schema(self, schema: AnswerSchema) -> None:
        """SchemaError if answers cannot be held to it."""
        self.inner.check_schema(schema)

    def close(self) -> None:
        """Close the engine."""
        self.inner.close()


class SharedStream:
    """One answer, its wait in the queue included."""

    def __init__(
        self,
        shared: SharedEngine,
        begin: Callable[[Sampling], Stream],
        ticket: AdmissionTicket,
        sampling: Sampling,
        prompt: Prompt,
    ) -> None:
        self._begin, self._ticket, self._sampling, self._prompt = begin, ticket, sampling, prompt
        self._metrics, self._speed = shared.metrics, shared.speed
        self._stream: Stream | None = None
        self._cancelled = False

    def start(self) -> None:
        """Start the engine's own stream. The ticket is released if that fails; PromptRefused if the prompt is the reason."""
        self._metrics.queue_seconds.observe(time.perf_counter() - self._ticket.entered)
        try:
            self._stream = self._begin(self._sampling)
        except BaseException as problem:
            self._ticket.release()
            if type(problem) is ValueError:
                raise PromptRefused(str(problem)) from problem
            raise
        if self._cancelled:
            self._stream.cancel()

    def __iter__(self) -> Iterator[Piece]:
        """Yield the engine's pieces. EngineError if generation fails, Overloaded if the request was evicted from the queue."""
        try:
            if not self._ticket.wait():
                finish = Finish("cancelled", len(self._prompt.ids), 0, 0, None, None)
                self._metrics.finished(finish)
                yield Piece("", None, finish)
                return
            if self._stream is None:
                self.start()
            yield from self._counted()
        except Exception as problem:
            self._metrics.failed(error_kind(problem))
            raise
        finally:
            if self._stream:
                self._stream.cancel()
            self._ticket.release()

    def _counted(self) -> Iterator[Piece]:
        assert self._stream
        first = True
        for piece in self._stream:
            if first and not piece.prefill and (piece.finish is None or piece.finish.completion_tokens):
                first = False
                self._metrics.first_token_seconds.observe(time.perf_counter() - self._ticket.entered)
            if piece.finish:
                self._ticket.release()  # before the caller sees the end, so that the slot is free for its next request
                self._metrics.finished(piece.finish)
                self._speed.observe(piece.finish)
            yield piece

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token."""
        self._sampling = sampling
        if self._stream:
            self._stream.update(sampling)

    def cancel(self) -> None:
        """End the answer at the next token, or remove it from the queue."""
        self._cancelled = True
        if self._stream:
            self._stream.cancel()
        elif self._ticket.state == "waiting":
            self._ticket.release()


def error_kind(problem: BaseException) -> str:
    """Label of an error in the metrics."""
    return next((label for kind, label in ERROR_KINDS.items() if isinstance(problem, kind)), "internal")


def slots_of(engine: Engine) -> int:
    """Number of answers that an engine can generate at once."""
    return int(getattr(engine, "slots", DEFAULT_SLOTS))
