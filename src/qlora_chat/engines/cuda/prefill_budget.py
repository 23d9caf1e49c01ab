"""The size of the prefill chunk between two steps: such that answers wait for it no longer than for a step.

Scope: learns from the newest steps and chunks. Knows no chats, no kernels and no clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from qlora_chat.engines.cuda.policy import StepLimits


@dataclass(frozen=True)
class PrefillChunk:
    """The part of a prefill pass that ran between two steps."""

    weights: int
    """Weights that it multiplied with."""
    tokens: int
    """Tokens of the whole pass, each of which meets every weight."""
    host_s: float = 0.0
    """Host time to launch it; where that is longer than the device's, the device waits for the next step."""


class PrefillBudget:
    """Learns the times of steps and passes."""

    def __init__(self, limits: StepLimits) -> None:
        self._share, self._costs = limits.chunk_share, limits.step_costs
        self._steps: deque[tuple[int, float]] = deque(maxlen=limits.recent_steps)
        """Rows and seconds."""
        self._chunks: deque[tuple[int, float]] = deque(maxlen=limits.recent_chunks)
        """Tokens of the pass, and seconds per weight."""

    def weights(self, rows: int, tokens: int) -> float:
        """Weights that a pass over so many tokens may multiply with before a step of so many rows; 0 before anything is
        known."""
        weight_s = self._weight_s(tokens)
        return self._share * self._step_s(rows) / weight_s if weight_s else 0.0

    def note(self, rows: int, gap_s: float, step_s: float, chunk: PrefillChunk | None) -> None:
        """Record a step: `gap_s` from the end of the previous one to its beginning, in which the `chunk` ran, if any."""
        self._steps.append((rows, step_s))
        if chunk and chunk.weights:
            known, measured = self._weight_s(chunk.tokens), max(gap_s, chunk.host_s) / chunk.weights
            self._chunks.append((chunk.tokens, min(measured, 2 * known) if known else measured))

    def _step_s(self, rows: int) -> float:
        """Seconds of a step; a wider step than those measured counts as if it took no longer."""
        cost = self._costs[rows - 1]
        return min((seconds * min(1.0, cost / self._costs[measured - 1]) for measured, seconds in self._steps), default=0.0)

    def _weight_s(self, tokens: int) -> float:
        """Seconds per weight: all of the time scales with the tokens of a longer pass, none of it with those of a shorter
        one."""
        return max((seconds * max(1.0, tokens / measured) for measured, seconds in self._chunks), default=0.0)
