"""An answer as it grows from what servers send: ids or text in, pieces out, our own stops applied.

Scope: what has been written so far, across the requests that it took. Knows no server.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from qlora_chat.engines import Finish, Piece
from qlora_chat.engines.core.detokenizer import Detokenizer
from qlora_chat.engines.remote.sse import NOT_SCORED, Score
from qlora_chat.messages import FinishReason
from qlora_chat.prompt import Tokenizer
from qlora_chat.settings import Sampling
from qlora_chat.stopping import StopOnTokens, Stops, TextStops


class Writer:
    """Hands each piece to `emit`; the last one has the finish."""

    def __init__(self, tokenizer: Tokenizer, stops: Stops, prompt_tokens: int, emit: Callable[[Piece], None]) -> None:
        self.ids: list[int] = []
        """Token ids so far; they stop growing where a server gives none."""
        self.text = ""
        """All that was written, what is held back and what follows a stop included."""
        self.count = 0
        """Tokens so far."""
        self.ended = False
        self.cached_tokens = 0
        self.changes: list[tuple[int, Sampling]] = []
        """Settings taken up in mid-answer, as (tokens made before them, settings)."""
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_on_tokens = StopOnTokens(stops.token_ids)
        self._text_stops = TextStops(stops.texts)
        self._emit, self._prompt_tokens = emit, prompt_tokens
        self._began = time.perf_counter()
        self._first_at = self._last_at = 0.0

    def take_ids(self, ids: Sequence[int], most: int, scores: Sequence[Score] = ()) -> None:
        """Tokens with their ids; the answer ends at a stop, or when it has `most` of them."""
        for token_id, score in zip(ids, scores or itertools.repeat(NOT_SCORED), strict=False):
            if self.ended:
                return
            self._note_time()
            self.ids.append(token_id)
            self.count += 1
            if self._stop_on_tokens([[token_id]])[0]:
                self.end("stop")
                return
            text = self._detokenizer.push(token_id)
            self.text += text
            self._pass_on(self._text_stops.push(text), most, token_id, score)

    def take_text(self, text: str, most: int) -> None:
        """A piece of text from a server that gives no ids; it counts as a token until the server says better."""
        if self.ended:
            return
        self._note_time()
        self.count += 1
        self.text += text
        self._pass_on(self._text_stops.push(text), most)

    def count_as(self, tokens: int) -> None:
        """The server's own count of what it has made."""
        self.count = tokens

    def end(self, reason: FinishReason) -> None:
        """No more comes. Text that was held back as the possible beginning of a stop is shown only where the model itself
        has ended: of an answer that is cut off it may be half a marker or half a character."""
        if self.ended:
            return
        rest = ""
        if reason == "stop":
            last = self._detokenizer.flush()
            self.text += last
            rest = self._text_stops.push(last)
            rest = rest if self._text_stops.stopped else rest + self._text_stops.flush()
        self._finish(reason, rest)

    def _pass_on(self, shown: str, most: int, token_id: int | None = None, score: Score = NOT_SCORED) -> None:
        if self._text_stops.stopped:
            self._finish("stop", shown, token_id, score)
        elif self.count >= most:
            self._finish("length", shown, token_id, score)
        else:
            self._emit(Piece(shown, token_id, None, *score))

    def _note_time(self) -> None:
        self._last_at = time.perf_counter()
        self._first_at = self._first_at or self._last_at

    def _finish(self, reason: FinishReason, text: str, token_id: int | None = None, score: Score = NOT_SCORED) -> None:
        self.ended = True
        elapsed = self._last_at - self._first_at
        self._emit(
            Piece(
                text,
                token_id,
                Finish(
                    reason,
                    prompt_tokens=self._prompt_tokens,
                    cached_tokens=self.cached_tokens,
                    completion_tokens=self.count,
                    ttft_ms=(self._first_at - self._began) * 1000 if self._first_at else None,
                    tokens_per_s=(self.count - 1) / elapsed if self.count > 1 and elapsed > 0 else None,
                    changes=tuple(self.changes),
                ),
                *score,
            )
        )
