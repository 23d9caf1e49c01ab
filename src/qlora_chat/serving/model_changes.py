"""Changes of the model behind a server: when no answer is being written, one at a time, with a record of what happens.

Scope: the gate, the wait for running answers, and the thread. Opening and closing models is the ModelSwitch's work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from qlora_chat.engines import Engine, EngineError
from qlora_chat.errors import UserError
from qlora_chat.models import Notify
from qlora_chat.serving.shared_engine import SharedEngine, slots_of
from qlora_chat.settings import ModelSettings

PATIENCE_S = 25.0
"""Longest time that a change waits for running answers, as a shutdown does."""
POLL_S = 0.05
PAUSED = "The model is being switched. Send this again in a moment."


@runtime_checkable
class SwitchableEngine(Protocol):
    """An engine whose model can be replaced while the program runs."""

    @property
    def settings(self) -> ModelSettings: ...
    def switch(self, settings: ModelSettings, notify: Notify) -> None:
        """Load another model; UserError where it cannot be, and the old one answers then."""
        ...


@dataclass
class ModelChange:
    """One change, from its beginning to its end."""

    settings: ModelSettings
    state: Literal["running", "done", "failed"] = "running"
    lines: list[str] = field(default_factory=list)
    """Steps so far, in words, for the person who waits."""
    problem: str = ""
    seconds: float | None = None
    """Time that it took, without the wait for answers."""


class ModelChanges:
    """The changes of one server."""

    def __init__(self, shared: SharedEngine, on_end: Callable[[], None] = lambda: None, patience_s: float = PATIENCE_S) -> None:
        """`on_end` is called after each change, whether it succeeded or not."""
        self._shared, self._on_end, self._patience_s = shared, on_end, patience_s
        self._lock = threading.Lock()
        self.newest: ModelChange | None = None

    @staticmethod
    def switchable(engine: Engine) -> SwitchableEngine | None:
        """The engine behind a gate as one that can be switched; None for any other."""
        inner = engine.inner if isinstance(engine, SharedEngine) else engine
        return inner if isinstance(inner, SwitchableEngine) else None

    @property
    def is_measuring(self) -> bool:
        """True while the speed of a model that was just loaded is not known yet."""
        return self._shared.speed.measuring

    def start(self, settings: ModelSettings) -> ModelChange:
        """Begin to switch. EngineError where the engine cannot, or where another change is running."""
        switch = self.switchable(self._shared)
        if switch is None:
            raise EngineError("Other servers compute the answers here: their models are switched there.")
        with self._lock:
            if self.newest and self.newest.state == "running":
                raise EngineError("The model is being switched already: wait for the end of that.")
            change = self.newest = ModelChange(settings)
        threading.Thread(target=self._run, args=(switch, change), name="qlora-chat-switch", daemon=True).start()
        return change

    def _run(self, switch: SwitchableEngine, change: ModelChange) -> None:
        gate = self._shared.gate
        gate.paused = PAUSED
        try:
            self._wait_for_answers(change)
            began = time.perf_counter()
            switch.switch(change.settings, change.lines.append)
            gate.slots, change.seconds = slots_of(self._shared.inner), time.perf_counter() - began
            state: Literal["done", "failed"] = "done"
        except (UserError, OSError, MemoryError) as problem:
            change.problem, state = str(problem), "failed"
        except BaseException as problem:
            change.problem, state = f"The model could not be switched ({type(problem).__name__}: {problem}).", "failed"
        finally:
            gate.paused = None
        self._shared.speed.forget()
        self._on_end()
        change.state = state

    def _wait_for_answers(self, change: ModelChange) -> None:
        """EngineError if answers are still being written after the patience."""
        gate, until = self._shared.gate, time.monotonic() + self._patience_s
        if gate.running + gate.waiting:
            change.lines.append("Answers are still being written: they may end first.")
        while count := gate.running + gate.waiting:
            if time.monotonic() > until:
                raise EngineError(f"Answers are still being written ({count}): stop them, or wait for their end, then switch.")
            time.sleep(POLL_S)
