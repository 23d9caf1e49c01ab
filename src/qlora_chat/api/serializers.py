"""JSON of chats and completions, whole and in chunks.

Scope: two formats with the same methods, so that streaming.py need not know which it sends.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

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


class AnswerSerializer(Protocol):
    """Format of an answer."""

    trimmed: bool
    """True if white space around an answer is left out."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """First entry of a streamed choice, if the format has one."""
        ...

    def delta(self, index: int, delta: Delta, logprobs: bool) -> dict[str, Any]:
        """Entry with new text, and with its tokens if `logprobs`."""
        ...

    def end(self, index: int, reason: Reason) -> dict[str, Any]:
        """Last entry of a streamed choice."""
        ...

    def chunk(self, entries: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """Chunk with these entries."""
        ...

    def whole(self, choices: Sequence[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> ChatAnswer | CompletionAnswer:
        """Answer to a request that does not stream."""
        ...


class ChatSerializer:
    """chat.completion and chat.completion.chunk; see AnswerSerializer."""

    trimmed = True

    def __init__(self, model: str) -> None:
        self._head = _head("chatcmpl", model)

    def opening(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, delta: Delta, logprobs: bool) -> dict[str, Any]:
        tokens = _chat_logprobs(delta.logprobs).model_dump() if logprobs else None
        return {"index": index, "delta": {"content": delta.text}, "logprobs": tokens, "finish_reason": None}

    def end(self, index: int, reason: Reason) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}

    def chunk(self, entries: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        return _chunk("chat.completion.chunk", self._head, entries, usage)

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


class CompletionSerializer:
    """text_completion, whole and in chunks; see AnswerSerializer."""

    trimmed = False

    def __init__(self, model: str) -> None:
        self._head = _head("cmpl", model)

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def delta(self, index: int, delta: Delta, logprobs: bool) -> dict[str, Any]:
        tokens = _completion_logprobs(delta.logprobs).model_dump() if logprobs else None
        return {"index": index, "text": delta.text, "logprobs": tokens, "finish_reason": None}

    def end(self, index: int, reason: Reason) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}

    def chunk(self, entries: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        return _chunk("text_completion", self._head, entries, usage)

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


def _head(prefix: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _chunk(kind: str, head: dict[str, Any], entries: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
    chunk = {"id": head["id"], "object": kind, **head, "choices": entries}
    return chunk if usage is None else chunk | {"usage": usage.model_dump()}


def _chat_logprobs(entries: Logprobs) -> ChatLogprobs:
    return ChatLogprobs(content=[entry for entry, _ in entries])


def _completion_logprobs(entries: Logprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[entry.token for entry, _ in entries],
        token_logprobs=[entry.logprob for entry, _ in entries],
        top_logprobs=[{top.token: top.logprob for top in entry.top_logprobs} for entry, _ in entries],
        text_offset=[offset for _, offset in entries],
    )
