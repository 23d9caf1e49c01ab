"""JSON of chats and completions, whole and in chunks.

Scope: two formats with the same methods, so that streaming.py need not know which it sends.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from qlora_chat.api.choices import Choice, Delta
from qlora_chat.api.response_schemas import (
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    ChatLogprobs,
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    Reason,
    TokenLogprob,
    Usage,
)

Logprobs = Sequence[tuple[TokenLogprob, int]]


class AnswerSerializer(ABC):
    """Format of an answer: one object, or chunks with entries of choices."""

    trimmed: ClassVar[bool]
    """True if white space around an answer is left out."""
    kind: ClassVar[str]
    """`object` of a chunk."""
    prefix: ClassVar[str]
    """Begins the answer's id."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def opening(self, index: int) -> dict[str, Any] | None:
        """First entry of a streamed choice, if the format has one."""
        return None

    @abstractmethod
    def delta(self, index: int, delta: Delta, logprobs: bool) -> dict[str, Any]:
        """Entry with new text, and with its tokens if `logprobs`."""

    @abstractmethod
    def end(self, index: int, reason: Reason) -> dict[str, Any]:
        """Last entry of a streamed choice."""

    @abstractmethod
    def whole(self, choices: Sequence[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> ChatAnswer | CompletionAnswer:
        """Answer to a request that does not stream."""

    def chunk(self, entries: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """Chunk with these entries."""
        chunk = {"id": self._head["id"], "object": self.kind, **self._head, "choices": entries}
        return chunk if usage is None else chunk | {"usage": usage.model_dump()}


class ChatSerializer(AnswerSerializer):
    """chat.completion and chat.completion.chunk."""

    trimmed, kind, prefix = True, "chat.completion.chunk", "chatcmpl"

    def opening(self, index: int) -> dict[str, Any] | None:
        return _chat_entry(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, delta: Delta, logprobs: bool) -> dict[str, Any]:
        tokens = _chat_logprobs(delta.logprobs).model_dump() if logprobs else None
        return _chat_entry(index, {"content": delta.text}) | {"logprobs": tokens}

    def end(self, index: int, reason: Reason) -> dict[str, Any]:
        return _chat_entry(index, {}) | {"finish_reason": reason}

    def whole(self, choices: Sequence[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> ChatAnswer:
        listed = [
            ChatChoice(
                index=choice.index,
                message=AnswerMessage(content=choice.text),
                logprobs=_chat_logprobs(choice.logprobs) if logprobs else None,
                finish_reason=reason,
            )
            for choice, reason in choices
        ]
        return ChatAnswer(**self._head, choices=listed, usage=usage)


class CompletionSerializer(AnswerSerializer):
    """text_completion, whole and in chunks."""

    trimmed, kind, prefix = False, "text_completion", "cmpl"

    def delta(self, index: int, delta: Delta, logprobs: bool) -> dict[str, Any]:
        tokens = _completion_logprobs(delta.logprobs) if logprobs else None
        return {"index": index, "text": delta.text, "logprobs": tokens and tokens.model_dump(), "finish_reason": None}

    def end(self, index: int, reason: Reason) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}

    def whole(self, choices: Sequence[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> CompletionAnswer:
        listed = [
            CompletionChoice(
                index=choice.index,
                text=choice.text,
                logprobs=_completion_logprobs(choice.logprobs) if logprobs else None,
                finish_reason=reason,
            )
            for choice, reason in choices
        ]
        return CompletionAnswer(**self._head, choices=listed, usage=usage)


def _chat_entry(index: int, delta: dict[str, str]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _chat_logprobs(entries: Logprobs) -> ChatLogprobs:
    return ChatLogprobs(content=[entry for entry, _ in entries])


def _completion_logprobs(entries: Logprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[entry.token for entry, _ in entries],
        token_logprobs=[entry.logprob for entry, _ in entries],
        top_logprobs=[{top.token: top.logprob for top in entry.top_logprobs} for entry, _ in entries],
        text_offset=[offset for _, offset in entries],
    )
