"""Ends of an answer: stop tokens and stop texts.

Scope: decides on token ids and characters alone. Knows no model, tokenizer or tensor library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stops:
    """Token ids and texts that end one answer: any of either."""

    token_ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(not text for text in self.texts):
            raise ValueError("a stop text is empty, and would end every answer before it begins")


class StopOnTokens:
    """Checks for every row of a batch whether its newest token is a stop token.

    Called with rows of ids (lists, or a (batch, length) tensor), it returns a list of bool, one a row. Given a tensor it
    returns a bool tensor on the same device, so it also serves as a Transformers stopping criterion.
    """

    def __init__(self, token_ids: Iterable[int]) -> None:
        self.token_ids = frozenset(token_ids)

    def __call__(self, input_ids: Any, scores: Any = None, **_: Any) -> Any:
        done = [len(row) > 0 and int(row[-1]) in self.token_ids for row in input_ids]
        if hasattr(input_ids, "new_tensor"):
            return input_ids.new_tensor(done, dtype=bool)
        return done


class TextStops:
    """Passes text through until a stop text is complete, holding back whatever may still become one.

    The cut does not depend on how the text was chunked: the stop that completes first wins, and of two that complete
    at the same character, the longer one.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held_back = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; returns the text that is safe to show. After a stop, all text is dropped."""
        if self.stopped:
            return ""
        self._held_back += text
        cut = self._first_stop()
        if cut is not None:
            self.stopped = True
            shown, self._held_back = self._held_back[:cut], ""
            return shown
        cut = len(self._held_back) - self._partial_stop_length()
        shown, self._held_back = self._held_back[:cut], self._held_back[cut:]
        return shown

    def flush(self) -> str:
        """Returns the held-back text at the end of the answer: it did not become a stop."""
        shown, self._held_back = self._held_back, ""
        return shown

    def _first_stop(self) -> int | None:
        """Index where the stop that completes first begins, or None."""
        ends = [(at + len(stop), at) for stop in self._texts if (at := self._held_back.find(stop)) >= 0]
        return min(ends)[1] if ends else None

    def _partial_stop_length(self) -> int:
        """Length of the longest suffix of the held-back text that is a prefix of a stop."""
        longest = min(len(self._held_back), max((len(stop) - 1 for stop in self._texts), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held_back[-length:]) for stop in self._texts):
                return length
        return 0
