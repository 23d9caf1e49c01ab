"""One answer as a client sees it: its text so far, its log probabilities, its end.

Scope: from pieces to what may be sent of them. Knows no JSON shapes and no HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from qlora_chat.api.response_schemas import PromptDetails as Details
from qlora_chat.api.response_schemas import TokenLogprob, TopLogprob, Usage
from qlora_chat.engines import Finish, Piece
from qlora_chat.prompt import Tokenizer


@dataclass(frozen=True)
class Delta:
    """What came of a piece."""

    text: str
    logprobs: list[tuple[TokenLogprob, int]] = field(default_factory=list)
    """Tokens whose text is out now, each with its offset in the model's text."""


class Choice:
    """Takes the pieces of one answer."""

    def __init__(self, index: int, tokenizer: Tokenizer, names: Mapping[int, str], *, trimmed: bool) -> None:
        self.index = index
        self.text = ""
        """All that may be sent so far: without the white space around it where `trimmed`."""
        self.logprobs: list[tuple[TokenLogprob, int]] = []
        self.finish: Finish | None = None
        self._tokenizer, self._names, self._trimmed = tokenizer, names, trimmed
        self._held = ""
        self._made = self._out = 0
        self._waiting: deque[tuple[TokenLogprob, int]] = deque()

    def take(self, piece: Piece) -> Delta:
        """What can be sent after this piece."""
        if piece.finish is not None:
            self.finish = piece.finish
        text = self._trim(piece.text) if self._trimmed else piece.text
        self.text += text
        if piece.token_id is None or piece.logprob is None:
            return Delta(text, self._released(piece))
        entry = self._entry(piece.token_id, piece.logprob)
        entry.top_logprobs = [self._entry(token, logprob, TopLogprob) for token, logprob in piece.top_logprobs]
        self._waiting.append((entry, self._made))
        self._made += len(entry.token)
        return Delta(text, self._released(piece))

    def _trim(self, text: str) -> str:
        """White space at the beginning goes; other white space waits until something follows it."""
        text = self._held + text
        if not self.text:
            text = text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        return shown

    def _released(self, piece: Piece) -> list[tuple[TokenLogprob, int]]:
        """Tokens that begin inside the text that is out; those of a stop text never are."""
        self._out += len(piece.text)
        released = []
        while self._waiting and self._waiting[0][1] < self._out:
            released.append(self._waiting.popleft())
        self.logprobs += released
        return released

    def _entry(self, token: int, logprob: float, kind: type = TokenLogprob) -> TokenLogprob:
        text = self._names.get(token) or self._tokenizer.decode([token])
        values = {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
        return kind(**values, **({"top_logprobs": []} if kind is TokenLogprob else {}))


def usage(choices: list[Choice], answers_a_prompt: int) -> Usage:
    """Counts of a whole request: each prompt once, each answer in full."""
    ends = [choice.finish for choice in choices if choice.finish]
    read = ends[::answers_a_prompt]
    prompt, completion = sum(each.prompt_tokens for each in read), sum(each.completion_tokens for each in ends)
    cached = Details(cached_tokens=sum(each.cached_tokens for each in read))
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion, prompt_tokens_details=cached
    )
