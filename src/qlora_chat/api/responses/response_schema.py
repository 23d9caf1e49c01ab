"""Body of an answer of POST /v1/responses, as OpenAI documents it; the same object is in the events of a stream."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from qlora_chat.api.response_schemas import Usage

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(BaseModel):
    """The answer's text."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    """The answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class FunctionCall(BaseModel):
    """The answer where a function had to be called."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: Literal["in_progress", "completed", "incomplete"]
    arguments: str
    call_id: str
    name: str


class InputTokens(BaseModel):
    """Details of the prompt's tokens."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokens(BaseModel):
    """Details of the answer's tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens = OutputTokens()
    total_tokens: int

    @staticmethod
    def of(usage: Usage) -> ResponseUsage:
        """The counts of a chat under this format's names."""
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokens(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        )


class ResponseProblem(BaseModel):
    """Reason of a failure in the middle of a stream."""

    code: str
    message: str


class IncompleteDetails(BaseModel):
    """Reason of an answer that was cut off."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(BaseModel):
    """POST /v1/responses without stream."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    error: ResponseProblem | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputMessage | FunctionCall] = []
    usage: ResponseUsage | None = None
    previous_response_id: str | None
    instructions: str | None
    metadata: dict[str, str]
    max_output_tokens: int | None
    temperature: float
    top_p: float
    store: bool
    user: str | None
    background: Literal[False] = False
    parallel_tool_calls: bool
    reasoning: dict[str, None] = {"effort": None, "summary": None}
    text: dict[str, Any] = {"format": {"type": "text"}}
    tool_choice: Any = "auto"
    tools: list[Any]
    top_logprobs: Literal[0] = 0
    truncation: Literal["disabled"] = "disabled"
