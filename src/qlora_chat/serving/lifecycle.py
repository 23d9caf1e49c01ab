"""Whether the server takes requests: not while the weights load, not once it is asked to end."""

from __future__ import annotations

from typing import Literal


class Lifecycle:
    """loading -> ready -> draining, never back."""

    def __init__(self) -> None:
        self.phase: Literal["loading", "ready", "draining"] = "loading"

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.phase == "ready"

    def opened(self) -> None:
        """The weights are there. A server that is ending already stays so."""
        if self.phase == "loading":
            self.phase = "ready"

    def drain(self) -> None:
        """Take nothing new; what runs goes on to its end."""
        self.phase = "draining"
