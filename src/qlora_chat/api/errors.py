"""Errors in OpenAI's format.

Scope: exceptions to status, type and code. A message says what arrived and what to do; it never quotes a conversation.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from qlora_chat.engines import EngineError, OutOfMemory
from qlora_chat.errors import UserError
from qlora_chat.history import HistoryError, StaleConversation
from qlora_chat.serving.admission import Overloaded


class ErrorDetail(BaseModel):
    """Reason of a failure."""

    message: str
    type: str = Field(description="invalid_request_error, authentication_error, rate_limit_error or server_error")
    param: str | None = Field(description="the field of the request that caused it")
    code: str | None = Field(description="machine-readable reason, such as context_length_exceeded")


class ErrorBody(BaseModel):
    """Body of every response that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """JSON body."""
        return error_body(self.status, self.message, self.code, self.param)

    def response(self) -> JSONResponse:
        """HTTP response."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return JSONResponse(self.body, self.status, headers)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Body of an error with this status."""
    if status >= 500:
        kind = "server_error"
    else:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request is invalid, or not supported."""
    return ApiError(400, message, code, param)


def api_error(problem: BaseException) -> ApiError:
    """Error for the client of an exception that occurred while its request was handled."""
    match problem:
        case ApiError():
            return problem
        case Overloaded():
            return ApiError(429, str(problem), "rate_limit_exceeded", retry_after=problem.retry_after)
        case OutOfMemory():
            return ApiError(503, str(problem), "out_of_memory", retry_after=1)
        case EngineError():
            return ApiError(503, str(problem), "generation_failed", retry_after=1)
        case StaleConversation():
            text = "The conversation of metadata.conversation_id was changed or deleted meanwhile. Send the request again."
            return ApiError(409, text, "conversation_changed", "metadata.conversation_id")
        case HistoryError():
            text = f"The turn cannot be stored, so it was not started: {problem}. Send it again, or with store=false."
            return ApiError(503, text, "not_stored", "store", retry_after=5)
        case UserError() if isinstance(problem, ValueError):
            return invalid(str(problem))
        case _:  # its message may quote the conversation
            return ApiError(500, f"The answer could not be finished ({type(problem).__name__}).", "internal_error")
