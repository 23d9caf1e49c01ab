"""Is the run going well? Numbers that are no numbers, and losses that rise.

Scope: losses in, warnings out. Knows no model and no screen.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

from qlora_chat.training import TrainError

WINDOW = 20
"""Steps whose mean is compared."""
RISE = 1.15
"""How far that mean may lie above its best before it is called a rise."""
HELD_OUT_RISE = 1.02
"""The same for the held-out loss, which is measured on the same text every time."""


@dataclass
class Watch:
    """Remembers losses and says when they go the wrong way."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    best: float = math.inf
    best_held_out: float = math.inf
    best_held_out_step: int = 0
    warned_at: int | None = None

    def trained(self, step: int, loss: float, norm: float) -> str | None:
        """A warning about the loss of a step, or None. TrainError if loss or gradients are no numbers: nothing was updated."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = (
                f"the loss of step {step} is {loss}" if not math.isfinite(loss) else f"the gradients of step {step} are {norm}"
            )
            raise TrainError(
                f"{what}: the run was stopped before it could spoil the adapter, and the last checkpoint is whole. "
                "Try a smaller --learning-rate or --max-grad-norm, and look at the data that this step met"
            )
        self.recent.append(loss)
        if len(self.recent) < WINDOW:
            return None
        mean = fmean(self.recent)
        self.best = min(self.best, mean)
        quiet = self.warned_at is not None and step - self.warned_at < 5 * WINDOW
        if mean <= self.best * RISE or quiet:
            return None
        self.warned_at = step
        return (
            f"the loss rises: {mean:.3f} over the last {WINDOW} steps, {self.best:.3f} at its best; "
            "if it goes on, begin again with a smaller --learning-rate"
        )

    def held_out(self, step: int, loss: float) -> str | None:
        """A warning about the held-out loss, or None."""
        if loss < self.best_held_out:
            self.best_held_out, self.best_held_out_step = loss, step
            return None
        if loss <= self.best_held_out * HELD_OUT_RISE:
            return None
        return (
            f"the held-out loss rises: {loss:.3f}, after {self.best_held_out:.3f} at step {self.best_held_out_step}; "
            "the model begins to learn the data by heart: fewer --steps may serve better"
        )
