"""Response bodies of chats, completions and models, as OpenAI documents them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Reason = Literal["stop", "length", "tool_calls"]


class PromptDetails(BaseModel):
    """Details of the prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts; the prompt of several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(BaseModel):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, with the most likely tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """One entry per token."""

    content: list[TokenLogprob]


class CompletionLogprobs(BaseModel):
    """Lists of equal length, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class CalledFunction(BaseModel):
    """A function that is to be called."""

    name: str
    arguments: str = Field(description="JSON")


class ToolCall(BaseModel):
    """A call of a function, for the client to make."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class CallMessage(BaseModel):
    """The model's message where a function had to be called."""

    role: Literal["assistant"] = "assistant"
    content: None = None
    refusal: None = None
    tool_calls: list[ToolCall]


class ChatChoice(BaseModel):
    """One of n answers."""

    index: int
    message: AnswerMessage | CallMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChatAnswer(BaseModel):
    """POST /v1/chat/completions without stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(BaseModel):
    """One of the completions."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason


class CompletionAnswer(BaseModel):
    """POST /v1/completions without stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A base, a merged model or an adapter, by the name that requests use."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["qlora-chat"] = "qlora-chat"
    root: str
    parent: str | None
    max_model_len: int
    prompt_format: str
    """Its name, and why it was chosen."""


class Done(BaseModel):
    """Confirmation."""

    message: str


class ModelList(BaseModel):
    """GET /v1/models"""

    object: Literal["list"] = "list"
    data: list[ModelCard]
