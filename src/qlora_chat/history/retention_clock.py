"""The time that retention goes by: the clock's, as far as it can be believed.

Scope: arithmetic, and the form in which the state is stored. A program cannot know whether a clock that jumped ahead is wrong,
or time has passed while nothing ran. So a jump counts up to a limit, and the rest when the clock has gone on evenly for long.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Protocol

DAY = 86_400.0
BELIEVED_AFTER = 30 * DAY
"""A clock that has gone on evenly for so long is believed, whatever it did before."""
DRIFT = 60.0
"""Seconds, and a hundredth, by which the two clocks of a machine may differ between two checks."""
FACT = "retention clock"


class Facts(Protocol):
    """Values by name that outlive the process. May raise HistoryError."""

    def read(self, name: str) -> str | None:
        """The value, or None."""
        ...

    def write(self, name: str, value: str) -> None:
        """Store the value; durable on return."""
        ...


@dataclass(frozen=True)
class RetentionClock:
    """All in seconds; `time` and `seen` since 1970."""

    time: float
    """The time that counts."""
    seen: float
    """The clock at the last check."""
    steady: float = 0.0
    """Time for which the clock has gone on without a jump."""

    def advanced(self, now: float, most: float) -> RetentionClock:
        """The state at the next check, up to which no more than `most` seconds are believed to have passed."""
        passed = now - self.seen
        counted = min(max(passed, 0.0), most)
        jumped = passed < -DRIFT or passed > most
        steady = 0.0 if jumped else self.steady + counted
        moment = now if steady >= BELIEVED_AFTER else min(self.time + counted, now)
        return RetentionClock(moment, now, steady)

    def text(self) -> str:
        """The state as it is stored."""
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str | None) -> RetentionClock | None:
        """A stored state; None for anything else."""
        try:
            numbers = {name: float(value) for name, value in json.loads(text or "").items()}
            return RetentionClock(**numbers)
        except (ValueError, TypeError, AttributeError):
            return None


class Stopwatch:
    """Time between two checks by a clock that nobody sets; it goes on while the machine sleeps, where the system has one."""

    def __init__(self) -> None:
        self._at = _uptime()

    def lap(self) -> float:
        """Seconds since the last call, or since the start, with what two clocks may differ."""
        before, self._at = self._at, _uptime()
        return (self._at - before) * 1.01 + DRIFT


def most_at_start(days: float) -> float:
    """Seconds that a start believes to have passed since the last check: half of the period, but a long weekend at least."""
    return max(days / 2, 3.0) * DAY


def first_clock(newest: float | None, now: float, days: float) -> RetentionClock:
    """State of a history that has none, from its newest change."""
    began = RetentionClock(now if newest is None else min(newest, now), now if newest is None else newest)
    return replace(began.advanced(now, most_at_start(days)), steady=0.0)


def _uptime() -> float:
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)
