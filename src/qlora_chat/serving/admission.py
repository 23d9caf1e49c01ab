"""Admission of requests to the engine: run now, wait in a bounded queue, or be refused.

Scope: slots and a queue, fair between callers whatever each of them sends. Blocking, since every answer is read by a thread
of its own. Knows no HTTP and no engine.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Hashable
from typing import Literal

from qlora_chat.engines import EngineError

MAX_RETRY_S = 60
INITIAL_ANSWER_S = 5.0
"""Assumed duration of an answer until some have been measured."""
NEWEST_WEIGHT = 0.2
"""Weight of the newest answer in the moving average of durations."""


class Overloaded(EngineError):
    """The queue is full. `retry_after` is the number of seconds until another try makes sense."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"The server is busy: {waiting} requests are waiting already. Try again in {retry_after} s.")
        self.retry_after = retry_after


class AdmissionTicket:
    """One answer's admission: waiting, then running. Release it once, whatever happens."""

    def __init__(self, gate: Gate, caller: Hashable) -> None:
        self.caller = caller
        self.state: Literal["waiting", "running", "released", "evicted"] = "waiting"
        self.entered = time.perf_counter()
        self.started = 0.0
        self._gate = gate
        self._changed = threading.Event()

    def wait(self) -> bool:
        """Block until the answer may start; False if it was released before. Overloaded if it was evicted from the queue."""
        self._changed.wait()
        if self.state == "evicted":
            raise self._gate.overloaded()
        return self.state == "running"

    def release(self) -> None:
        """Free the slot or leave the queue; safe from any thread, and more than once."""
        self._gate.release(self)

    def set_state(self, state: Literal["running", "released", "evicted"]) -> None:
        """Record the gate's decision and wake who waits."""
        self.state = state
        self._changed.set()


class Gate:
    """`slots` answers at once and `queue_limit` waiting requests, for any number of threads.

    The next slot goes to the caller with the fewest running answers, and among equals to the one served longest ago. A full
    queue takes another caller's request by evicting the newest one of the caller with the most requests in it.
    """

    def __init__(self, slots: int, queue_limit: int) -> None:
        self.slots, self.queue_limit = slots, queue_limit
        self.closed = False
        """True if new requests are refused for good; admitted ones go on."""
        self.paused: str | None = None
        """Reason why new requests are refused for a moment; admitted ones go on."""
        self._lock = threading.Lock()
        self._running: list[AdmissionTicket] = []
        self._waiting: list[AdmissionTicket] = []
        self._last_start: dict[Hashable, float] = {}
        self._answer_s = INITIAL_ANSWER_S

    @property
    def running(self) -> int:
        """Number of running answers."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._waiting)

    def admit(self, caller: Hashable) -> AdmissionTicket:
        """Ticket that runs at once or waits. Overloaded if the queue is full, EngineError if the gate is closed or paused."""
        if self.closed:
            raise EngineError("The server is shutting down. Send this again in a moment.")
        if self.paused:
            raise EngineError(self.paused)
        ticket = AdmissionTicket(self, caller)
        with self._lock:
            if len(self._running) < self.slots and not self._waiting:
                self._start(ticket)
                return ticket
            if len(self._waiting) >= self.queue_limit:
                self._evict_for(caller)
            self._waiting.append(ticket)
        return ticket

    def release(self, ticket: AdmissionTicket) -> None:
        """Free a ticket's slot, and start who is next."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                ticket.set_state("released")
            if ticket not in self._running:
                return
            self._running.remove(ticket)
            ticket.state = "released"
            self._answer_s += NEWEST_WEIGHT * (time.perf_counter() - ticket.started - self._answer_s)
            while self._waiting and len(self._running) < self.slots:
                self._start(self._next())

    def overloaded(self) -> Overloaded:
        """Refusal with the time in which half of the waiting requests should have run."""
        ahead = max(1, self.waiting // 2)
        seconds = math.ceil(ahead * self._answer_s / self.slots)
        return Overloaded(self.waiting, max(1, min(MAX_RETRY_S, seconds)))

    def _start(self, ticket: AdmissionTicket) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        ticket.started = self._last_start[ticket.caller] = time.perf_counter()
        self._running.append(ticket)
        ticket.set_state("running")

    def _next(self) -> AdmissionTicket:
        running = Counter(ticket.caller for ticket in self._running)
        last_start = self._last_start
        self._last_start = {each.caller: last_start.get(each.caller, 0.0) for each in (*self._waiting, *self._running)}
        return min(self._waiting, key=lambda each: (running[each.caller], self._last_start[each.caller], each.entered))

    def _evict_for(self, caller: Hashable) -> None:
        if not self._waiting:
            raise self.overloaded()
        counts = Counter(ticket.caller for ticket in self._waiting)
        greediest, most = counts.most_common(1)[0]
        if most <= counts[caller] + 1:
            raise self.overloaded()
        newest = next(ticket for ticket in reversed(self._waiting) if ticket.caller == greediest)
        self._waiting.remove(newest)
        newest.set_state("evicted")
