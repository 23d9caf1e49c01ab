"""Where an answer ends: stop tokens and stop texts.

Scope: decides on ids and characters that it is handed. Knows no model, tokenizer or tensor library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stops:
    """What ends one answer: any of the token ids, or any of the texts."""

    token_ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(not text for text in self.texts):
            raise ValueError("a stop text is empty, and would end every answer before it begins")


class StopOnTokens:
    """Tells, for every row of a batch, whether its newest token is a stop token.

    Called with rows of ids (lists, or a (batch, length) tensor); returns a list of bool, one a row. Given a tensor it
    answers with a bool tensor on the same device, so it also serves as a Transformers stopping criterion.
    """

    def __init__(self, token_ids: Iterable[int]) -> None:
        self.token_ids = frozenset(token_ids)

    def __call__(self, input_ids: Any, scores: Any = None, **_: Any) -> Any:
        done = [len(row) > 0 and int(row[-1]) in self.token_ids for row in input_ids]
        if hasattr(input_ids, "new_tensor"):
            return input_ids.new_tensor(done, dtype=bool)
        return done


class TextStops:
    """Passes text through until a stop text is complete, holding back whatever may yet become one.

    The cut does not depend on how the text was chunked: the stop that completes first wins, and of two that complete
    at the same character, the longer one.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take more text; return what may be shown now. After a stop everything is swallowed."""
        if self.stopped:
            return ""
        self._held += text
        cut = self._first_stop()
        if cut is not None:
            self.stopped = True
            shown, self._held = self._held[:cut], ""
            return shown
        keep = self._length_of_possible_stop()
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """No more text comes: what was held back is not a stop after all."""
        shown, self._held = self._held, ""
        return shown

    def _first_stop(self) -> int | None:
        """Index where the first stop to complete begins, or None."""
        found = [(at + len(stop), at) for stop in self._texts if (at := self._held.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _length_of_possible_stop(self) -> int:
        """Length of the longest end of the held text that is the beginning of a stop."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._texts), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._texts):
                return length
        return 0
