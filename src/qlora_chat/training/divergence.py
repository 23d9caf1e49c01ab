"""Detection of a run that goes wrong: losses that are not finite, and losses that rise.

Scope: losses in, warnings out. Knows no model and no screen.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

WINDOW = 20
"""Steps in the moving average."""
MAX_RISE = 1.15
"""Ratio of the moving average to its best value above which the loss counts as rising."""
MAX_HELD_OUT_RISE = 1.02
"""The same for the held-out loss, which is measured on the same text every time."""


@dataclass
class DivergenceMonitor:
    """Remembers losses and warns when they rise."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    best: float = math.inf
    best_held_out: float = math.inf
    best_held_out_step: int = 0
    warned_at: int | None = None

    def mean(self) -> float | None:
        """Mean loss of the last 20 steps; None before the first one."""
        return fmean(self.recent) if self.recent else None

    def check_step(self, step: int, loss: float) -> str | None:
        """Return a warning about a step's loss, or None."""
        self.recent.append(loss)
        if len(self.recent) < WINDOW:
            return None
        mean = fmean(self.recent)
        self.best = min(self.best, mean)
        warned_lately = self.warned_at is not None and step - self.warned_at < 5 * WINDOW
        if mean <= self.best * MAX_RISE or warned_lately:
            return None
        self.warned_at = step
        return (
            f"the loss rises: {mean:.3f} over the last {WINDOW} steps, {self.best:.3f} at its best; "
            "if it continues, start again with a smaller --learning-rate"
        )

    def check_held_out(self, step: int, loss: float) -> str | None:
        """Return a warning about the held-out loss, or None."""
        if loss < self.best_held_out:
            self.best_held_out, self.best_held_out_step = loss, step
            return None
        if loss <= self.best_held_out * MAX_HELD_OUT_RISE:
            return None
        return (
            f"the held-out loss rises: {loss:.3f}, after {self.best_held_out:.3f} at step {self.best_held_out_step}; "
            "the model starts to overfit: fewer --steps may serve better"
        )


def not_finite(step: int, loss: float, norm: float) -> str | None:
    """Return the reason to stop before a step's update, or None if its loss and gradient norm are finite."""
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    figure = f"the gradients of step {step} are {norm}" if math.isfinite(loss) else f"the loss of step {step} is {loss}"
    return (
        f"{figure}: the run was stopped before the update. Try a smaller --learning-rate or --max-grad-norm, and look at the "
        "data of this step"
    )
