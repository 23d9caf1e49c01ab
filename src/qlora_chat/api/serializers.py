"""JSON of chats and completions, whole and in events.

Scope: formats with the same methods, so that streaming.py need not know which it sends. responses/serializer.py is the third.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from qlora_chat.api.choices import Choice, Delta
from qlora_chat.api.errors import ApiError
from qlora_chat.api.response_schemas import (
    AnswerMessage,
    CalledFunction,
    CallMessage,
    ChatAnswer,
    ChatChoice,
    ChatLogprobs,
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    Reason,
    TokenLogprob,
    ToolCall,
    Usage,
)
from qlora_chat.api.structured import AnswerForm
from qlora_chat.engines import Stream

Json = dict[str, Any]
Logprobs = Sequence[tuple[TokenLogprob, int]]


class AnswerSerializer(ABC):
    """Format of an answer: one object, or events."""

    trimmed: ClassVar[bool]
    """True if white space around an answer is left out."""
    done: ClassVar[bytes] = b"data: [DONE]\n\n"
    """End of a stream."""

    def started(self, streams: Sequence[Stream]) -> None:
        """Note the streams that are read, before anything is written."""
        return

    def opening(self, index: int) -> list[Json]:
        """First events of a choice."""
        return []

    @abstractmethod
    def delta(self, index: int, delta: Delta, logprobs: bool) -> Json:
        """Event with new text, and with its tokens if `logprobs`."""

    @abstractmethod
    def end(self, index: int, reason: Reason) -> list[Json]:
        """Last events of a choice."""

    @abstractmethod
    def last(self, usage: Usage, include_usage: bool) -> list[Json]:
        """Events after the end of all choices."""

    def failed(self, problem: ApiError) -> list[Json]:
        """Events of an error in the middle of a stream."""
        return [problem.body]

    @abstractmethod
    def whole(self, choices: Sequence[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> BaseModel:
        """Answer to a request that does not stream."""


class ChunkSerializer(AnswerSerializer):
    """Events that are chunks: the head of an answer, and an entry for a choice."""

    kind: ClassVar[str]
    """`object` of a chunk."""
    prefix: ClassVar[str]
    """Begins the answer's id."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def last(self, usage: Usage, include_usage: bool) -> list[Json]:
        return [self._chunk() | {"usage": usage.model_dump()}] if include_usage else []

    def _chunk(self, *entries: Json) -> Json:
        return {"id": self._head["id"], "object": self.kind, **self._head, "choices": list(entries)}


class ChatSerializer(ChunkSerializer):
    """chat.completion and chat.completion.chunk."""

    trimmed, kind, prefix = True, "chat.completion.chunk", "chatcmpl"

    def __init__(self, model: str, form: AnswerForm | None = None) -> None:
        """`form`: what the answers are, if not text."""
        super().__init__(model)
        self._function = form.function if form else None
        """Name of the function that the answers call."""
        self._complete: Reason = form.reason if form else "stop"
        """Reason of an answer that is complete."""

    def opening(self, index: int) -> list[Json]:
        if self._function is None:
            return [self._chunk(_chat_entry(index, {"role": "assistant", "content": ""}))]
        call = {"index": 0, **_tool_call(self._function, "").model_dump()}
        return [self._chunk(_chat_entry(index, {"role": "assistant", "content": None, "tool_calls": [call]}))]

    def delta(self, index: int, delta: Delta, logprobs: bool) -> Json:
        tokens = _chat_logprobs(delta.logprobs).model_dump() if logprobs else None
        added: Json = {"content": delta.text}
        if self._function is not None:
            added = {"tool_calls": [{"index": 0, "function": {"arguments": delta.text}}]}
        return self._chunk(_chat_entry(index, added) | {"logprobs": tokens})

    def end(self, index: int, reason: Reason) -> list[Json]:
        return [self._chunk(_chat_entry(index, {}) | {"finish_reason": self._reason(reason)})]

    def whole(self, choices: Sequence[tuple[Choice, Reason]], usage: Usage, logprobs: bool) -> ChatAnswer:
        listed = [
            ChatChoice(
                index=choice.index,
                message=self._message(choice.text),
                logprobs=_chat_logprobs(choice.logprobs) if logprobs else None,
                finish_reason=self._reason(reason),
            )
            for choice, reason in choices
        ]
        return ChatAnswer(**self._head, choices=listed, usage=usage)

    def _message(self, text: str) -> AnswerMessage | CallMessage:
        if self._function is None:
            return AnswerMessage(content=text)
        return CallMessage(tool_calls=[_tool_call(self._function, text)])

    def _reason(self, reason: Reason) -> Reason:
        return self._complete if reason == "stop" else reason


class CompletionSerializer(ChunkSerializer):
    """text_completion, whole and in chunks."""

    trimmed, kind, prefix = False, "text_completion", "cmpl"

    def delta(self, index: int, delta: Delta, logprobs: bool) -> Json:
        tokens = _completion_logprobs(delta.logprobs) if logprobs else None
        entry = {"index": index, "text": delta.text, "logprobs": tokens and tokens.model_dump(), "finish_reason": None}
        return self._chunk(entry)

    def end(self, index: int, reason: Reason) -> list[Json]:
        return [self._chunk({"index": index, "text": "", "logprobs": None, "finish_reason": reason})]

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


def _tool_call(function: str, arguments: str) -> ToolCall:
    called = CalledFunction(name=function, arguments=arguments)
    return ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", function=called)


def _chat_entry(index: int, delta: Json) -> Json:
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
