"""One choice as a client sees it: text so far, log probabilities, end.

Scope: from the engine's pieces to what may be sent of them. Knows no JSON formats and no HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qlora_chat.api.response_schemas import PromptDetails, TokenLogprob, TopLogprob, Usage
from qlora_chat.engines import Finish, Piece, PrefillProgress
from qlora_chat.prompt import Tokenizer


@dataclass(frozen=True)
class Delta:
    """Text and tokens that a piece adds."""

    text: str
    logprobs: list[tuple[TokenLogprob, int]] = field(default_factory=list)
    """Tokens whose text is out now, each with its offset in the model's text."""


class Choice:
    """One answer, built from its pieces."""

    def __init__(
        self, index: int, tokenizer: Tokenizer, special_tokens: Mapping[int, str], *, trimmed: bool, continues: bool = False
    ) -> None:
        """`special_tokens` are names of ids that decode to nothing; `trimmed` leaves out white space around the answer, but not
        before the rest of one that `continues`."""
        self.index = index
        self.text = ""
        """All text that may be sent so far."""
        self.logprobs: list[tuple[TokenLogprob, int]] = []
        self.finish: Finish | None = None
        self.prefill: PrefillProgress | None = None
        """Newest report of its prompt."""
        self._tokenizer, self._special_tokens, self._trimmed = tokenizer, special_tokens, trimmed
        self._continues = continues
        self._trailing_space = ""
        self._decoded_chars = self._released_chars = 0
        self._pending: deque[tuple[TokenLogprob, int]] = deque()

    def add(self, piece: Piece) -> Delta:
        """Add a piece; returns what can be sent after it."""
        if piece.finish is not None:
            self.finish = piece.finish
        if piece.prefill is not None:
            self.prefill = piece.prefill
        text = self._trim(piece.text) if self._trimmed else piece.text
        self.text += text
        if piece.token_id is not None and piece.logprob is not None:
            top = [self._entry(token, logprob) for token, logprob in piece.top_logprobs]
            entry = TokenLogprob(**vars(self._entry(piece.token_id, piece.logprob)), top_logprobs=top)
            self._pending.append((entry, self._decoded_chars))
            self._decoded_chars += len(entry.token)
        return Delta(text, self._release_logprobs(piece))

    def _trim(self, text: str) -> str:
        """Drop white space at the beginning of the answer, and hold back other white space until something follows it."""
        text = self._trailing_space + text
        if not (self.text or self._continues):
            text = text.lstrip()
        trimmed = text.rstrip()
        self._trailing_space = text[len(trimmed) :]
        return trimmed

    def _release_logprobs(self, piece: Piece) -> list[tuple[TokenLogprob, int]]:
        """Tokens that begin inside the text that is out; those of a stop text never do."""
        self._released_chars += len(piece.text)
        released = []
        while self._pending and self._pending[0][1] < self._released_chars:
            released.append(self._pending.popleft())
        self.logprobs += released
        return released

    def _entry(self, token: int, logprob: float) -> TopLogprob:
        text = self._special_tokens.get(token) or self._tokenizer.decode([token])
        return TopLogprob(token=text, logprob=logprob, bytes=None if "\ufffd" in text else list(text.encode()))


def usage(choices: Sequence[Choice], answers_per_prompt: int) -> Usage:
    """Token counts of a whole request: each prompt once, each answer in full."""
    finishes = [choice.finish for choice in choices if choice.finish]
    prompts = finishes[::answers_per_prompt]
    prompt, completion = sum(each.prompt_tokens for each in prompts), sum(each.completion_tokens for each in finishes)
    cached = PromptDetails(cached_tokens=sum(each.cached_tokens for each in prompts))
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion, prompt_tokens_details=cached
    )
