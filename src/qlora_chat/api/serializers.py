"""How chats and completions are written down: whole, and in chunks.

Scope: two shapes with the same methods, so that answering need not know which it serves.
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
    """What answering needs to write an answer down."""

    trimmed: bool
    """Whether white space around an answer is left out."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a streamed choice begins with."""
        ...

    def grown(self, index: int, grown: Delta, logprobs: bool) -> dict[str, Any]:
        """A choice in a chunk that brings text."""
        ...

    def ended(self, index: int, reason: Reason) -> dict[str, Any]:
        """A choice in the chunk that ends it."""
        ...

    def chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """A chunk around choices."""
        ...

    def whole(self, choices: list[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> ChatAnswer | CompletionAnswer:
        """The answer to a request that does not stream."""
        ...


class _Head:
    def __init__(self, prefix: str, model: str) -> None:
        self.id, self.created, self.model = f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model

    def around(self, kind: str, choices: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        chunk: dict[str, Any] = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return chunk | {"choices": choices} | ({} if usage is None else {"usage": usage.model_dump()})


class ChatSerializer:
    """chat.completion and chat.completion.chunk"""

    trimmed = True

    def __init__(self, model: str) -> None:
        self._head = _Head("chatcmpl", model)

    def opening(self, index: int) -> dict[str, Any] | None:
        """The role."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def grown(self, index: int, grown: Delta, logprobs: bool) -> dict[str, Any]:
        """Text, and the tokens it consists of where they were asked for."""
        listed = _chat_logprobs(grown.logprobs).model_dump() if logprobs else None
        return {"index": index, "delta": {"content": grown.text}, "logprobs": listed, "finish_reason": None}

    def ended(self, index: int, reason: Reason) -> dict[str, Any]:
        """Why it ended."""
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}

    def chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """chat.completion.chunk"""
        return self._head.around("chat.completion.chunk", choices, usage)

    def whole(self, choices: list[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> ChatAnswer:
        """chat.completion"""
        listed = [
            ChatChoice(
                index=choice.index,
                message=AnswerMessage(content=choice.text),
                logprobs=_chat_logprobs(choice.logprobs) if logprobs else None,
                finish_reason=reason,
            )
            for choice, reason in choices
        ]
        head = self._head
        return ChatAnswer(id=head.id, created=head.created, model=head.model, choices=listed, usage=usage)


class CompletionSerializer:
    """text_completion, whole and in chunks"""

    trimmed = False

    def __init__(self, model: str) -> None:
        self._head = _Head("cmpl", model)

    def opening(self, index: int) -> dict[str, Any] | None:
        """Nothing: the first text is the beginning."""
        return None

    def grown(self, index: int, grown: Delta, logprobs: bool) -> dict[str, Any]:
        """Text, and the tokens it consists of where they were asked for."""
        listed = _completion_logprobs(grown.logprobs).model_dump() if logprobs else None
        return {"index": index, "text": grown.text, "logprobs": listed, "finish_reason": None}

    def ended(self, index: int, reason: Reason) -> dict[str, Any]:
        """Why it ended."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}

    def chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """text_completion"""
        return self._head.around("text_completion", choices, usage)

    def whole(self, choices: list[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> CompletionAnswer:
        """text_completion"""
        listed = [
            CompletionChoice(
                index=choice.index,
                text=choice.text,
                logprobs=_completion_logprobs(choice.logprobs) if logprobs else None,
                finish_reason=reason,
            )
            for choice, reason in choices
        ]
        return CompletionAnswer(
            id=self._head.id, created=self._head.created, model=self._head.model, choices=listed, usage=usage
        )


def _chat_logprobs(entries: Logprobs) -> ChatLogprobs:
    return ChatLogprobs(content=[entry for entry, _ in entries])


def _completion_logprobs(entries: Logprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[entry.token for entry, _ in entries],
        token_logprobs=[entry.logprob for entry, _ in entries],
        top_logprobs=[{top.token: top.logprob for top in entry.top_logprobs} for entry, _ in entries],
        text_offset=[offset for _, offset in entries],
    )
