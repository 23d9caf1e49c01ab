"""State that the routes share: the chat once it is open, limits, metrics."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from qlora_chat.api.errors import ApiError
from qlora_chat.api.responses.earlier_answers import RememberedAnswers
from qlora_chat.chat import Chat
from qlora_chat.engines import AdapterHost
from qlora_chat.serving.admission import Gate
from qlora_chat.serving.metrics import Metrics, Phase
from qlora_chat.serving.shared_engine import SharedEngine, slots_of
from qlora_chat.settings import ServeSettings

LOADING_RETRY_S = 5


@dataclass
class ServerState:
    """One server's state; call `open` when the model is loaded."""

    settings: ServeSettings
    can_store: bool = False
    """True if turns are saved beyond this process or sent on, so that a client may ask to store its own."""
    history_on: bool = False
    """True if conversations outlive the process."""
    metrics: Metrics = field(default_factory=Metrics)
    phase: Phase = "loading"
    remembered: RememberedAnswers = field(default_factory=RememberedAnswers)
    """Answers of /v1/responses that clients can continue, though they are stored nowhere."""
    started: int = field(default_factory=lambda: int(time.time()))
    _chat: Chat | None = None
    _engine: SharedEngine | None = None

    def open(self, chat: Chat) -> Chat:
        """Take requests from now on. Returns the chat behind the gate, for the page."""
        gate = Gate(slots_of(chat.engine), self.settings.queue)
        self._engine = SharedEngine(chat.engine, gate, self.metrics, defaults_to_first=isinstance(chat.engine, AdapterHost))
        self._chat = replace(chat, engine=self._engine)
        self.metrics.watch_gate(gate)
        if self.phase == "loading":
            self.phase = "ready"
        return self._chat

    def drain(self) -> None:
        """Take no new requests; admitted ones go on to their end."""
        self.phase = "draining"
        if self._engine:
            self._engine.gate.closed = True

    @property
    def chat(self) -> Chat:
        """The open chat. ApiError 503 before it is open, and while the server shuts down."""
        if self.phase == "draining":
            raise ApiError(503, "The server is shutting down. Send the request again.", "shutting_down", retry_after=5)
        if self._chat is None:
            text = "The model is still being loaded. Try again in a few seconds."
            raise ApiError(503, text, "loading", retry_after=LOADING_RETRY_S)
        return self._chat

    def engine(self, caller: Hashable) -> SharedEngine:
        """The engine for one caller. ApiError as for `chat`."""
        return self._open_engine().for_caller(caller)

    @property
    def adapters(self) -> AdapterHost:
        """The engine as it loads and unloads adapters. ApiError 400 if it cannot, and as for `chat`."""
        inner = self._open_engine().inner
        if not isinstance(inner, AdapterHost):
            raise ApiError(400, "This engine takes no adapters while it runs: its servers have their own.", "unsupported")
        return inner

    @property
    def unfinished(self) -> int:
        """Number of answers that run or wait."""
        return self._engine.gate.running + self._engine.gate.waiting if self._engine else 0

    def _open_engine(self) -> SharedEngine:
        _ = self.chat
        assert self._engine
        return self._engine
