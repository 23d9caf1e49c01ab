"""How much of a pass over prompts goes between two steps of those who answer: so much that they wait for it as long as for a
step.

Scope: sizes of slices, from what the newest steps and slices took. Knows no chats, no kernels and no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 0.75
"""Of a step's time, for a slice before it: what is left of twice a token's time is for clocks and hosts that are not even."""
NEWEST = 3
"""Steps of which the shortest counts: a slice is not to grow with one that something else held up."""
SLICES = 4
"""The newest slices, of which the slowest counts: products differ in what a weight takes, and the host may be late."""


@dataclass(frozen=True)
class Slice:
    """What was run of a pass between two steps."""

    weights: int
    """That were multiplied with."""
    tokens: int
    """Of the whole pass: each weight was multiplied with so many."""
    launched: float = 0.0
    """Seconds that the host took for it: where that is longer, the device would wait for the step behind it."""


class Slices:
    """Learns what steps and passes take, and cuts by it."""

    def __init__(self, costs: Sequence[float]) -> None:
        """`costs`: what steps of 1, 2, 3, ... rows take, relative to each other, while a step of so many was not seen."""
        self._costs = costs
        self._steps: deque[tuple[int, float]] = deque(maxlen=NEWEST)
        self._paces: deque[tuple[int, float]] = deque(maxlen=SLICES)
        """Seconds a weight, of passes of so many tokens."""

    def weights(self, rows: int, tokens: int) -> float:
        """That a pass over so many tokens may multiply with before a step of so many rows; 0 while nothing is known of it."""
        pace = self._pace_of(tokens)
        return SHARE * self._step(rows) / pace if pace else 0.0

    def note(self, rows: int, before: float, own: float, done: Slice | None) -> None:
        """A step of so many rows took so many seconds of its own, and it was so long from the end of the step before to its
        beginning, with what was `done` of a pass in that time."""
        self._steps.append((rows, own))
        if done and done.weights:
            known, seen = self._pace_of(done.tokens), max(before, done.launched) / done.weights
            self._paces.append((done.tokens, min(seen, 2 * known) if known else seen))

    def _step(self, rows: int) -> float:
        """Seconds; of a wider one than was seen, no more than was seen."""
        cost = self._costs[rows - 1]
        return min((seconds * min(1.0, cost / self._costs[seen - 1]) for seen, seconds in self._steps), default=0.0)

    def _pace_of(self, tokens: int) -> float:
        """Of a longer pass than the newest, as if all of its time went with the tokens; of a shorter one, as if none did."""
        return max((pace * max(1.0, tokens / seen) for seen, pace in self._paces), default=0.0)
