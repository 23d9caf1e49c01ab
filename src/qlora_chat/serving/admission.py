"""Who may be answered now, who waits, and who is turned away.

Scope: places and a bounded queue, fair between callers whatever each of them sends. Blocking, since whoever reads an
answer has a thread for it. Knows no HTTP and no engine.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Hashable
from typing import Literal

from qlora_chat.engines import EngineError

LONGEST_RETRY_SECONDS = 60
FIRST_GUESS_SECONDS = 5.0
"""How long an answer takes, until some have been seen."""
NEWEST_SHARE = 0.2
"""Weight of the newest answer in the running mean of how long answers take."""


class Overloaded(EngineError):
    """The queue is full. `retry_after` says in how many seconds it is worth trying again."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"The server is busy: {waiting} requests are waiting already. Try again in {retry_after} s.")
        self.retry_after = retry_after


class Closing(EngineError):
    """The server is about to end."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down. Send this again in a moment.")


class AdmissionTicket:
    """One answer's place: in the queue first, then among those being written. Leave it once, whatever happens."""

    def __init__(self, gate: Gate, caller: Hashable) -> None:
        self.caller = caller
        self.state: Literal["waiting", "running", "left", "turned away"] = "waiting"
        self.entered = time.perf_counter()
        self.began = 0.0
        self._gate = gate
        self._changed = threading.Event()

    def wait(self) -> bool:
        """Block until the answer may begin; False if its place was left meanwhile. Overloaded if it had to make room."""
        self._changed.wait()
        if self.state == "turned away":
            raise self._gate.overloaded()
        return self.state == "running"

    def leave(self) -> None:
        """Give the place up; safe from any thread, and more than once."""
        self._gate.leave(self)

    def change(self, state: Literal["running", "left", "turned away"]) -> None:
        """What the gate decided."""
        self.state = state
        self._changed.set()


class Gate:
    """`places` answers at once and `queue` waiting behind them, for any number of threads.

    The next place goes to the caller with the fewest answers being written, and among equals to the one served longest
    ago. A full queue takes another caller's request by turning away the newest one of whoever has most in it.
    """

    def __init__(self, places: int, queue: int) -> None:
        self.places, self.queue = places, queue
        self.closed = False
        """Whether nobody is let in any more; those who are in stay."""
        self._lock = threading.Lock()
        self._running: list[AdmissionTicket] = []
        self._waiting: list[AdmissionTicket] = []
        self._served: dict[Hashable, float] = {}
        self._seconds = FIRST_GUESS_SECONDS

    @property
    def running(self) -> int:
        """Answers being written."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def enter(self, caller: Hashable) -> AdmissionTicket:
        """A place, at once or in the queue. Overloaded where there is room in neither, Closing at the server's end."""
        if self.closed:
            raise Closing
        place = AdmissionTicket(self, caller)
        with self._lock:
            if len(self._running) < self.places and not self._waiting:
                self._begin(place)
                return place
            if len(self._waiting) >= self.queue:
                self._make_room(caller)
            self._waiting.append(place)
        return place

    def leave(self, place: AdmissionTicket) -> None:
        """Free a place, and let in whoever is next."""
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
                place.change("left")
            if place not in self._running:
                return
            self._running.remove(place)
            place.state = "left"
            self._seconds += NEWEST_SHARE * (time.perf_counter() - place.began - self._seconds)
            while self._waiting and len(self._running) < self.places:
                self._begin(self._next())

    def overloaded(self) -> Overloaded:
        """What someone who cannot be served is told: by when half of those who wait should have been served."""
        ahead = max(1, self.waiting // 2)
        seconds = math.ceil(ahead * self._seconds / self.places)
        return Overloaded(self.waiting, max(1, min(LONGEST_RETRY_SECONDS, seconds)))

    def _begin(self, place: AdmissionTicket) -> None:
        if place in self._waiting:
            self._waiting.remove(place)
        place.began = self._served[place.caller] = time.perf_counter()
        self._running.append(place)
        place.change("running")

    def _next(self) -> AdmissionTicket:
        writing = Counter(place.caller for place in self._running)
        self._served = {each.caller: self._served.get(each.caller, 0.0) for each in (*self._waiting, *self._running)}
        return min(self._waiting, key=lambda place: (writing[place.caller], self._served[place.caller], place.entered))

    def _make_room(self, caller: Hashable) -> None:
        if not self._waiting:
            raise self.overloaded()
        counts = Counter(place.caller for place in self._waiting)
        greediest, most = counts.most_common(1)[0]
        if most <= counts[caller] + 1:
            raise self.overloaded()
        newest = next(place for place in reversed(self._waiting) if place.caller == greediest)
        self._waiting.remove(newest)
        newest.change("turned away")
