"""One answer on its way from the engine to a page.

Scope: reads it to its end in a thread, and wakes an event loop when there is new text. Knows no Gradio, no tab and no model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator

from qlora_chat.chat import Turn
from qlora_chat.engines import EngineError
from qlora_chat.serving.stream_reader import Wakeup
from qlora_chat.web.message_list.live_blocks import LiveBlocks

UPDATE_SECONDS = 0.12
"""Tokens that come within this go to the page together: every update costs the CPU that the model is running on."""
QUIET_SECONDS = 0.2
"""A page with nothing new still gets a sign of life this often; it is how a closed tab is noticed."""

logger = logging.getLogger(__name__)


class RunningAnswer:
    """Read by a thread, watched by the event loop."""

    def __init__(self, turn: Turn, text: str | None, *, logged: bool = True) -> None:
        self.turn = turn
        self.text = text
        """A new question; None where the question was there before."""
        self.logged = logged
        self.problem: str | None = None
        """User-facing reason why generation failed."""
        self.blocks = LiveBlocks()
        """The answer as the page draws it."""
        self.tokens = 0
        self.first_at: float | None = None
        """time.perf_counter() at the first token."""
        self.began = time.perf_counter()
        self.unwatched = threading.Event()
        """Set when the page's event for this answer has ended."""
        self._done = threading.Event()
        self._wakeup: Wakeup | None = None

    @property
    def done(self) -> bool:
        """True when nothing more will come."""
        return self._done.is_set()

    @property
    def tokens_per_s(self) -> float | None:
        """Rate after the first token, so far; None below two tokens."""
        if self.tokens < 2 or self.first_at is None:
            return None
        return (self.tokens - 1) / max(time.perf_counter() - self.first_at, 1e-6)

    @property
    def read_so_far(self) -> int:
        """Tokens of the prompt that have been read; 0 before the first and after the last."""
        return self.turn.prefilled if not self.tokens and self.turn.prefilled < self.turn.prompt_tokens else 0

    def wait(self, seconds: float) -> bool:
        """Block until the answer has ended; False if it has not by then."""
        return self._done.wait(seconds)

    def read(self) -> None:
        """Read every piece as it comes; returns when the answer ends, for whatever reason."""
        try:
            has_words = False
            for piece in self.turn:
                if piece.token_id is not None or piece.text:
                    self.tokens += 1
                    self.first_at = self.first_at or time.perf_counter()
                is_first, has_words = not has_words, has_words or bool(piece.text.strip())
                if (piece.text or piece.prefill) and (wakeup := self._wakeup):
                    wakeup.notify(now=is_first and has_words)  # neither progress of the prompt nor a blank holds back words
        except EngineError as problem:
            self.problem = str(problem)
        except Exception as problem:
            # The message may quote the conversation, which has no place in an operator's log.
            logger.error("an answer ended with %s", type(problem).__name__)
            self.problem = f"The answer could not be finished ({type(problem).__name__})."

    def end(self) -> None:
        """Mark the answer as done."""
        self._done.set()
        if wakeup := self._wakeup:
            wakeup.notify(now=True)

    async def changes(self) -> AsyncIterator[bool]:
        """True when there is more text, or more of the prompt has been read: at the first, then at most 8 times a second.
        False as a sign of life."""
        shown = "", 0
        wakeup = self._wakeup = Wakeup(UPDATE_SECONDS)
        try:
            while not self.done:
                newest = self.turn.answer, self.read_so_far
                if newest != shown:
                    shown = newest
                    wakeup.start_interval()
                    yield True
                try:
                    async with asyncio.timeout(QUIET_SECONDS):
                        await wakeup.wait()
                except TimeoutError:
                    yield False
        finally:
            self._wakeup = None
            wakeup.close()
