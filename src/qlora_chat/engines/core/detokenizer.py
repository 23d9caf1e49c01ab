"""Tokens -> text as they come, never showing half a character."""

from __future__ import annotations

from qlora_chat.prompt import Tokenizer

_REPLACEMENT = "\ufffd"
_LONGEST_WAIT = 4
"""Bytes of the longest UTF-8 character: after as many tokens, more will not make a broken one whole."""


class Detokenizer:
    """Push token ids, get text; what may be the beginning of a multi-byte character waits for its end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" while a character is unfinished."""
        self._waiting.append(token_id)
        text = self._tokenizer.decode(self._waiting)
        if text.endswith(_REPLACEMENT) and len(self._waiting) < _LONGEST_WAIT:
            return ""
        self._waiting.clear()
        return text

    def flush(self) -> str:
        """What is left at the end, with a replacement character where bytes are missing."""
        text = self._tokenizer.decode(self._waiting)
        self._waiting.clear()
        return text
