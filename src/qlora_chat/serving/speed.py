"""The speed of an engine's answers, as people are told it.

Scope: the newest answer that was long enough to be timed, and a short one that a server asks for itself when its model is
loaded, so that the first visitor sees a figure. Knows no page.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from qlora_chat.engines import Engine, EngineError, Finish, LocalModel
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

FEWEST_TOKENS = 12
"""Of an answer that says how fast the model is."""


@dataclass
class Speed:
    """Figures of one engine; safe from any thread."""

    tokens_per_s: float | None = None
    """Of one answer, which may have shared its steps with others; None before the first."""
    ttft_ms: float | None = None
    """From a question to the first token of its answer."""
    measuring: bool = False
    """True while the short answer is being written."""

    def observe(self, finish: Finish) -> None:
        """Take the figures of an answer that ended, if it is long enough."""
        if finish.tokens_per_s is not None and finish.completion_tokens >= FEWEST_TOKENS:
            self.tokens_per_s, self.ttft_ms = finish.tokens_per_s, finish.ttft_ms

    def forget(self) -> None:
        """Forget the figures of a model that is not loaded any more."""
        self.tokens_per_s = self.ttft_ms = None

    def measure(self, engine: Engine, prompt: Prompt) -> None:
        """Time a short answer in the background, of a model in this process: other servers' time costs others' money."""
        if isinstance(engine, LocalModel):
            self.measuring = True
            threading.Thread(target=self._measure, args=(engine, prompt), name="qlora-chat-speed", daemon=True).start()

    def _measure(self, engine: Engine, prompt: Prompt) -> None:
        sampling = Sampling(temperature=0.0, max_new_tokens=FEWEST_TOKENS + 4)
        try:
            for piece in engine.stream(prompt, sampling, Stops()):
                if piece.finish and self.tokens_per_s is None:
                    self.observe(piece.finish)
        except (EngineError, ValueError):  # the server is ending, or the model answers nobody: others will say so
            return
        finally:
            self.measuring = False
