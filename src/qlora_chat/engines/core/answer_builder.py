"""From generated tokens to the pieces of an answer: detokenization, stops, the end, and the times it took.

Scope: one answer, whether its tokens come from a scheduler or from a server, and the queue its reader takes pieces from.
Knows no model, batch or HTTP. Imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import SimpleQueue

from qlora_chat.engines import NO_LOGPROBS, AnsweredBy, EngineError, Finish, Piece, PrefillProgress, TokenLogprobs
from qlora_chat.messages import FinishReason
from qlora_chat.prompt import Tokenizer
from qlora_chat.settings import Sampling
from qlora_chat.stopping import StopOnTokens, Stops, TextStops

PieceQueue = SimpleQueue[Piece | EngineError]
"""One answer's pieces as they are generated; the last item has `finish`, or is an error instead."""
REPLACEMENT = "\ufffd"
PREFILL_INTERVAL_S = 0.1
"""Shortest time between two reports of a prompt's prefill, and before the first: a short prompt has none."""
LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 character: a character still broken after as many tokens stays broken."""


class Detokenizer:
    """Decodes a stream of token ids without ever returning part of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Text completed by this token; "" while a character is incomplete."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending)
        if text.endswith(REPLACEMENT) and len(self._pending) < LONGEST_CHARACTER:
            return ""
        self._pending.clear()
        return text

    def flush(self) -> str:
        """Text of the pending tokens at the end, with a replacement character where bytes are missing."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text


class AnswerBuilder:
    """Builds one answer: takes tokens or text, applies the stops, and puts pieces into `pieces`, the last with the finish."""

    def __init__(self, tokenizer: Tokenizer, stops: Stops, prompt_tokens: int) -> None:
        self.pieces: PieceQueue = SimpleQueue()
        self.count = 0
        """Tokens so far."""
        self.ended = False
        self.cached_tokens = 0
        """Prompt tokens whose keys and values were reused."""
        self.changes: list[tuple[int, Sampling]] = []
        """Sampling changes, as (tokens generated before, new settings)."""
        self.answered_by: AnsweredBy | None = None
        self._text: list[str] = []
        self._prompt_tokens = prompt_tokens
        self._token_stops = StopOnTokens(stops.token_ids)
        self._text_stops = TextStops(stops.texts)
        self._detokenizer = Detokenizer(tokenizer)
        self._started = time.perf_counter()
        self._first_token = self._last_token = 0.0
        self._prefilled, self._reported = 0, self._started

    @property
    def text(self) -> str:
        """All text so far, including text that is held back or follows a stop."""
        return "".join(self._text)

    def report_prefill(self, read: int) -> None:
        """Report the tokens of the prompt that have been read, unless there is nothing new or the last report is too recent."""
        if self.count or self.ended or read <= self._prefilled:
            return
        moment = time.perf_counter()
        if moment - self._reported >= PREFILL_INTERVAL_S:
            self._prefilled, self._reported = read, moment
            self.pieces.put(Piece("", prefill=PrefillProgress(min(read, self._prompt_tokens), self._prompt_tokens)))

    def push_token(self, token_id: int, limit: int, logprobs: TokenLogprobs = NO_LOGPROBS) -> bool:
        """Add a token; returns True if the answer ends with it: at a stop, or as the last of `limit` tokens."""
        self._count_token()
        if self._token_stops([[token_id]])[0]:
            self.end("stop")
            return True
        return self._push(self._detokenizer.push(token_id), limit, token_id, logprobs)

    def push_text(self, text: str, limit: int) -> bool:
        """Add text from a server that returns no ids; it counts as one token until `count` is corrected."""
        self._count_token()
        return self._push(text, limit)

    def end(self, reason: FinishReason) -> None:
        """End the answer, once. Held-back text is released only where the model itself has ended: in an answer that was cut
        off it may be part of a stop text or of a character."""
        if self.ended:
            return
        text = ""
        if reason == "stop":
            self._text.append(self._detokenizer.flush())
            text = self._text_stops.push(self._text[-1])
            text = text if self._text_stops.stopped else text + self._text_stops.flush()
        self._finish(reason, text)

    def _push(self, text: str, limit: int, token_id: int | None = None, logprobs: TokenLogprobs = NO_LOGPROBS) -> bool:
        self._text.append(text)
        text = self._text_stops.push(text)
        if self._text_stops.stopped or self.count >= limit:
            self._finish("stop" if self._text_stops.stopped else "length", text, token_id, logprobs)
        else:
            self.pieces.put(Piece(text, token_id, None, *logprobs))
        return self.ended

    def _count_token(self) -> None:
        self.count += 1
        self._last_token = time.perf_counter()
        self._first_token = self._first_token or self._last_token

    def _finish(
        self, reason: FinishReason, text: str, token_id: int | None = None, logprobs: TokenLogprobs = NO_LOGPROBS
    ) -> None:
        self.ended = True
        elapsed = self._last_token - self._first_token
        finish = Finish(
            reason,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.count,
            ttft_ms=(self._first_token - self._started) * 1000 if self._first_token else None,
            tokens_per_s=(self.count - 1) / elapsed if self.count > 1 and elapsed > 0 else None,
            changes=tuple(self.changes),
            answered_by=self.answered_by,
        )
        self.pieces.put(Piece(text, token_id, finish, *logprobs))


def iterate(pieces: PieceQueue) -> Iterator[Piece]:
    """Each piece as soon as it is in the queue, up to the last. EngineError if generation fails."""
    while True:
        piece = pieces.get()
        if isinstance(piece, EngineError):
            raise piece
        yield piece
        if piece.finish is not None:
            return
