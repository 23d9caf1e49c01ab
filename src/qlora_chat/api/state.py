"""What the routes share: the chat once it is open, the limits, and the counting."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from qlora_chat.api.errors import ApiError
from qlora_chat.chat import Chat
from qlora_chat.engines import AdapterHost
from qlora_chat.serving.admission import Gate
from qlora_chat.serving.lifecycle import Lifecycle
from qlora_chat.serving.metrics import Metrics
from qlora_chat.serving.shared_engine import SharedEngine, places_of
from qlora_chat.settings import ServeSettings

LOADING_RETRY_SECONDS = 5


@dataclass
class Serving:
    """One server's state. `open` it when the model is loaded."""

    settings: ServeSettings
    keeps_turns: bool = False
    """Whether turns outlive the program or are sent on: then a client may ask for its own to be kept."""
    metrics: Metrics = field(default_factory=Metrics)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    started: int = field(default_factory=lambda: int(time.time()))
    _chat: Chat | None = None
    _engine: SharedEngine | None = None

    def open(self, chat: Chat) -> Chat:
        """The same chat behind the gate: from now on requests are taken, the page's and the API's alike."""
        gate = Gate(places_of(chat.engine), self.settings.queue)
        self._engine = SharedEngine(chat.engine, gate, self.metrics, first=isinstance(chat.engine, AdapterHost))
        self._chat = replace(chat, engine=self._engine)
        self.metrics.watch_gate(gate)
        self.lifecycle.opened()
        return self._chat

    def drain(self) -> None:
        """Take nothing new; what is being answered, or waits for it, goes on to its end."""
        self.lifecycle.drain()
        if self._engine:
            self._engine.gate.closed = True

    @property
    def chat(self) -> Chat:
        """The open chat. ApiError 503 while there is none, or when the server is about to end."""
        if self.lifecycle.phase == "draining":
            raise ApiError(503, "The server is shutting down. Send the request again.", "shutting_down", retry_after=5)
        if self._chat is None:
            text = "The model is still being loaded. Try again in a few seconds."
            raise ApiError(503, text, "loading", retry_after=LOADING_RETRY_SECONDS)
        return self._chat

    def engine(self, caller: Hashable) -> SharedEngine:
        """The engine as one caller has it. ApiError as for `chat`."""
        _ = self.chat
        assert self._engine
        return self._engine.by(caller)

    @property
    def adapters(self) -> AdapterHost:
        """The engine as it takes and lets go of adapters. ApiError 400 where it cannot."""
        _ = self.chat
        assert self._engine
        if not isinstance(self._engine.inner, AdapterHost):
            raise ApiError(400, "This engine takes no adapters while it runs: its servers have their own.", "unsupported")
        return self._engine.inner

    @property
    def unfinished(self) -> int:
        """Answers being written, and those that wait for their place."""
        return self._engine.gate.running + self._engine.gate.waiting if self._engine else 0
